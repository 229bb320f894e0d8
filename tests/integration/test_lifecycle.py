"""A message's life: which moves there are, who may begin it anew, and what is written down of it."""

from contextlib import nullcontext
from datetime import timedelta
from itertools import permutations

import pytest
from auditlog.models import LogEntry
from django.contrib.auth import get_user_model
from django.db import IntegrityError, transaction
from django.utils import timezone

from notifications import lifecycle
from notifications.channels import Rejected
from notifications.dispatch import ledger
from notifications.exceptions import NotCancellable, NotRetryable
from notifications.lifecycle import MOVES, Ending
from notifications.models import MessageStatus, OutboxMessage
from notifications.models.fields import new_id
from tenants.context import tenant_context
from tests import factories
from tests.factories import accepted, fresh, on_ledger, turn


def stored(status: str, **values) -> OutboxMessage:
    """A message with this status; the trigger guards moves only."""
    return OutboxMessage.objects.create(
        **{
            "idempotency_key": str(new_id()),
            "channel": "email",
            "to_address": "ada@example.com",
            "subject": "Hi",
            "body_text": "Hello",
            "status": status,
            "outbox_scope": "tenant",
            "outbox_uuid": new_id(),
            "expires_at": timezone.now() + timedelta(days=1),
            "sent_at": timezone.now(),
            "max_attempts": 5,
            "max_retries": 3,
            **values,
        }
    )


# Moves


@pytest.mark.parametrize("schema", ["acme", "public"])
def test_the_database_allows_exactly_the_moves_of_the_table(acme, schema):
    with tenant_context(acme if schema == "acme" else "public"):
        for before, after in permutations(MessageStatus.values, 2):
            message = stored(before)
            refused = pytest.raises(IntegrityError, match=f"may not move from {before} to {after}")
            with nullcontext() if after in MOVES[before] else refused, transaction.atomic():
                OutboxMessage.objects.filter(pk=message.pk).update(status=after)


def test_every_status_has_its_row_in_the_table():
    assert set(MOVES) == set(MessageStatus)


@pytest.mark.parametrize(
    ("wrong", "constraint"),
    [
        ({"status": "lost"}, "message_status_known"),
        ({"channel": "pigeon"}, "message_channel_known"),
        ({"priority": "now"}, "message_priority_known"),
        ({"message_type": "spam"}, "message_type_known"),
        ({"outbox_scope": "other"}, "message_outbox_scope_known"),
        ({"template_uuid": new_id()}, "message_template_whole"),
        ({"status": "sent", "sent_at": None}, "message_sent_has_time"),
        ({"idempotency_key": None}, "idempotency_key"),
    ],
)
def test_the_database_refuses_what_no_message_can_be(in_acme, wrong, constraint):
    with pytest.raises(IntegrityError, match=constraint):
        stored(**{"status": "pending", **wrong})


@pytest.mark.parametrize("before", MessageStatus.values)
def test_an_outcome_moves_a_message_as_the_table_says_or_leaves_it(in_acme, before):
    for after in MessageStatus.values:
        message = stored(before, error_message="before")
        lifecycle.record([Ending(message.pk, MessageStatus(after), timezone.now(), reason="after")])
        if after in MOVES[before]:
            assert (fresh(message).status, fresh(message).error_message) == (after, "after")
        else:
            assert (fresh(message).status, fresh(message).error_message) == (before, "before")
            assert fresh(message).attempt_count == 0


def test_outcomes_are_recorded_each_for_its_own_message(in_acme):
    now = timezone.now()
    sent, failed, untouched = (stored("sending") for _ in range(3))
    lifecycle.record(
        [
            Ending(sent.pk, MessageStatus.SENT, now, external_id="x-1"),
            Ending(failed.pk, MessageStatus.FAILED, now, False, "no", "permanent", dead_letter=True),
        ]
    )
    sent, failed, untouched = map(fresh, (sent, failed, untouched))
    assert (sent.status, sent.external_id, sent.sent_at, sent.attempt_count, sent.failed_at) == (
        "sent", "x-1", now, 1, None,
    )  # fmt: skip
    assert (failed.status, failed.error_message, failed.error_class, failed.dead_lettered_at, failed.attempt_count) == (
        "failed", "no", "permanent", now, 0,
    )  # fmt: skip
    assert (untouched.status, untouched.attempt_count) == ("sending", 0)


def test_a_message_delivered_straight_from_its_hand_over_has_a_time_of_sending(in_acme):
    first, now = timezone.now() - timedelta(minutes=1), timezone.now()
    straight, later = stored("sending", sent_at=None), stored("sent", sent_at=first)
    lifecycle.record([Ending(message.pk, MessageStatus.DELIVERED, now) for message in (straight, later)])
    assert (fresh(straight).sent_at, fresh(straight).delivered_at) == (now, now)
    assert (fresh(later).sent_at, fresh(later).delivered_at) == (first, now)


