"""How much a tenant may have accepted: so many messages a day, and so many urgent ones a minute."""

import logging
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from threading import Event as Signal
from typing import Any

import pytest
from auditlog.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.db import connection, transaction
from django.db.models import F
from django.test import Client
from django.test.utils import CaptureQueriesContext

from notifications import quotas
from notifications.dispatch import usage
from notifications.dispatch.models import Usage
from notifications.exceptions import RateLimitExceeded
from notifications.models import Account, MessageStatus, OutboxMessage
from notifications.services import BulkNotifier, send
from tenants.context import public_context, tenant_context
from tenants.models import Tenant
from tenants.owners import OWNERS
from tests import factories
from tests.factories import Undone, accepted, on_ledger, race
from tests.integration.test_admin import entries, operator, platform  # noqa: F401 (fixtures)

User = get_user_model()
OWNER = "owner@acme.example"


def limit(tenant: Tenant, quota: int | None) -> None:
    Tenant.objects.filter(pk=tenant.pk).update(daily_quota=quota)


def used(tenant: Tenant, measure: usage.Measure = quotas.ACCEPTED) -> int:
    return usage.used(measure, tenant_id=tenant.pk)


def pass_time(**time: int) -> None:
    """Let days or minutes go by."""
    Usage.objects.update(period=F("period") - timedelta(**time))


def many(number: int, **options: Any) -> Any:
    people = [f"guest{position}@example.com" for position in range(number)]
    return BulkNotifier.send_bulk_email(recipients=people, subject="Hi", message="Hello", **options)


def code(**options: Any) -> OutboxMessage:
    """A message of security."""
    factories.models.EventType.objects.get_or_create(key="code", defaults={"name": "Code", "security": True})
    if not factories.models.NotificationTemplate.objects.filter(event_key="code").exists():
        factories.Template(event_key="code")
    given = {"to": "ada@example.com", "template_key": "code", "context": {"name": "A"}, "channel": "email"}
    return send(**{**given, **options})


# The daily quota


def test_beyond_the_quota_nothing_is_accepted_until_the_next_day(acme_sends, acme):
    limit(acme, 3)
    for _ in range(3):
        accepted()
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    said = rf"daily quota of 3 messages has 0 left, and 1 are asked for.*anew at {tomorrow:%Y-%m-%d} 00:00 UTC"
    with pytest.raises(RateLimitExceeded, match=said):
        accepted()
    assert OutboxMessage.objects.count() == on_ledger().count() == 3
    pass_time(days=1)
    accepted()
    assert (used(acme), Usage.objects.count()) == (1, 1)


def test_a_bulk_call_is_refused_whole(acme_sends, acme):
    limit(acme, 10)
    many(4)
    with pytest.raises(RateLimitExceeded, match="has 6 left, and 7 are asked for"):
        many(7)
    assert (OutboxMessage.objects.count(), used(acme)) == (4, 4)
    assert many(6).new == 6


def test_pages_are_not_begun_that_cannot_be_completed(acme_sends, acme, monkeypatch):
    monkeypatch.setattr("notifications.bulk.MOST", 10)
    limit(acme, 25)
    with pytest.raises(RateLimitExceeded, match="25 left, and 30 are asked for"):
        many(30)
    assert not OutboxMessage.objects.exists()
    with pytest.raises(RateLimitExceeded, match="5 left, and 10 are asked for"):
        many(30, idempotency_key="k")
    limit(acme, 30)
    assert many(30, idempotency_key="k").new == 10


def test_only_what_is_accepted_to_be_sent_counts(acme_sends, acme):
    limit(acme, 100)
    with suppress(Undone), transaction.atomic():
        accepted()
        many(5)
        raise Undone
    with suppress(Exception):
        accepted(body_text="")
    factories.Template(muted=True)
    send(to="ada@example.com", template_key="booking.confirmed", context={"name": "Ada"}, channel="email")
    assert used(acme) == 0
    for _ in range(2):
        accepted(idempotency_key="k")
        many(5, idempotency_key="k")
    assert used(acme) == 6


def test_what_was_accepted_before_comes_back_when_the_quota_is_used_up(acme_sends, acme):
    limit(acme, 6)
    one, more = accepted(idempotency_key="one"), many(5, idempotency_key="more")
    assert accepted(idempotency_key="one") == one
    assert many(5, idempotency_key="more").ids == more.ids


def test_security_messages_pass_and_count(acme_sends, acme):
    limit(acme, 1)
    accepted()
    assert code().status == MessageStatus.PENDING
    assert used(acme) == 2
    with pytest.raises(RateLimitExceeded, match="has 0 left"):
        accepted()


