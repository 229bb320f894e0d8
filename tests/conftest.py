"""What every test stands on: migrated schemas, the tenants acme and globex, and a connection that ends in public."""

from collections.abc import Iterator

import pytest
from django.conf import settings
from django.db import connection
from django.test import TransactionTestCase
from redis import Redis

from notifications import adapters, channels, delivery, queues
from notifications.channels.fake import Fake
from notifications.dispatch import bells
from notifications.models import NotificationChannel
from tenants.context import tenant_context
from tenants.models import PUBLIC_SCHEMA, Tenant
from tenants.onboarding import create_tenant
from tests.database import Snapshot
from tests.factories import Outbox
from tests.mail import mail  # noqa: F401 (a fixture)

OWNER_PASSWORD = "a long enough password"


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: pytest.FixtureRequest) -> Iterator[None]:
    """Make the tenants once, outside every test's transaction; tests that commit are cleaned up after them."""
    with django_db_blocker.unblock():
        for name in ("acme", "globex"):
            create_tenant(name, domain=name, owner_email=f"owner@{name}.example", owner_password=OWNER_PASSWORD)
        snapshot = Snapshot()
    original = TransactionTestCase._fixture_teardown
    TransactionTestCase._fixture_teardown = lambda _: snapshot.restore()
    yield
    TransactionTestCase._fixture_teardown = original
    with django_db_blocker.unblock():
        snapshot.drop()


@pytest.fixture
def acme(db: None) -> Tenant:
    """A tenant; nothing is entered."""
    return Tenant.objects.get(name="acme")


@pytest.fixture
def globex(db: None) -> Tenant:
    """Another tenant."""
    return Tenant.objects.get(name="globex")


@pytest.fixture
def in_acme(acme: Tenant) -> Iterator[Tenant]:
    """The whole test runs inside acme."""
    with tenant_context(acme):
        yield acme


@pytest.fixture(autouse=True)
def connection_ends_in_public() -> Iterator[None]:
    """Whatever a test does, it leaves the thread's connection in public, and nothing on its way."""
    yield
    assert delivery.finish_late(30)
    left_in = connection.schema_name
    connection.set_schema_to_public()
    assert left_in == PUBLIC_SCHEMA, f"the test left the connection in {left_in}"


# Messages: a provider that does as told, a mail server, a Valkey with nothing left of the test before.


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """Provider `fake` on every channel, and in every schema the same one."""
    fake = Fake()

    class Told:
        platform_only = False
        secret_settings = frozenset()

        def __new__(cls, *_: object, **__: object) -> Fake:
            return fake

    for channel in NotificationChannel.values:
        monkeypatch.setitem(channels.ADAPTERS, (channel, "fake"), Told)
    yield fake
    adapters.close_all()


@pytest.fixture
def acme_sends(in_acme: Tenant, provider: Fake) -> Fake:
    """Acme has an outbox for e-mail and one for SMS, and the test runs inside acme."""
    Outbox()
    Outbox(account__kind="sms", address="+12025550123", name="")
    return provider


@pytest.fixture
def valkey() -> Iterator[Redis]:
    """Valkey without bells, and a doorbell that has not given up."""
    redis = queues.redis()
    for name in settings.QUEUES:
        queues.queue_named(name).empty()
    for key in redis.scan_iter("bell*"):
        redis.delete(key)
    bells._doorbell.quiet_until = 0
    yield redis
    bells._doorbell.quiet_until = 0