@pytest.mark.parametrize("status", MessageStatus.values)
def test_only_what_may_go_is_marked_as_sending(in_acme, status):
    message = stored(status)
    moved = lifecycle.mark_sending([message])
    assert (message.pk in moved) == (fresh(message).status == "sending" != status) == ("sending" in MOVES[status])


# Sent again


@pytest.fixture
def failed(acme_sends):
    acme_sends.script("ada@example.com", *[Rejected("no such mailbox", error_class="permanent")] * 9)
    message = accepted()
    turn()
    assert fresh(message).status == MessageStatus.FAILED
    return fresh(message)


def test_a_failed_message_can_be_sent_again_three_times_without_a_persons_word(failed):
    for cycle in range(1, 4):
        assert failed.can_retry
        failed.reset_for_retry()
        assert (failed.status, failed.retry_count, failed.attempt_count) == (MessageStatus.PENDING, cycle, 0)
        assert (failed.error_message, failed.error_class) == ("", "")
        assert not failed.can_retry
        turn()
        failed.refresh_from_db()
        assert failed.status == MessageStatus.FAILED
    assert not failed.can_retry
    with pytest.raises(NotRetryable, match="3 retries"):
        failed.reset_for_retry()
    assert list(failed.attempts.values_list("cycle", "number")) == [(0, 1), (1, 1), (2, 1), (3, 1)]


def test_a_person_may_go_beyond_and_it_is_written_down(failed):
    actor = get_user_model().objects.create_user("operator")
    OutboxMessage.objects.filter(pk=failed.pk).update(retry_count=3)
    lifecycle.requeue(failed, actor=actor, reason="mailbox made")
    assert (failed.status, failed.retry_count) == (MessageStatus.PENDING, 4)
    entry = LogEntry.objects.get(object_pk=str(failed.pk), additional_data__reason="mailbox made")
    assert entry.actor == actor
    assert entry.changes == {"status": ["failed", "pending"]}
    assert on_ledger(failed).exists()


def test_a_message_sent_again_has_time_to_be_sent(failed):
    OutboxMessage.objects.filter(pk=failed.pk).update(expires_at=timezone.now(), dead_lettered_at=timezone.now())
    failed.reset_for_retry()
    assert failed.expires_at > timezone.now() + timedelta(hours=1)
    assert failed.dead_lettered_at is None


@pytest.mark.parametrize("status", MessageStatus.values)
def test_which_messages_may_be_sent_again(acme_sends, status):
    message = stored(status)
    actor = get_user_model().objects.create_user("operator")
    if status in {"failed", "bounced", "suppressed", "uncertain"}:
        lifecycle.requeue(message, actor=actor)
        assert fresh(message).status == "pending"
    else:
        with pytest.raises(NotRetryable, match=status):
            lifecycle.requeue(message, actor=actor)
        assert fresh(message).status == status
        assert not on_ledger(message).exists()
        assert not LogEntry.objects.filter(object_pk=str(message.pk), action=LogEntry.Action.UPDATE).exists()


@pytest.mark.parametrize("status", MessageStatus.values)
def test_which_messages_may_be_cancelled(acme_sends, status):
    like = accepted()
    row = on_ledger(like).get()
    message = stored(status)
    ledger.add([message.pk], tenant_id=row.tenant_id, lane_id=row.lane_id)
    if status in {"scheduled", "pending"}:
        lifecycle.cancel(message, reason="mistake")
        assert fresh(message).status == "cancelled"
        assert not on_ledger(message).exists()
        assert LogEntry.objects.get(object_pk=str(message.pk), additional_data__reason="mistake")
    else:
        with pytest.raises(NotCancellable, match=status):
            lifecycle.cancel(message)
        assert fresh(message).status == status


def test_a_scheduled_message_can_be_cancelled(acme_sends):
    message = accepted(scheduled_at=timezone.now() + timedelta(days=1))
    lifecycle.cancel(message)
    assert message.status == MessageStatus.CANCELLED
    assert not on_ledger(message).exists()


def test_a_muted_message_can_be_sent_after_all(acme_sends):
    factories.Template(muted=True)
    message = factories.send(to="ada@example.com", template_key="booking.confirmed", context={"name": "Ada"})
    lifecycle.requeue(message, actor=get_user_model().objects.create_user("operator"))
    turn()
    assert fresh(message).status == MessageStatus.SENT
