"""Credentials that a provider refuses: the log says so, and who owns the account gets a mail from the platform."""

import logging
from datetime import timedelta

import pytest
import time_machine
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.utils import timezone

from notifications.dispatch.models import AccountHold, Lane
from notifications.models import Outbox, OutboxMessage
from tenants.context import public_context, tenant_context
from tenants.owners import OWNERS
from tests import factories
from tests.factories import accepted, fresh, make_due, turn
from tests.smtp_server import SMTPServer

pytestmark = pytest.mark.django_db(transaction=True)

REFUSED = "The mail server refused the user name or password."


@pytest.fixture
def server():
    """A mail server that knows nobody."""
    with SMTPServer(features=["AUTH PLAIN"]) as server:
        server.always("auth", "535 5.7.8 authentication failed")
        yield server


def refused_account(server, **more):
    """An account of the current schema at that server."""
    login = {"host": "127.0.0.1", "port": server.port, "use_tls": False, "username": "acme", "password": "outdated-1"}
    return factories.Account(provider="smtp", settings={"smtp": login}, **more)


@pytest.fixture
def account(acme, server):
    """Acme's only account."""
    with tenant_context(acme):
        account = refused_account(server, name="Newsletter")
        factories.Outbox(account=account)
    return account


@pytest.fixture
def platform(mail):
    """What the platform's sender has sent."""
    with public_context():
        account = factories.Account(provider="smtp", settings=mail.settings())
        factories.Outbox(account=account, address="hi@platform.test", name="Carillon", priority=1)
    return mail


def try_to_send(tenant) -> OutboxMessage:
    """A message of the tenant meets its provider, whatever was held against the account before."""
    AccountHold.objects.all().delete()
    Lane.objects.update(not_before=None)
    with tenant_context(tenant):
        message = accepted()
        turn()
        return fresh(message)


def mailed(platform) -> list[str]:
    """Whom the platform's sender wrote to, once its mail has gone out."""
    with public_context():
        make_due()
        turn("high")
    return sorted(caught.recipient for caught in platform.mails)


def alarms(caplog) -> list[tuple[str, str]]:
    return [
        (record.schema, record.getMessage())
        for record in caplog.records
        if record.levelno == logging.ERROR and "credentials" in record.getMessage()
    ]


def test_the_owner_of_a_refused_account_is_told_by_the_platforms_sender(acme, account, platform, caplog):
    message = try_to_send(acme)
    assert (message.status, message.error_class, message.error_message) == ("scheduled", "auth", REFUSED)
    assert alarms(caplog) == [(acme.schema_name, f"credentials refused: {REFUSED}")]
    assert mailed(platform) == ["owner@acme.example"]
    (caught,) = platform.mails
    assert caught.sender == "hi@platform.test"
    assert caught.subject == f"Messages wait: {account} is refused by its provider"
    assert str(account) in caught.part("plain")
    assert REFUSED in caught.part("plain")
    assert "outdated-1" not in caught.part("plain")


def test_the_owner_is_told_once_a_day_and_the_log_each_time(acme, account, platform, caplog):
    noon = timezone.now().replace(hour=12)
    with time_machine.travel(noon):
        for _ in range(2):
            try_to_send(acme)
    assert mailed(platform) == ["owner@acme.example"]
    assert len(alarms(caplog)) == 2
    with time_machine.travel(noon + timedelta(days=1)):
        try_to_send(acme)
    assert mailed(platform) == ["owner@acme.example"] * 2


def test_every_owner_is_told_of_every_refused_account_and_nobody_else_of_any(
    acme, globex, account, server, platform, caplog
):
    with tenant_context(acme):
        factories.Outbox(account=refused_account(server, name="Shop"), address="shop@acme.test")
        users = get_user_model().objects
        users.create_user("colleague", email="colleague@acme.example", is_staff=True)
        for name, more in (("second", {}), ("gone", {"is_active": False}), ("", {})):
            owner = users.create_user(f"owner-{name}", email=name and f"{name}@acme.example", is_staff=True, **more)
            owner.groups.add(Group.objects.get(name=OWNERS))
        accepted(from_address="shop@acme.test")
    try_to_send(acme)
    assert mailed(platform) == ["owner@acme.example"] * 2 + ["second@acme.example"] * 2
    assert "owner not told" not in caplog.text


def test_of_the_platforms_own_account_only_the_log_is_told(acme, server, caplog):
    with public_context():
        Outbox.objects.filter(account__kind="email").update(is_active=False)
        factories.Outbox(account=refused_account(server), address="hi@platform.test")
    try_to_send(acme)
    assert [message for _, message in alarms(caplog)] == [f"credentials refused: {REFUSED}"]
    with public_context():
        assert not OutboxMessage.objects.exists()


def test_a_platform_that_cannot_write_to_them_does_not_keep_the_account_from_waiting(acme, account, caplog):
    with public_context():
        Outbox.objects.update(is_active=False)
    assert try_to_send(acme).status == "scheduled"
    assert AccountHold.objects.get().not_before > timezone.now()
    assert "owner not told: no active outbox can send email" in caplog.text


def test_a_provider_that_is_busy_alarms_nobody(acme, account, server, platform, caplog):
    server.always("auth", "454 4.7.0 later")
    assert try_to_send(acme).error_class == "throttled"
    assert not alarms(caplog)
    assert mailed(platform) == []
