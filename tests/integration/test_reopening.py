"""What the clock takes up again: failed messages whose failure may have passed, and whatever has become due."""

from datetime import timedelta
from threading import Event
from typing import Any

import pytest
from auditlog.models import LogEntry
from django.contrib.auth import get_user_model
from django.db import connection, transaction
from django.utils import timezone

from notifications import lifecycle, tasks
from notifications.channels import Accepted, Rejected, Unavailable
from notifications.dispatch import ledger
from notifications.dispatch.models import Lane
from notifications.exceptions import CommunicationError, NotRetryable
from notifications.models import MessageStatus, OutboxMessage
from notifications.queues import queue_named
from notifications.services import (
    process_scheduled_notifications,
    retry_failed_notifications,
    send_notification,
    send_notification_task,
)
from tenants.context import tenant_context
from tenants.jobs import enqueue_on_commit
from tests import factories
from tests.factories import accepted, end_leases, fresh, make_due, on_ledger, race, turn

PAUSES = lifecycle.REOPEN_PAUSES
MORE_THAN_A_PAUSE = PAUSES[-1] + timedelta(hours=1)


@pytest.fixture(autouse=True)
def one_attempt(settings):
    settings.NOTIFY_MAX_ATTEMPTS = 1


def failed(to: str = "ada@example.com", *, ago: Any = MORE_THAN_A_PAUSE, **changes: Any) -> OutboxMessage:
    """A message of the current tenant whose provider was not there for it, some time ago."""
    message = accepted(to, **({"channel": "sms"} if to.startswith("+") else {}))
    on_ledger(message).delete()
    OutboxMessage.objects.filter(pk=message.pk).update(
        **{
            "status": "failed",
            "error_class": "transient",
            "error_message": "no answer",
            "failed_at": timezone.now() - ago,
            "dead_lettered_at": timezone.now() - ago,
            "attempt_count": 1,
            **changes,
        }
    )
    return fresh(message)


def claim(message: OutboxMessage) -> ledger.Claim:
    """A worker has the message."""
    row = on_ledger(message).get()
    return ledger.claim(row.lane_id, tenant_id=row.tenant_id, limit=1, worker="w", only=message.pk)


def is_waiting(message: OutboxMessage) -> bool:
    """Whether it was taken up again; else nothing of it was changed."""
    now = fresh(message)
    if now.status == "pending":
        assert on_ledger(message).exists()
        return True
    unchanged = ("status", "retry_count", "error_message", "dead_lettered_at", "expires_at")
    assert [getattr(now, name) for name in unchanged] == [getattr(message, name) for name in unchanged]
    assert not on_ledger(message).exists()
    return False


# Which failed messages


def test_a_message_whose_provider_was_away_is_delivered_in_a_new_cycle_and_its_attempts_are_kept(acme_sends):
    acme_sends.script("ada@example.com", Unavailable("no answer"))
    message = accepted()
    turn()
    assert fresh(message).status == "failed"
    OutboxMessage.objects.update(failed_at=timezone.now() - MORE_THAN_A_PAUSE)
    assert retry_failed_notifications() == 1
    reopened = fresh(message)
    assert (reopened.status, reopened.retry_count, reopened.attempt_count) == ("pending", 1, 0)
    assert (reopened.error_class, reopened.error_message, reopened.dead_lettered_at) == ("", "", None)
    assert turn().sent == 1
    assert list(message.attempts.values_list("cycle", "number", "outcome")) == [
        (0, 1, "unavailable"), (1, 1, "accepted"),
    ]  # fmt: skip
    assert not LogEntry.objects.filter(object_pk=str(message.pk), action=LogEntry.Action.UPDATE).exists()


@pytest.mark.parametrize(
    ("error_class", "again"),
    [("transient", True), ("throttled", True), ("permanent", False), ("auth", False), ("invalid_recipient", False),
     ("", False)],
)  # fmt: skip
def test_only_what_passes_by_itself_is_tried_again(acme_sends, error_class, again):
    message = failed(error_class=error_class)
    retry_failed_notifications()
    assert is_waiting(message) == again


@pytest.mark.parametrize("status", [status for status in MessageStatus.values if status != "failed"])
def test_only_failed_messages_are_taken_up_again(acme_sends, status):
    message = failed()
    OutboxMessage.objects.filter(pk=message.pk).delete()
    message.status, message.sent_at = status, timezone.now()
    OutboxMessage.objects.bulk_create([message])
    assert retry_failed_notifications() == 0
    assert fresh(message).status == status


