"""What comes of each answer of a provider, and when it is asked again."""

from datetime import timedelta
from threading import Barrier

import pytest
from django.utils import timezone

from notifications.channels import Accepted, Rejected, Unavailable, Uncertain
from notifications.models import Attempt, AttemptOutcome, MessageStatus, OutboxMessage
from tests import factories
from tests.factories import accepted, fresh, make_due, on_ledger, turn

BACKOFF = [60, 300, 1800, 7200]


@pytest.fixture(autouse=True)
def backoff(settings):
    settings.NOTIFY_RETRY_BACKOFF_SECONDS = BACKOFF


def broken(_):
    raise ZeroDivisionError("secret detail")


NO = Rejected("550 no", error_class="invalid_recipient")
LATER = Unavailable("451 later", error_class="throttled")
OUTCOMES = {
    # how the hand-over ends, the message's status, the attempt's outcome, its error and class, whether it goes again
    "accepted": (Accepted("x-1", "250 fine"), "sent", "accepted", "", "", False),
    "rejected": (NO, "failed", "rejected", "550 no", "invalid_recipient", False),
    "unavailable": (LATER, "scheduled", "unavailable", "451 later", "throttled", True),
    "uncertain": (Uncertain("no answer"), "uncertain", "uncertain", "no answer", "transient", True),
    "a fault of ours": (broken, "uncertain", "uncertain", "hand-over broke: ZeroDivisionError", "transient", True),
}


@pytest.mark.parametrize(
    ("answer", "status", "outcome", "error", "error_class", "again"), OUTCOMES.values(), ids=OUTCOMES
)
def test_each_answer_is_an_attempt_and_a_status(acme_sends, answer, status, outcome, error, error_class, again):
    acme_sends.script("ada@example.com", answer)
    message = accepted()
    tally = turn(worker="worker-7")
    stored = fresh(message)
    assert (stored.status, stored.attempt_count) == (status, 1)
    assert (stored.error_message, stored.error_class) == (error, error_class)
    (attempt,) = stored.attempts.all()
    assert (attempt.cycle, attempt.number, attempt.provider) == (0, 1, "fake")
    assert (attempt.outcome, attempt.error, attempt.error_class) == (outcome, error, error_class)
    assert attempt.worker == "worker-7"
    assert attempt.started_at <= attempt.finished_at
    assert attempt.outbox_uuid == stored.outbox_uuid
    assert on_ledger(message).exists() == again
    assert tally.total == 1
    assert stored.error_log == (f"{attempt.finished_at:%Y-%m-%d %H:%M:%S} {error}" if error else "")


def test_an_accepted_message_keeps_what_the_provider_said(acme_sends):
    acme_sends.script("ada@example.com", Accepted("x-1", "250 fine"))
    message = accepted()
    turn()
    stored = fresh(message)
    assert (stored.external_id, stored.attempts.get().response) == ("x-1", "250 fine")
    assert stored.sent_at


def test_the_waits_between_attempts_are_those_of_the_list_and_its_last_one_repeats(acme_sends):
    acme_sends.script("ada@example.com", *[Unavailable("later")] * 6)
    message = accepted()
    OutboxMessage.objects.update(max_attempts=7)
    for number, planned in enumerate([*BACKOFF, 7200, 7200], 1):
        turn()
        attempt = message.attempts.get(number=number)
        waits = (on_ledger(message).get().due_at - attempt.finished_at).total_seconds()
        assert planned <= waits <= planned * 1.1
        assert turn().total == 0
        make_due(message)
    assert turn().sent == 1
    assert (fresh(message).attempt_count, fresh(message).deferral_reason) == (7, "")


def test_failures_together_do_not_return_together(acme_sends):
    messages = [accepted(to=f"ada{number}@example.com") for number in range(20)]
    for message in messages:
        acme_sends.script(message.to_address, Unavailable("later"))
    turn()
    finished = {attempt.message_id: attempt.finished_at for m in messages for attempt in m.attempts.all()}
    waits = {row.due_at - finished[row.item] for row in on_ledger(*messages)}
    assert len(waits) > 10
    assert max(waits) - min(waits) > timedelta(seconds=1)


def test_a_provider_that_says_when_is_not_asked_sooner(acme_sends):
    acme_sends.script("ada@example.com", Unavailable("429", retry_after=timedelta(hours=1)))
    acme_sends.script("grace@example.com", Unavailable("429", retry_after=timedelta(seconds=1)))
    far, near = accepted(), accepted("grace@example.com")
    turn()
    now = timezone.now()
    assert on_ledger(far).get().due_at > now + timedelta(minutes=59)
    assert now + timedelta(seconds=50) < on_ledger(near).get().due_at < now + timedelta(minutes=5)


def test_when_all_attempts_are_used_up_the_message_is_a_dead_letter(acme_sends, settings):
    settings.NOTIFY_MAX_ATTEMPTS = 3
    acme_sends.script("ada@example.com", *[Unavailable("still down")] * 9)
    message = accepted()
    for _ in range(5):
        turn()
        make_due(message)
    stored = fresh(message)
    assert (stored.status, stored.attempt_count, stored.error_message) == (MessageStatus.FAILED, 3, "still down")
    assert stored.dead_lettered_at
    assert stored.failed_at
    assert len(acme_sends.received) == 3
    assert not on_ledger(message).exists()
    assert stored.can_retry


