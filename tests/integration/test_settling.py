"""A message of unknown fate: a person says whether it arrived, and it goes again only if it did not."""

import time
from datetime import timedelta
from threading import Event

import pytest
from auditlog.models import LogEntry
from django.contrib.auth import get_user_model
from django.db import connection, transaction
from django.utils import timezone

from notifications import lifecycle
from notifications.channels import Accepted, Uncertain
from notifications.dispatch import ledger
from notifications.dispatch.models import AccountHold, OutboxWindow
from notifications.exceptions import CommunicationError, NotRetryable
from notifications.models import MessageStatus, OutboxMessage
from tenants.context import tenant_context
from tenants.scoping import WrongTenant
from tests import factories
from tests.factories import accepted, fresh, make_due, on_ledger, race, turn


@pytest.fixture
def actor(in_acme):
    return get_user_model().objects.create_user("operator")


@pytest.fixture
def doubtful(acme_sends):
    """An e-mail that the provider may have taken, and that goes again in ten minutes."""
    acme_sends.script("ada@example.com", Uncertain("no answer"))
    message = accepted()
    turn()
    assert on_ledger(message).exists()
    return fresh(message)


def given_up(message: OutboxMessage) -> OutboxMessage:
    """The same, once nothing but a person settles it."""
    on_ledger(message).delete()
    lifecycle.leave_to_a_person([message.pk])
    return fresh(message)


def entry_of(message: OutboxMessage) -> LogEntry:
    return LogEntry.objects.get(object_pk=str(message.pk), action=LogEntry.Action.UPDATE)


@pytest.mark.parametrize("waits", [True, False], ids=["planned again", "given up"])
def test_what_arrived_counts_as_sent_when_it_was_tried_and_goes_no_more(acme_sends, doubtful, actor, waits):
    message = doubtful if waits else given_up(doubtful)
    lifecycle.settle(message, arrived=True, actor=actor, reason="she answered")
    attempt = message.attempts.get()
    assert (message.status, message.sent_at) == ("sent", attempt.finished_at)
    assert (message.error_class, message.error_message, message.dead_lettered_at) == ("", "", None)
    assert (message.retry_count, attempt.outcome) == (0, "uncertain")
    assert not on_ledger(message).exists()
    make_due()
    turn()
    assert len(acme_sends.received) == 1
    entry = entry_of(message)
    assert (entry.actor, entry.changes) == (actor, {"status": ["uncertain", "sent"]})
    assert entry.additional_data == {"reason": "she answered"}


@pytest.mark.parametrize("waits", [True, False], ids=["planned again", "given up"])
def test_what_did_not_arrive_goes_again_at_once(acme_sends, doubtful, actor, waits):
    message = doubtful if waits else given_up(doubtful)
    OutboxMessage.objects.filter(pk=message.pk).update(expires_at=timezone.now() - timedelta(seconds=1))
    lifecycle.settle(message, arrived=False, actor=actor)
    assert (message.status, message.retry_count, message.dead_lettered_at) == ("pending", 1, None)
    assert entry_of(message).changes == {"status": ["uncertain", "pending"]}
    assert turn().sent == 1
    assert list(message.attempts.values_list("cycle", "number", "outcome")) == [
        (0, 1, "uncertain"), (1, 1, "accepted"),
    ]  # fmt: skip


@pytest.mark.parametrize("arrived", [True, False])
@pytest.mark.parametrize("status", [status for status in MessageStatus.values if status != "uncertain"])
def test_only_what_is_uncertain_is_settled(doubtful, actor, status, arrived):
    stranger = given_up(doubtful)
    OutboxMessage.objects.filter(pk=stranger.pk).delete()
    stranger.status, stranger.sent_at = status, timezone.now()
    OutboxMessage.objects.bulk_create([stranger])
    with pytest.raises(CommunicationError if arrived else NotRetryable, match=f"is {status}: only uncertain"):
        lifecycle.settle(stranger, arrived=arrived, actor=actor)
    assert fresh(stranger).status == status
    assert not on_ledger(stranger).exists()
    assert not LogEntry.objects.filter(object_pk=str(stranger.pk), action=LogEntry.Action.UPDATE).exists()


@pytest.mark.parametrize("arrived", [True, False])
def test_a_worker_that_is_about_to_send_it_again_finds_its_claim_gone(acme_sends, doubtful, actor, arrived):
    make_due(doubtful)
    row = on_ledger(doubtful).get()
    late = ledger.claim(row.lane_id, tenant_id=row.tenant_id, limit=1, worker="late")
    assert [claimed.item for claimed in late.rows] == [doubtful.pk]
    lifecycle.settle(doubtful, arrived=arrived, actor=actor)
    assert ledger.mark_handed_over(late, [doubtful.pk]) == set()
    ledger.finish(late, [doubtful.pk])
    assert turn().sent == (not arrived)
    assert fresh(doubtful).status == "sent"


def test_what_may_not_go_again_is_left_to_a_person(acme_sends, doubtful, actor):
    OutboxMessage.objects.filter(pk=doubtful.pk).update(expires_at=timezone.now())
    make_due(doubtful)
    turn()
    left = fresh(doubtful)
    assert (left.status, left.dead_lettered_at is not None) == ("uncertain", True)
    lifecycle.settle(left, arrived=False, actor=actor)
    assert turn().sent == 1