def test_a_tenants_own_quota_goes_before_the_platforms(acme_sends, acme, settings):
    settings.NOTIFY_DAILY_QUOTA = 2
    many(2)
    with pytest.raises(RateLimitExceeded):
        accepted()
    limit(acme, 3)
    accepted()
    limit(acme, 0)
    with pytest.raises(RateLimitExceeded, match="quota of 0 messages"):
        accepted()
    settings.NOTIFY_DAILY_QUOTA = 0
    limit(acme, None)
    accepted()


def test_without_a_quota_nothing_is_counted_or_asked(acme_sends, acme):
    with CaptureQueriesContext(connection) as captured:
        accepted()
        many(3)
    assert not [query["sql"] for query in captured if "dispatch_usage" in query["sql"]]
    assert not Usage.objects.exists()


def test_one_tenants_quota_is_not_anothers(acme, globex, provider):
    for tenant in (acme, globex):
        with tenant_context(tenant):
            factories.Outbox()
    limit(acme, 2)
    limit(globex, 2)
    many(2, tenant=acme)
    with pytest.raises(RateLimitExceeded):
        accepted(tenant=acme)
    assert many(2, tenant=globex).new == 2
    assert (used(acme), used(globex)) == (2, 2)


# Side by side


@pytest.mark.django_db(transaction=True)
def test_a_long_transaction_keeps_nobody_waiting(acme, provider):
    limit(acme, 100)
    with tenant_context(acme):
        factories.Outbox()
    accepted(tenant=acme)
    begun, over = Signal(), Signal()

    def call(position: int) -> None:
        if position:
            assert begun.wait(30)
            for _ in range(3):
                accepted(tenant=acme)
            over.set()
            return
        with transaction.atomic():
            accepted(tenant=acme)
            begun.set()
            assert over.wait(30), "the other one waited"

    assert race(2, call) == [None, None]
    assert (used(acme), Usage.objects.count()) == (5, 2)
    for _ in range(3):
        accepted(tenant=acme)
    assert (used(acme), Usage.objects.count()) == (8, 2)


@pytest.mark.django_db(transaction=True)
def test_racing_calls_are_all_counted(acme, provider):
    limit(acme, 10_000)
    with tenant_context(acme):
        factories.Outbox()

    def call(_: int) -> None:
        for _ in range(5):
            accepted(tenant=acme)
        many(10, tenant=acme)

    assert race(8, call) == [None] * 8
    assert used(acme) == 8 * 15
    assert Usage.objects.count() <= 8


# The early warning


@pytest.fixture
def warned(acme, provider, caplog, django_capture_on_commit_callbacks):
    """What the owners and the log are told by a call."""
    with tenant_context(acme):
        factories.Outbox()

    def warned(call: Any) -> tuple[list[str], int]:
        caplog.clear()
        with tenant_context(acme), caplog.at_level(logging.WARNING, "notifications"):
            before = set(OutboxMessage.objects.values_list("pk", flat=True))
            with django_capture_on_commit_callbacks(execute=True):
                call()
            mails = OutboxMessage.objects.exclude(pk__in=before).filter(idempotency_key__startswith="quota-warning-")
            told = sorted(mail.to_address for mail in mails)
        return told, sum("80% of the daily quota" in record.getMessage() for record in caplog.records)

    return warned


def test_at_four_fifths_the_owners_and_the_log_are_told_once(acme, warned):
    limit(acme, 10)
    with tenant_context(acme):
        second = User.objects.create_user("second", email="second@acme.example")
        gone = User.objects.create_user("gone", email="gone@acme.example", is_active=False)
        for user in (second, gone):
            user.groups.add(Group.objects.get(name=OWNERS))
        User.objects.create_user("staff", email="staff@acme.example", is_staff=True)
    assert warned(lambda: many(7)) == ([], 0)
    assert warned(accepted) == ([OWNER, "second@acme.example"], 1)
    assert used(acme) == 8, "the warning itself does not count"
    assert warned(accepted) == ([], 0)
    assert warned(accepted) == ([], 0)
    with tenant_context(acme):
        mail = OutboxMessage.objects.get(to_address=OWNER)
    assert (mail.priority, mail.subject) == ("high", "80% of today's messages are used")
    assert "the 10 messages" in mail.body_text
    pass_time(days=1)
    assert warned(lambda: many(9))[1] == 1


def test_a_bulk_call_that_passes_the_mark_warns_too(acme, warned):
    limit(acme, 10)
    assert warned(lambda: many(10)) == ([OWNER], 1)


def test_what_is_rolled_back_warns_nobody(acme, warned):
    limit(acme, 10)

    def call() -> None:
        with suppress(Undone), transaction.atomic():
            many(10)
            raise Undone

    assert warned(call) == ([], 0)
    assert warned(lambda: many(9)) == ([OWNER], 1)


