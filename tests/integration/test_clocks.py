"""A worker whose clock is wrong: expiry, retries and what is written down go by the database's clock."""

from datetime import timedelta

import pytest
import time_machine
from django.utils import timezone

from notifications.channels import Unavailable
from notifications.dispatch.models import Lane
from notifications.models import Attempt, Outbox, OutboxMessage
from tests.factories import accepted, fresh, on_ledger, turn

WRONG = pytest.mark.parametrize("wrong_by", [timedelta(days=-9), timedelta(days=9)], ids=["slow", "fast"])


def turn_by_a_clock_that_is(wrong_by: timedelta):
    with time_machine.travel(timezone.now() + wrong_by):
        return turn()


def is_about(moment, wanted) -> bool:
    """To the minute: the clocks are days apart."""
    return abs(moment - wanted) < timedelta(minutes=1)


@WRONG
def test_a_message_that_has_time_left_is_sent_and_one_that_has_not_is_not(acme_sends, wrong_by):
    in_time, late = accepted("ada@example.com"), accepted("bob@example.com")
    OutboxMessage.objects.filter(pk=late.pk).update(expires_at=timezone.now() - timedelta(seconds=1))
    turn_by_a_clock_that_is(wrong_by)
    assert fresh(in_time).status == "sent"
    assert (fresh(late).status, fresh(late).error_message) == ("failed", "expired")


@WRONG
def test_the_same_holds_where_the_sender_cannot_send(acme_sends, wrong_by):
    in_time, late = accepted("ada@example.com"), accepted("bob@example.com")
    OutboxMessage.objects.filter(pk=late.pk).update(expires_at=timezone.now() - timedelta(seconds=1))
    Outbox.objects.update(is_active=False)
    turn_by_a_clock_that_is(wrong_by)
    assert fresh(in_time).status == "scheduled"
    assert is_about(on_ledger(in_time).get().due_at, timezone.now() + timedelta(minutes=1))
    assert (fresh(late).status, fresh(late).error_message) == ("failed", "expired")


@WRONG
def test_a_lane_that_waits_for_its_sender_waits_from_now(acme_sends, settings, wrong_by):
    settings.NOTIFICATION_SETTINGS = {**settings.NOTIFICATION_SETTINGS, "PROCESSING_BATCH_SIZE": 1}
    accepted()
    Outbox.objects.update(is_active=False)
    with time_machine.travel(timezone.now() + wrong_by):
        turn(seconds=0)
    assert is_about(Lane.objects.exclude(not_before=None).get().not_before, timezone.now() + timedelta(minutes=1))


@WRONG
def test_a_retry_is_planned_from_now(acme_sends, settings, wrong_by):
    settings.NOTIFY_RETRY_BACKOFF_SECONDS = [300]
    message = accepted()
    acme_sends.script("ada@example.com", Unavailable("later"))
    turn_by_a_clock_that_is(wrong_by)
    assert fresh(message).status == "scheduled"
    assert is_about(on_ledger(message).get().due_at, timezone.now() + timedelta(seconds=315))


@WRONG
def test_what_is_written_down_has_the_databases_time(acme_sends, wrong_by):
    message = accepted()
    turn_by_a_clock_that_is(wrong_by)
    attempt = Attempt.objects.get()
    for moment in (fresh(message).sent_at, attempt.started_at, attempt.finished_at):
        assert is_about(moment, timezone.now())
