"""Bells: rung when work is safely stored, never in the caller's way, and lost without harm."""

import json
import socket
from contextlib import suppress
from datetime import UTC, datetime
from zlib import decompress

import pytest
from django.db import connection, transaction
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import SimpleWorker
from rq.serializers import JSONSerializer

from notifications import jobs, queues
from notifications.channels import Accepted, Rejected, Unavailable
from notifications.dispatch import bells
from notifications.dispatch.sweep import sweep, waiting
from notifications.exceptions import ProviderError
from notifications.models import MessageStatus, OutboxMessage
from notifications.queues import JsonJob, queue_named
from tenants import onboarding
from tenants.context import tenant_context
from tests import factories, stack
from tests.factories import Undone, accepted, fresh, on_ledger, turn

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey")]


def work(queue: str = "default") -> None:
    """A worker of the same kind as the service's, until its queue is empty."""
    found = queue_named(queue)
    worker = SimpleWorker([found], connection=found.connection, job_class=JsonJob, serializer=JSONSerializer)
    here = connection.tenant
    worker.work(burst=True, logging_level="ERROR")
    connection.set_tenant(here)


def hanging(queue: str = "default") -> int:
    return len(queue_named(queue))


def status(tenant, message) -> str:
    with tenant_context(tenant):
        return fresh(message).status


# Transactions


def test_what_was_rolled_back_is_neither_sent_nor_rung_for(acme_sends):
    with suppress(Undone), transaction.atomic():
        accepted()
        raise Undone
    assert hanging() == 0
    assert not on_ledger().exists()
    work()
    assert not acme_sends.received
    assert not OutboxMessage.objects.exists()


def test_the_bell_rings_after_the_commit_and_not_before(acme, acme_sends, valkey):
    with transaction.atomic():
        accepted()
        assert hanging() == 0
        assert not valkey.exists(bells._key(acme.schema_name, "default"))
    assert hanging() == 1


def test_a_rolled_back_message_does_not_keep_the_next_ones_bell_from_ringing(acme_sends):
    with suppress(Undone), transaction.atomic():
        accepted()
        raise Undone
    accepted()
    assert hanging() == 1


def test_a_bell_rings_in_the_queue_of_the_priority(acme_sends):
    accepted(priority="bulk")
    accepted(priority="high")
    assert {name: hanging(name) for name in ("urgent", "high", "default", "bulk")} == {
        "urgent": 0, "high": 1, "default": 0, "bulk": 1,
    }  # fmt: skip


def test_a_scheduled_message_rings_no_bell_now(acme_sends):
    accepted(scheduled_at=datetime(2100, 1, 1, tzinfo=UTC))
    assert hanging() == 0


# What a bell is


def test_a_hundred_messages_hang_one_bell_and_one_turn_sends_them(acme, acme_sends):
    messages = [accepted() for _ in range(100)]
    assert hanging() == 1
    work()
    assert {status(acme, message) for message in messages} == {MessageStatus.SENT}


def test_a_bell_carries_a_schema_and_a_queue_as_json_under_a_fresh_id(acme, acme_sends, valkey):
    accepted()
    (first,) = queue_named("default").jobs
    work()
    accepted()
    (second,) = queue_named("default").jobs
    assert first.id != second.id
    assert first.id.startswith(f"{acme.schema_name}-")
    stored = valkey.hgetall(second.key)
    function, _, arguments, _ = json.loads(decompress(stored[b"data"]))
    assert (function, arguments) == ("notifications.jobs.drain", [acme.schema_name, "default"])


def test_a_bell_rung_while_its_drain_runs_is_not_lost(acme, acme_sends):
    """The second message is accepted when the first drain has looked at everything, and is in a hand-over."""
    late = []

    def accept_another(outgoing):
        # In a thread of its own, so on a connection of its own.
        try:
            late.append(accepted(to="late@example.com", tenant=acme.schema_name))
        finally:
            connection.close()
        return Accepted()

    acme_sends.script("ada@example.com", accept_another)
    factories.Outbox(address="late@acme.test", account=factories.Account())
    accepted()
    queue_named("default").empty()
    jobs.drain(acme.schema_name, "default")
    assert hanging() == 1
    work()
    assert status(acme, late[0]) == MessageStatus.SENT


def test_a_doubled_bell_sends_nothing_twice(acme, acme_sends):
    accepted()
    for _ in range(3):
        queue_named("default").enqueue(jobs.drain, acme.schema_name, "default")
    work()
    assert len(acme_sends.received) == 1


def test_bells_that_nobody_answers_do_not_pile_up(acme, acme_sends, valkey):
    accepted()
    for _ in range(3):
        valkey.delete(bells._key(acme.schema_name, "default"))
        bells.ring(acme.schema_name, "default")
    assert hanging() == 1