@pytest.mark.parametrize(("cycle", "pause"), list(enumerate([*PAUSES, PAUSES[-1]])))
def test_each_new_cycle_begins_a_longer_pause_after_the_failure(acme_sends, cycle, pause):
    options = {"retry_count": cycle, "max_retries": 9}
    too_soon = failed("bob@example.com", ago=pause - timedelta(seconds=5), **options)
    message = failed(ago=pause + timedelta(seconds=1), **options)
    assert retry_failed_notifications() == 1
    assert (is_waiting(message), is_waiting(too_soon)) == (True, False)


def test_with_the_pauses_of_its_cycles_a_message_is_tried_for_a_day(settings):
    """RFC 5321, 4.5.4.1, has senders go on for days; greylisting and a night's outage pass in one."""
    waits = settings.NOTIFY_RETRY_BACKOFF_SECONDS
    cycle = timedelta(seconds=sum(waits[:4]))
    cycles = 1 + settings.NOTIFICATION_SETTINGS["MAX_RETRY_ATTEMPTS"]
    assert sum(PAUSES, cycles * cycle) >= timedelta(days=1)
    assert max(PAUSES) < tasks.MAX_AGE
    assert sum(PAUSES, cycles * cycle) < timedelta(seconds=settings.NOTIFY_EXPIRY_SECONDS)


def test_who_asks_for_it_once_waits_for_no_pause(acme_sends):
    failed(ago=timedelta(seconds=1))
    assert lifecycle.reopen_failed(max_age=tasks.MAX_AGE) == 0
    assert lifecycle.reopen_failed(max_age=tasks.MAX_AGE, paced=False) == 1


def test_a_message_goes_again_by_itself_only_so_often(acme_sends):
    last, used_up = failed(retry_count=2, max_retries=3), failed(retry_count=3, max_retries=3)
    assert retry_failed_notifications() == 1
    assert (is_waiting(last), is_waiting(used_up)) == (True, False)


def test_what_failed_too_long_ago_is_left_to_a_person(acme_sends):
    old = failed(ago=tasks.MAX_AGE + timedelta(seconds=5))
    young = failed(ago=tasks.MAX_AGE - timedelta(seconds=60))
    assert retry_failed_notifications() == 1
    assert (is_waiting(old), is_waiting(young)) == (False, True)
    assert retry_failed_notifications(max_age=timedelta(days=1)) == 1


def test_nobodys_time_is_extended(acme_sends):
    soon = timezone.now() + timedelta(minutes=5)
    code, expired = failed(expires_at=soon), failed(expires_at=timezone.now() - timedelta(seconds=1))
    assert retry_failed_notifications() == 1
    assert is_waiting(code)
    assert fresh(code).expires_at == soon
    assert not is_waiting(expired)


def test_one_kind_alone_and_so_many_at_most_those_that_failed_first(acme_sends):
    texts = [failed("+12025550188", ago=timedelta(hours=hours)) for hours in (10, 11, 9)]
    mail = failed(ago=timedelta(hours=9))
    assert retry_failed_notifications(kind="sms", limit=2) == 2
    assert [is_waiting(message) for message in (*texts, mail)] == [True, True, False, False]
    assert retry_failed_notifications() == 2
    with pytest.raises(CommunicationError, match="kind='fax'"):
        retry_failed_notifications(kind="fax")


def test_any_number_goes_in_batches(acme_sends, monkeypatch):
    monkeypatch.setattr("notifications.processing.REOPENED_AT_ONCE", 2)
    for number in range(5):
        failed(f"ada{number}@example.com")
    assert retry_failed_notifications(limit=3) == 3
    assert retry_failed_notifications() == 2
    assert turn().sent == 5


def test_each_goes_back_to_its_own_lane(acme_sends):
    messages = [failed(), failed("+12025550188"), failed("urgent@example.com", priority="urgent")]
    before = {message.pk: (message.priority, message.outbox_uuid) for message in messages}
    retry_failed_notifications()
    rows = on_ledger(*messages).select_related("lane")
    assert {row.item: (row.lane.queue, row.lane.outbox_uuid) for row in rows} == before