def test_what_is_on_its_way_again_cannot_be_settled(acme_sends, doubtful, actor):
    make_due(doubtful)
    row = on_ledger(doubtful).get()
    claim = ledger.claim(row.lane_id, tenant_id=row.tenant_id, limit=1, worker="w")
    assert ledger.mark_handed_over(claim, [doubtful.pk])
    lifecycle.mark_sending([doubtful])
    with pytest.raises(CommunicationError, match="is sending"):
        lifecycle.settle(doubtful, arrived=True, actor=actor)
    assert on_ledger(doubtful).exists()


def test_another_tenants_message_is_not_settled(doubtful, actor, globex):
    with tenant_context(globex), pytest.raises(WrongTenant):
        lifecycle.settle(doubtful, arrived=True, actor=actor)
    assert fresh(doubtful).status == "uncertain"


# A person and a worker at the same time


def until_they_wait(number: int) -> None:
    """Wait until so many transactions wait for another's lock."""
    deadline = time.monotonic() + 30
    with connection.cursor() as cursor:
        while True:
            cursor.execute("SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted")
            if cursor.fetchone()[0] == number:
                return
            assert time.monotonic() < deadline, "they do not wait"
            time.sleep(0.01)


@pytest.fixture
def due_again(acme, provider):
    """A message of acme that the provider may have taken and that is due once more, and a person."""
    with tenant_context(acme):
        factories.Outbox(rate_limit=100)
        person = get_user_model().objects.create_user("operator")
        provider.script("ada@example.com", Uncertain("no answer"))
        message = accepted()
        turn()
        assert fresh(message).status == "uncertain"
        make_due(message)
    return message, person


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("arrived", [True, False])
def test_a_person_who_settles_while_the_worker_records_waits_for_it_and_is_too_late(acme, provider, due_again, arrived):
    message, person = due_again
    handed_over, answers, recording = Event(), Event(), Event()

    def answer(_):
        handed_over.set()
        assert answers.wait(30)
        return Accepted()

    provider.script(message.to_address, answer)

    def settle():
        assert recording.wait(30)
        lifecycle.settle(fresh(message), arrived=arrived, actor=person)

    def stand_in_the_way():
        """The worker's record has to wait for this one, and the person for the worker."""
        assert handed_over.wait(30)
        with transaction.atomic():
            OutboxMessage.objects.select_for_update().get(pk=message.pk)
            answers.set()
            until_they_wait(1)
            recording.set()
            until_they_wait(2)

    def act(position):
        with tenant_context(acme):
            return (settle, lambda: turn().sent, stand_in_the_way)[position]()

    settled, sent, _ = race(3, act)
    assert isinstance(settled, CommunicationError if arrived else NotRetryable), settled
    assert "is sent: only uncertain" in str(settled)
    assert sent == 1
    assert len(provider.received) == 2
    with tenant_context(acme):
        assert (fresh(message).status, fresh(message).retry_count) == ("sent", 0)
        assert not on_ledger(message).exists()
        assert not LogEntry.objects.filter(object_pk=str(message.pk), action=LogEntry.Action.UPDATE).exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("arrived", [True, False])
def test_a_worker_that_comes_while_a_person_settles_waits_for_them_and_sends_nothing(
    acme, provider, due_again, arrived
):
    message, person = due_again
    begin, claimed, settled, free = Event(), Event(), Event(), Event()

    def settle():
        assert claimed.wait(30)
        with transaction.atomic():
            lifecycle.settle(fresh(message), arrived=arrived, actor=person)
            settled.set()
            assert free.wait(30)
            until_they_wait(1)

    def deliver():
        assert begin.wait(30)
        return turn().sent

    def stand_in_the_way():
        """The worker has claimed the message and waits for a permit until the person is half through."""
        with transaction.atomic():
            OutboxWindow.objects.select_for_update().get()
            begin.set()
            until_they_wait(1)
            claimed.set()
            assert settled.wait(30)
        free.set()

    def act(position):
        with tenant_context(acme):
            return (settle, deliver, stand_in_the_way)[position]()

    assert race(3, act) == [None, 0, None]
    assert len(provider.received) == 1
    with tenant_context(acme):
        assert fresh(message).status == ("sent" if arrived else "pending")
        assert entry_of(message).actor_id == person.pk
        assert turn().sent == (not arrived)
        assert not on_ledger(message).exists()


@pytest.mark.django_db(transaction=True)
def test_of_a_person_and_a_worker_exactly_one_takes_it(acme, provider):
    """The worker sends it once more, or the person has said that it arrived: never both, and nobody waits for ever."""
    with tenant_context(acme):
        factories.Outbox()
        person = get_user_model().objects.create_user("operator")
    for number in range(25):
        to = f"ada{number}@example.com"
        provider.script(to, Uncertain("no answer"), Accepted())
        with tenant_context(acme):
            message = accepted(to)
            turn()
            assert fresh(message).status == "uncertain"
            make_due(message)
            # Failures in a row would keep the next one from going.
            AccountHold.objects.all().delete()

        def act(position, message=message):
            with tenant_context(acme):
                if position % 2:
                    return turn().sent
                try:
                    lifecycle.settle(fresh(message), arrived=True, actor=person)
                except CommunicationError:
                    return "too late"
                return "settled"

        answers = race(2, act)
        times = sum(outgoing.to == to for outgoing in provider.received)
        assert (answers[0], times) in {("settled", 1), ("too late", 2)}, answers
        with tenant_context(acme):
            assert fresh(message).status == "sent"
            assert not on_ledger(message).exists()