def test_a_bell_that_could_not_be_hung_does_not_keep_the_next_one_out(acme, acme_sends, valkey, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(queue_named("default"), "enqueue_call", refuse)
        assert not bells.ring(acme.schema_name, "default")
    bells._doorbell.quiet_until = 0
    assert bells.ring(acme.schema_name, "default")
    assert hanging() == 1


# Valkey is wiped, or away


@pytest.mark.skipif(not hasattr(stack, "servers"), reason="wipes Valkey: only one of the tests' own")
def test_a_wiped_valkey_delays_and_never_loses(acme, acme_sends, valkey):
    messages = [accepted() for _ in range(3)]
    valkey.flushall()
    work()
    assert {status(acme, message) for message in messages} == {MessageStatus.PENDING}
    assert waiting() == [(acme.schema_name, "default")]
    assert sweep() == 1
    work()
    assert {status(acme, message) for message in messages} == {MessageStatus.SENT}
    assert waiting() == []


@pytest.fixture
def dead_valkey(monkeypatch):
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    away = Redis(host="127.0.0.1", port=port, socket_connect_timeout=0.5, retry=Retry(NoBackoff(), 0))
    monkeypatch.setattr(queues, "redis", lambda: away)
    yield
    away.close()


def test_an_absent_valkey_never_fails_the_caller(acme, acme_sends, request, monkeypatch):
    with monkeypatch.context() as away:
        request.getfixturevalue("dead_valkey")
        with transaction.atomic():
            messages = [accepted(), accepted()]
        assert {status(acme, message) for message in messages} == {MessageStatus.PENDING}
        assert waiting() == [(acme.schema_name, "default")]
        assert sweep() == 0
        assert turn().sent == 2
        away.undo()


def test_after_a_failure_the_doorbell_is_left_alone_for_a_while(acme_sends, dead_valkey, monkeypatch):
    asked = []
    monkeypatch.setattr(queues, "redis", lambda redis=queues.redis: asked.append(1) or redis())
    for _ in range(5):
        accepted()
    assert len(asked) == 1


# The tenants


def test_a_suspended_tenants_messages_wait_and_go_when_it_resumes(acme, acme_sends):
    accepted()
    onboarding.suspend(acme, "unpaid", "operator")
    waits = accepted(to="late@example.com", tenant=acme)
    assert waiting() == []
    assert sweep() == 0
    work()
    assert status(acme, waits) == MessageStatus.PENDING
    assert not acme_sends.received
    onboarding.resume(acme, "operator")
    assert waiting() == [(acme.schema_name, "default")]
    queues.redis().delete(bells._key(acme.schema_name, "default"))
    assert sweep() == 1
    work()
    assert status(acme, waits) == MessageStatus.SENT
    assert len(acme_sends.accepted) == 2


def test_a_tenant_whose_migrations_lag_waits(acme, acme_sends):
    accepted()
    current = acme.migrations
    older = [name for name in current if not name.startswith("notifications.")]
    type(acme).objects.filter(pk=acme.pk).update(migrations=older)
    assert waiting() == []
    work()
    assert not acme_sends.received
    type(acme).objects.filter(pk=acme.pk).update(migrations=current)
    assert waiting() == [(acme.schema_name, "default")]
    jobs.drain(acme.schema_name, "default")
    assert len(acme_sends.accepted) == 1


def test_a_closed_tenants_work_is_taken_off_the_ledger(acme, acme_sends):
    accepted()
    onboarding.close(acme, "acme", "operator")
    assert not on_ledger().exists()
    work()
    assert not acme_sends.received


# Where and when it is sent


def test_messages_for_the_commands_are_left_alone_by_bell_and_sweep(acme, acme_sends, settings):
    settings.NOTIFY_SEND_IMMEDIATELY = False
    message = accepted()
    assert hanging() == 0
    assert waiting() == []
    assert turn().total == 0
    assert turn(manual=True).sent == 1
    assert status(acme, message) == MessageStatus.SENT


def test_a_message_for_the_commands_stays_behind_when_its_neighbour_goes(acme, acme_sends, settings):
    accepted()
    settings.NOTIFY_SEND_IMMEDIATELY = False
    manual = accepted("manual@example.com")
    work()
    assert [outgoing.to for outgoing in acme_sends.received] == ["ada@example.com"]
    assert status(acme, manual) == MessageStatus.PENDING


def test_in_mode_db_only_the_commands_drain(acme, acme_sends, settings):
    settings.NOTIFY_DISPATCH_MODE = "db"
    message = accepted()
    assert hanging() == 0
    assert sweep() == 0
    assert turn().sent == 1
    assert status(acme, message) == MessageStatus.SENT


def test_in_mode_inline_the_message_is_sent_when_the_call_returns(acme, acme_sends, settings):
    settings.NOTIFY_DISPATCH_MODE = "inline"
    earlier = accepted(scheduled_at=None)
    assert (earlier.status, len(acme_sends.accepted), hanging()) == (MessageStatus.SENT, 1, 0)
    with transaction.atomic():
        message = accepted()
        assert len(acme_sends.accepted) == 1
    assert status(acme, message) == MessageStatus.SENT


def test_in_mode_inline_only_the_callers_message_is_sent(acme, acme_sends, settings):
    other = accepted(to="other@example.com")
    settings.NOTIFY_DISPATCH_MODE = "inline"
    accepted()
    assert [outgoing.to for outgoing in acme_sends.accepted] == ["ada@example.com"]
    assert status(acme, other) == MessageStatus.PENDING


@pytest.mark.parametrize(
    ("answer", "stored"),
    [(Rejected("no such mailbox"), MessageStatus.FAILED), (Unavailable("no such mailbox"), MessageStatus.SCHEDULED)],
)
def test_in_mode_inline_the_callers_who_ask_are_told_what_the_provider_said(acme_sends, settings, answer, stored):
    settings.NOTIFY_DISPATCH_MODE = "inline"
    acme_sends.script("ada@example.com", answer, answer)
    assert accepted().status == stored
    with pytest.raises(ProviderError, match="no such mailbox"):
        accepted(raise_errors=True)
    assert OutboxMessage.objects.count() == 2
    assert accepted(raise_errors=True).status == MessageStatus.SENT


def test_in_the_other_modes_nobody_is_told_at_the_call(acme_sends):
    acme_sends.script("ada@example.com", Rejected("no"))
    accepted(raise_errors=True)
    work()
    assert OutboxMessage.objects.get().status == MessageStatus.FAILED