def test_what_is_taken_only_by_commands_stays_so(acme_sends, settings, valkey, django_capture_on_commit_callbacks):
    """The others' are rung for at that moment; its are not."""
    settings.NOTIFY_SEND_IMMEDIATELY = False
    message = failed()
    with django_capture_on_commit_callbacks(execute=True):
        retry_failed_notifications()
    assert on_ledger(message).get().manual
    assert not len(queue_named("default"))
    settings.NOTIFY_SEND_IMMEDIATELY = True
    failed("bob@example.com")
    with django_capture_on_commit_callbacks(execute=True):
        retry_failed_notifications()
    assert len(queue_named("default")) == 1


def test_what_a_worker_has_still_to_finish_is_left_to_it(acme_sends, settings):
    """Its lease was lost and settled as uncertain, and then it came back and said that the message failed."""
    settings.NOTIFY_MAX_ATTEMPTS = 2
    message = accepted()
    lost = claim(message)
    assert ledger.mark_handed_over(lost, [message.pk])
    lifecycle.mark_sending([fresh(message)])
    end_leases()
    turn()
    OutboxMessage.objects.filter(pk=message.pk).update(
        status="failed", error_class="transient", failed_at=timezone.now() - MORE_THAN_A_PAUSE
    )
    assert retry_failed_notifications() == 0
    make_due(message)
    turn()
    assert not on_ledger(message).exists()
    assert retry_failed_notifications() == 1


@pytest.mark.django_db(transaction=True)
def test_the_workers_are_rung_for(acme, provider, valkey):
    with tenant_context(acme):
        factories.Outbox()
        failed(priority="high")
    assert retry_failed_notifications() == 1
    (job,) = queue_named("high").jobs
    assert list(job.args) == [acme.schema_name, "high"]


@pytest.mark.django_db(transaction=True)
def test_of_calls_that_race_each_message_is_taken_up_once_and_nobody_waits(acme, provider):
    with tenant_context(acme):
        factories.Outbox()
        messages = [failed(f"ada{number}@example.com") for number in range(4)]
    begun, over = Event(), Event()

    def call(position: int) -> int:
        with tenant_context(acme):
            if position:
                assert begun.wait(30)
                number = lifecycle.reopen_failed(max_age=tasks.MAX_AGE)
                over.set()
                return number
            with transaction.atomic():
                number = lifecycle.reopen_failed(max_age=tasks.MAX_AGE, limit=3)
                begun.set()
                assert over.wait(30), "the other one waited"
            return number

    assert race(2, call) == [3, 1]
    with tenant_context(acme):
        assert {fresh(message).retry_count for message in messages} == {1}
        assert on_ledger(*messages).count() == 4


def test_all_tenants_that_are_served_have_their_messages_taken_up(acme, globex, provider):
    for tenant in (acme, globex):
        with tenant_context(tenant):
            factories.Outbox(address=f"hello@{tenant.name}.test")
            failed()
    globex.status = "suspended"
    globex.save()
    assert retry_failed_notifications() == 1
    with tenant_context(globex):
        assert OutboxMessage.objects.get().status == "failed"


@pytest.mark.django_db(transaction=True)
def test_what_breaks_in_one_tenant_is_logged_and_keeps_nothing_from_the_others(acme, globex, provider, caplog):
    with tenant_context(globex):
        factories.Outbox()
        failed()
    with connection.cursor() as cursor:
        cursor.execute(f'DROP SCHEMA "{acme.schema_name}" CASCADE')
    assert retry_failed_notifications() == 1
    assert f"the schema {acme.schema_name} of 'acme' does not exist" in caplog.text


# What has become due


@pytest.mark.django_db(transaction=True)
def test_what_has_become_due_is_rung_for(acme, globex, provider, valkey):
    for tenant in (acme, globex):
        with tenant_context(tenant):
            factories.Outbox(address=f"hello@{tenant.name}.test")
            make_due(accepted(scheduled_at=timezone.now() + timedelta(days=1)))
            accepted("later@example.com", scheduled_at=timezone.now() + timedelta(days=1), priority="bulk")
    assert process_scheduled_notifications() == 2
    assert sorted(job.args[0] for job in queue_named("default").jobs) == sorted([acme.schema_name, globex.schema_name])


