"""A tenant that is closed: nothing of its work stays in the tables that all tenants share."""

import pytest

from notifications.channels import Unavailable
from notifications.dispatch.models import AccountHold, Lane, LedgerRow, OutboxWindow, Usage
from notifications.models import Outbox, OutboxMessage
from tenants import onboarding
from tenants.context import public_context, tenant_context
from tenants.models import Tenant
from tests import factories
from tests.factories import accepted, turn


def shared(owner: int) -> dict[str, int]:
    """How many rows each shared table has of an owner."""
    return {
        "work": LedgerRow.objects.filter(tenant_id=owner).count(),
        "lanes": Lane.objects.filter(tenant_id=owner).count(),
        "windows": OutboxWindow.objects.filter(owner=owner).count(),
        "holds": AccountHold.objects.filter(owner=owner).count(),
        "usage": Usage.objects.filter(tenant_id=owner).count(),
    }


@pytest.fixture
def busy(acme, globex, provider):
    """Two tenants with a limited sender that is throttled, a quota, and text messages by the platform's sender."""
    Tenant.objects.filter(pk__in=[acme.pk, globex.pk]).update(daily_quota=100)
    with public_context():
        Outbox.objects.filter(account__kind="sms").update(rate_limit=10)
    for tenant in (acme, globex):
        tenant.refresh_from_db()
        with tenant_context(tenant):
            factories.Outbox(rate_limit=10)
            accepted("+12025550188", channel="sms")
            provider.script("ada@example.com", Unavailable("429", error_class="throttled"))
            accepted()
            turn()
    return acme, globex


@pytest.mark.parametrize("also_dropped", [False, True])
def test_only_its_own_rows_go(busy, also_dropped):
    acme, globex = busy
    others, platforms = shared(globex.pk), shared(0)
    assert all(shared(acme.pk).values())
    assert all(others.values())
    assert platforms["windows"]
    key = acme.pk
    onboarding.close(acme, "acme", "operator")
    if also_dropped:
        onboarding.drop_closed_tenant(acme, "acme")
    assert not any(shared(key).values()), shared(key)
    assert (shared(globex.pk), shared(0)) == (others, platforms)


def test_its_messages_stay_as_they_are_in_its_schema(busy):
    acme, _ = busy
    onboarding.close(acme, "acme", "operator")
    with tenant_context(acme):
        assert dict(OutboxMessage.objects.values_list("channel", "status")) == {"sms": "sent", "email": "scheduled"}