def test_a_warning_that_cannot_be_mailed_fails_nobodys_call(acme, warned):
    limit(acme, 10)
    with tenant_context(acme):
        Account.objects.update(is_active=False)
        factories.Outbox(account__kind="sms", address="+12025550123", name="")
    with public_context():
        Account.objects.update(is_active=False)
    text = {"to": "+12025550188", "channel": "sms", "subject": None}
    assert warned(lambda: [accepted(**text) for _ in range(9)]) == ([], 1)
    assert used(acme) == 9


@pytest.mark.django_db(transaction=True)
def test_racing_calls_warn_once(provider, caplog):
    acme = Tenant.objects.get(name="acme")
    with tenant_context(acme):
        factories.Outbox()
    limit(acme, 100)
    many(79, tenant=acme)
    with caplog.at_level(logging.WARNING, "notifications"):
        assert race(8, lambda _: many(1, tenant=acme).new) == [1] * 8
    with tenant_context(acme):
        assert OutboxMessage.objects.filter(idempotency_key__startswith="quota-warning-").count() == 1
    assert sum("80% of the daily quota" in record.getMessage() for record in caplog.records) == 1


# The urgent rate


def test_beyond_the_rate_urgent_messages_are_high_until_the_next_minute(acme_sends, acme, settings):
    settings.NOTIFY_URGENT_PER_MINUTE = 3
    assert [code().priority for _ in range(5)] == ["urgent", "urgent", "urgent", "high", "high"]
    assert used(acme, quotas.URGENT) == 3
    assert {row.lane.queue for row in on_ledger()} == {"urgent", "high"}
    pass_time(minutes=1)
    assert code().priority == "urgent"
    assert Usage.objects.count() == 1


def test_a_bulk_call_is_urgent_as_a_whole_or_high(acme_sends, acme, settings):
    settings.NOTIFY_URGENT_PER_MINUTE = 5
    code()
    call = {"event_key": "code", "channel": "email", "context": {"name": "A"}, "priority": "urgent"}
    people = [f"guest{position}@example.com" for position in range(5)]
    assert {message.priority for message in BulkNotifier.send_bulk(recipients=people, **call)} == {"high"}
    assert {message.priority for message in BulkNotifier.send_bulk(recipients=people[:4], **call)} == {"urgent"}


def test_only_urgent_messages_count_and_without_a_rate_none(acme_sends, acme, settings):
    accepted()
    code(priority="default")
    assert not Usage.objects.exists()
    settings.NOTIFY_URGENT_PER_MINUTE = 0
    assert code().priority == "urgent"
    assert not Usage.objects.exists()


def test_one_tenants_urgent_messages_are_not_anothers(acme, globex, provider, settings):
    settings.NOTIFY_URGENT_PER_MINUTE = 1
    for tenant in (acme, globex):
        with tenant_context(tenant):
            factories.Outbox()
            assert code().priority == "urgent"


# The operators' page


def test_an_operator_gives_a_tenant_a_quota_and_takes_it_away(acme, platform, operator: Client, settings):  # noqa: F811
    page = f"/admin/tenants/tenant/{acme.pk}"
    assert "Daily quota" in operator.get(f"{page}/change/").text
    for typed in ("-1", "many", "99999999999"):
        operator.post(f"{page}/quota/", {"_form_submitted": "on", "daily_quota": typed})
    assert Tenant.objects.get(pk=acme.pk).daily_quota is None
    assert operator.post(f"{page}/quota/", {"_form_submitted": "on", "daily_quota": "50"}).status_code == 302
    assert Tenant.objects.get(pk=acme.pk).daily_quota == 50
    with tenant_context(acme):
        factories.Outbox(account__provider="console")
        accepted()
    assert "50 messages; 1 used today" in operator.get(f"{page}/change/").text
    operator.post(f"{page}/quota/", {"_form_submitted": "on", "daily_quota": ""})
    assert Tenant.objects.get(pk=acme.pk).daily_quota is None
    settings.NOTIFY_DAILY_QUOTA = 1_000
    assert "1,000 messages, as for every tenant; 1 used today" in operator.get(f"{page}/change/").text
    moved: list[LogEntry] = entries(platform, content_type__model="tenant")[-2:]
    assert [(entry.changes["daily_quota"], entry.actor.username) for entry in moved] == [
        (["None", "50"], "operator"),
        (["50", "None"], "operator"),
    ]


def test_whoever_may_only_look_sets_no_quota(acme, platform):  # noqa: F811
    from tests.integration.test_admin import signed_in, staff

    client = signed_in(platform, staff(platform, "tenants.view_tenant"))
    client.post(f"/admin/tenants/tenant/{acme.pk}/quota/", {"_form_submitted": "on", "daily_quota": "50"})
    assert Tenant.objects.get(pk=acme.pk).daily_quota is None