@pytest.mark.parametrize("mode", ["db", "inline"])
def test_where_nobody_answers_bells_what_has_become_due_is_delivered_here(acme_sends, settings, mode):
    settings.NOTIFY_DISPATCH_MODE = mode
    due, later = (accepted(scheduled_at=timezone.now() + timedelta(days=1)) for _ in range(2))
    make_due(due)
    assert process_scheduled_notifications() == 1
    assert (fresh(due).status, fresh(later).status) == ("sent", "scheduled")


# One message by its id


def test_one_message_is_sent_by_its_id_and_no_other(acme_sends):
    other, message = accepted("grace@example.com"), accepted()
    assert send_notification(message.pk).status == "sent"
    assert [outgoing.to for outgoing in acme_sends.received] == ["ada@example.com"]
    assert (fresh(message).attempts.count(), fresh(other).status) == (1, "pending")
    assert send_notification(str(message.pk)).status == "sent"
    assert len(acme_sends.received) == 1


def test_a_failure_is_recorded_and_not_raised(acme_sends, settings):
    settings.NOTIFY_MAX_ATTEMPTS = 2
    acme_sends.script("ada@example.com", Unavailable("451 busy"), Unavailable("452 full"))
    acme_sends.script("bob@example.com", Rejected("550 no such mailbox", error_class="invalid_recipient"))
    message, unknown = accepted(), accepted("bob@example.com")
    assert send_notification(unknown.pk).status == "failed"
    assert "550 no such mailbox" in fresh(unknown).error_log
    assert fresh(unknown).error_class == "invalid_recipient"
    assert send_notification(message.pk).status == "scheduled"
    assert send_notification(message.pk).status == "scheduled", "it waits for its next attempt"
    make_due(message)
    assert send_notification(message.pk).status == "failed"
    assert [line[-8:] for line in fresh(message).error_log.splitlines()] == ["451 busy", "452 full"]
    assert len(acme_sends.received) == 3


def test_what_is_not_due_or_held_or_a_workers_is_left_alone(acme_sends):
    later = accepted("later@example.com", scheduled_at=timezone.now() + timedelta(days=1))
    assert send_notification(later.pk).status == "scheduled"
    message = accepted()
    Lane.objects.update(not_before=timezone.now() + timedelta(hours=1))
    assert send_notification(message.pk).status == "pending"
    Lane.objects.update(not_before=None, paused_reason="restored")
    assert send_notification(message.pk).status == "pending"
    Lane.objects.update(paused_reason="")
    claim(message)
    assert send_notification(message.pk).status == "pending"
    assert not acme_sends.received
    end_leases()
    assert send_notification(message.pk).status == "sent"


def test_a_message_of_another_tenant_is_not_found(acme_sends, globex):
    message = accepted()
    with tenant_context(globex), pytest.raises(OutboxMessage.DoesNotExist):
        send_notification(message.pk)


@pytest.mark.django_db(transaction=True)
def test_it_runs_as_a_job_of_its_tenant(acme, provider, valkey):
    with tenant_context(acme), transaction.atomic():
        factories.Outbox()
        message = accepted()
        enqueue_on_commit(queue_named("maintenance"), send_notification_task, str(message.pk))
    (job,) = queue_named("maintenance").jobs
    assert job.func_name == f"{tasks.__name__}.send_notification_task"
    assert job.perform() == "sent"
    with tenant_context(acme):
        assert fresh(message).status == "sent"


def test_a_person_may_do_more_than_the_clock(acme_sends):
    """A message that the clock leaves alone, its retries used up, goes again by somebody's word."""
    message = failed(error_class="permanent", expires_at=timezone.now(), retry_count=3, max_retries=3)
    assert retry_failed_notifications() == 0
    with pytest.raises(NotRetryable):
        lifecycle.requeue(message)
    ada = get_user_model().objects.create_user("ada")
    lifecycle.requeue(message, actor=ada, reason="she asked")
    entry = LogEntry.objects.get(object_pk=str(message.pk), action=LogEntry.Action.UPDATE)
    assert (entry.actor_id, entry.additional_data) == (ada.pk, {"reason": "she asked"})
    acme_sends.script("ada@example.com", Accepted())
    assert turn().sent == 1


def test_one_message_is_sent_by_its_id_where_commands_take_all_others(acme_sends, settings):
    settings.NOTIFY_SEND_IMMEDIATELY = False
    other, message = accepted("grace@example.com"), accepted()
    assert send_notification(message.pk).status == "sent"
    assert fresh(other).status == "pending"
