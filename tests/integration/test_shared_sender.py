"""The platform's sender as the tenants that share it see it."""

from notifications.models import Outbox
from tenants.context import public_context, tenant_context
from tests import factories
from tests.factories import accepted, turn


def test_each_tenant_sees_whether_the_shared_limit_is_used_up(acme, globex, provider):
    with public_context():
        Outbox.objects.filter(account__kind="email").update(is_active=False)
        factories.Outbox(address="hi@platform.test", rate_limit=1)
    messages = {}
    for tenant in (acme, globex):
        with tenant_context(tenant):
            messages[tenant] = accepted()
            assert messages[tenant].outbox.check_rate_limit()
    with tenant_context(acme):
        assert turn().sent == 1
    for tenant in (acme, globex):
        with tenant_context(tenant):
            assert not messages[tenant].outbox.check_rate_limit()
    with public_context():
        assert not Outbox.objects.get(address="hi@platform.test").check_rate_limit()
