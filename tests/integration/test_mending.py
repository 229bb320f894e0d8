"""A sender that cannot send until somebody mends it: its messages are put off, a batch at a time, and expire."""

from datetime import timedelta

import pytest
from django.utils import timezone

from notifications.dispatch.models import Lane
from notifications.models import Outbox, OutboxMessage
from notifications.models.fields import new_id
from tests.factories import accepted, fresh, make_due, on_ledger, turn


@pytest.fixture
def switched_off(acme_sends, settings):
    """Five messages of a sender that is switched off, where two are a batch."""
    settings.NOTIFICATION_SETTINGS = {**settings.NOTIFICATION_SETTINGS, "PROCESSING_BATCH_SIZE": 2}
    messages = [accepted(f"ada{number}@example.com") for number in range(5)]
    Outbox.objects.update(is_active=False)
    return messages


def statuses(messages) -> list[str]:
    return [fresh(message).status for message in messages]


def wait_is_over() -> None:
    Lane.objects.update(not_before=None)


def test_a_turn_puts_off_what_it_has_time_for_and_the_rest_waits_in_its_lane(switched_off):
    assert turn(seconds=0).later == 2
    assert statuses(switched_off) == ["scheduled"] * 2 + ["pending"] * 3
    assert turn().total == 0
    assert Lane.objects.exclude(not_before=None).get().not_before > timezone.now()


def test_each_turn_after_the_wait_puts_off_others(switched_off):
    numbers = []
    for _ in range(4):
        numbers.append(turn(seconds=0).later)
        wait_is_over()
    assert numbers == [2, 2, 1, 0]
    assert statuses(switched_off) == ["scheduled"] * 5


def test_a_turn_with_time_puts_all_of_them_off_and_mended_they_all_go(acme_sends, switched_off):
    assert turn().later == 5
    Outbox.objects.update(is_active=True)
    wait_is_over()
    make_due()
    assert turn().sent == 5
    assert {fresh(message).attempt_count for message in switched_off} == {1}


def test_while_nobody_mends_it_what_has_expired_fails_and_is_not_put_off(switched_off):
    late, others = switched_off[0], switched_off[1:]
    OutboxMessage.objects.filter(pk=late.pk).update(expires_at=timezone.now() - timedelta(seconds=1))
    tally = turn()
    assert (tally.failed, tally.later) == (1, 4)
    stored = fresh(late)
    assert (stored.status, stored.error_message, stored.attempt_count) == ("failed", "expired", 0)
    assert statuses(others) == ["scheduled"] * 4


def test_what_workers_died_with_waits_with_its_deaths(acme_sends):
    message = accepted()
    on_ledger(message).update(token=new_id(), deaths=2, lease_until=timezone.now() - timedelta(seconds=1))
    Outbox.objects.update(is_active=False)
    turn()
    row = on_ledger(message).get()
    assert (row.deaths, row.token is not None, fresh(message).status) == (2, True, "pending")
    assert Lane.objects.get(pk=row.lane_id).not_before > timezone.now()