def test_no_attempt_is_made_after_a_message_has_expired(acme_sends):
    message = accepted()
    OutboxMessage.objects.update(expires_at=timezone.now())
    turn()
    stored = fresh(message)
    assert (stored.status, stored.error_message, stored.attempt_count) == (MessageStatus.FAILED, "expired", 0)
    assert not acme_sends.received
    assert not on_ledger(message).exists()


def test_an_attempt_that_would_come_too_late_is_not_planned(acme_sends):
    acme_sends.script("ada@example.com", Unavailable("later"))
    message = accepted()
    OutboxMessage.objects.update(expires_at=timezone.now() + timedelta(seconds=30))
    turn()
    stored = fresh(message)
    assert (stored.status, stored.error_message) == (MessageStatus.FAILED, "later")
    assert stored.dead_lettered_at
    assert not on_ledger(message).exists()


def test_the_message_id_and_the_reference_are_the_same_on_every_attempt(acme_sends):
    acme_sends.script("ada@example.com", Unavailable("later"), Uncertain("perhaps"))
    message = accepted()
    for _ in range(3):
        turn()
        make_due(message)
    assert [(sent.reference, sent.message_id) for sent in acme_sends.received] == [
        (str(message.pk), f"<{message.pk}@acme.test>")
    ] * 3
    assert list(message.attempts.values_list("number", "outcome")) == [
        (1, AttemptOutcome.UNAVAILABLE),
        (2, AttemptOutcome.UNCERTAIN),
        (3, AttemptOutcome.ACCEPTED),
    ]


@pytest.fixture
def doubtful_text(acme_sends):
    """A text message that the provider may have taken."""
    acme_sends.script("+12025550188", Uncertain("perhaps"))
    message = accepted("+12025550188", channel="sms")
    turn()
    assert fresh(message).status == MessageStatus.UNCERTAIN
    return message


def test_a_text_message_of_unknown_fate_is_not_sent_again_but_left_to_a_person_after_a_day(acme_sends, doubtful_text):
    assert timedelta(hours=23) < on_ledger(doubtful_text).get().due_at - timezone.now() <= timedelta(hours=24)
    make_due(doubtful_text)
    Attempt.objects.update(finished_at=timezone.now() - timedelta(hours=24))
    turn()
    stored = fresh(doubtful_text)
    assert (stored.status, stored.dead_lettered_at is not None) == ("uncertain", True)
    assert not on_ledger(doubtful_text).exists()
    assert len(acme_sends.received) == 1


@pytest.mark.parametrize(
    ("answer", "status", "times"),
    [
        (Accepted(provider_id="p-9", response="found"), "sent", 1),
        (None, "sent", 2),
        (Unavailable("cannot say"), "uncertain", 1),
    ],
    ids=["it has it", "it does not have it", "it cannot say"],
)
def test_a_provider_that_can_be_asked_is_asked_before_anything_costs_twice(
    acme_sends, doubtful_text, answer, status, times
):
    acme_sends.know(doubtful_text.to_address, answer)
    make_due(doubtful_text)
    turn()
    assert fresh(doubtful_text).status == status
    assert len(acme_sends.received) == times
    assert on_ledger(doubtful_text).exists() == (status == "uncertain")


@pytest.mark.parametrize("channel", ["push", "slack", "webhook"])
def test_where_a_second_copy_is_harmless_it_goes_again_under_its_reference(acme_sends, channel):
    factories.Outbox(account__kind=channel, address="sender", account__provider="fake")
    to = "https://example.com/hook" if channel == "webhook" else "token-1"
    message = accepted(to, channel=channel, subject="Hi", body_text="Hello")
    acme_sends.script(message.to_address, Uncertain("perhaps"))
    turn()
    make_due(message)
    turn()
    assert fresh(message).status == "sent"
    assert len({outgoing.reference for outgoing in acme_sends.received}) == 1


def test_one_recipients_failure_is_nobody_elses(acme_sends):
    acme_sends.script("bad@example.com", Rejected("no"))
    acme_sends.script("later@example.com", Unavailable("later"))
    acme_sends.script("odd@example.com", broken)
    made = {name: accepted(f"{name}@example.com") for name in ("bad", "ok1", "later", "ok2", "odd")}
    tally = turn()
    assert {name: fresh(message).status for name, message in made.items()} == {
        "bad": "failed", "ok1": "sent", "later": "scheduled", "ok2": "sent", "odd": "uncertain",
    }  # fmt: skip
    assert (tally.sent, tally.failed, tally.later, tally.dropped) == (2, 1, 2, 0)


def test_the_detail_of_our_own_fault_goes_to_the_log_and_not_to_the_tenant(acme_sends, caplog):
    acme_sends.script("ada@example.com", broken)
    message = accepted()
    turn()
    assert "secret detail" not in fresh(message).error_log
    assert "hand-over broke" in caplog.text


def test_as_many_hand_overs_run_at_once_as_the_account_has_connections(acme_sends):
    acme_sends.connections = 4
    together = Barrier(4)

    def wait_for_the_others(_):
        together.wait(10)
        return Accepted()

    for number in range(8):
        acme_sends.script(f"ada{number}@example.com", wait_for_the_others)
        accepted(f"ada{number}@example.com")
    assert turn().sent == 8
    assert acme_sends.most_at_once == 4
