"""A provider in trouble is left alone, tried again by itself, and stood in for where its owner wants that."""

from datetime import timedelta

import pytest
from django.contrib.auth import get_user_model
from django.db import transaction
from django.test import Client
from django.utils import timezone

from notifications import adapters, lifecycle
from notifications.channels import Accepted, Rejected, Unavailable, Uncertain
from notifications.channels.fake import Fake
from notifications.dispatch import circuits
from notifications.dispatch.models import AccountHold, Lane
from notifications.models import Account, Attempt, CommunicationSettings, MessageStatus, Outbox, OutboxMessage
from tenants.context import public_context, tenant_context
from tests import factories
from tests.factories import accepted, fresh, make_due, on_ledger, turn


def down(number: int = 1, **options):
    """Answers of a provider that cannot be reached."""
    return [Unavailable("no answer", account_wide=True, **options)] * number


def held_for() -> timedelta:
    return AccountHold.objects.get().not_before - timezone.now()


def wait_is_over() -> None:
    """Let the time pass until the account may be tried."""
    AccountHold.objects.update(not_before=timezone.now() - timedelta(seconds=1))
    Lane.objects.update(not_before=None)
    make_due()


def break_circuit(provider) -> list:
    """Messages that wait behind an open circuit."""
    failing = [accepted(f"down{number}@example.com") for number in range(circuits.FAILURES)]
    for message in failing:
        provider.script(message.to_address, *down())
    while not AccountHold.objects.exclude(not_before=None).exists():
        turn()
    return [accepted(f"waiting{number}@example.com") for number in range(3)]


# Throttled and refused accounts


def test_a_provider_that_says_until_when_gets_nothing_until_then(acme_sends):
    acme_sends.connections = 1
    throttled, waiting = accepted("a@example.com"), accepted("b@example.com")
    acme_sends.script("a@example.com", Unavailable("429", error_class="throttled", retry_after=timedelta(seconds=120)))
    turn()
    assert timedelta(seconds=118) < held_for() <= timedelta(seconds=120)
    assert turn().total == 0
    stored = fresh(waiting)
    assert (stored.status, stored.attempt_count) == ("pending", 0)
    assert fresh(throttled).status == "scheduled"
    wait_is_over()
    turn()
    assert fresh(waiting).status == "sent"
    assert not AccountHold.objects.exists()


def test_all_priorities_of_the_account_wait(acme_sends):
    accepted("a@example.com", priority="bulk")
    acme_sends.script("a@example.com", Unavailable("429", error_class="throttled"))
    turn("bulk")
    waiting = accepted("b@example.com")
    assert turn().total == 0
    assert fresh(waiting).status == "pending"


def test_other_accounts_are_not_held(acme_sends):
    acme_sends.script("a@example.com", Unavailable("429", error_class="throttled"))
    accepted("a@example.com")
    turn()
    factories.Outbox(address="other@acme.test", account=factories.Account(name="other"))
    free = accepted(from_address="other@acme.test")
    turn()
    assert fresh(free).status == "sent"


def test_an_account_whose_credentials_are_refused_waits_for_somebody_to_mend_them(acme_sends):
    acme_sends.connections = 1
    accepted("a@example.com")
    waiting = accepted("b@example.com")
    acme_sends.script("a@example.com", Unavailable("535 no", error_class="auth"))
    turn()
    assert held_for() > timedelta(minutes=14)
    assert AccountHold.objects.get().reason == "535 no"
    assert fresh(waiting).attempt_count == 0


def test_a_wait_is_never_shortened_and_never_longer_than_a_day(acme_sends):
    accepted("a@example.com")
    endless = Unavailable("429", error_class="throttled", retry_after=timedelta(days=4000))
    acme_sends.script("a@example.com", endless)
    turn()
    long = held_for()
    assert long <= timedelta(days=1)
    outbox = Outbox.objects.get(account__kind="email")
    who = circuits.Who(AccountHold.objects.get().owner, outbox.account_id, (outbox.pk,))
    with transaction.atomic():
        circuits.pause(who, wait=timedelta(seconds=5), reason="again")
    assert held_for() > long - timedelta(seconds=30)


# The circuit


def test_failures_in_a_row_open_the_circuit_and_nobody_behind_it_loses_an_attempt(acme_sends):
    waiting = break_circuit(acme_sends)
    assert timedelta(seconds=25) < held_for() <= circuits.PAUSE
    assert [(fresh(m).status, fresh(m).attempt_count) for m in waiting] == [("pending", 0)] * 3
    assert turn().total == 0


def test_one_message_tries_the_circuit_and_its_success_lets_all_go(acme_sends):
    waiting = break_circuit(acme_sends)
    wait_is_over()
    turn()
    assert {fresh(message).status for message in waiting} == {"sent"}
    assert not AccountHold.objects.exists()
    assert not Lane.objects.exclude(not_before=None).exists()


def test_a_failed_try_costs_one_attempt_and_doubles_the_wait(acme_sends):
    waiting = break_circuit(acme_sends)
    for message in waiting:
        acme_sends.script(message.to_address, *down())
    AccountHold.objects.update(not_before=timezone.now() - timedelta(seconds=1))
    Lane.objects.update(not_before=None)
    turn()
    assert sorted(fresh(message).attempt_count for message in waiting) == [0, 0, 1]
    assert circuits.PAUSE < held_for() <= 2 * circuits.PAUSE


def test_only_one_worker_tries(acme_sends):
    break_circuit(acme_sends)
    wait_is_over()
    outbox = Outbox.objects.get(account__kind="email")
    who = circuits.Who(AccountHold.objects.get().owner, outbox.account_id, (outbox.pk,))
    assert circuits.probe(who)
    assert not circuits.probe(who)
    received = len(acme_sends.received)
    assert turn().total == 0
    assert len(acme_sends.received) == received


def test_a_try_that_is_throttled_holds_the_account_for_as_long_as_it_says_and_no_longer(acme_sends):
    break_circuit(acme_sends)
    for message in OutboxMessage.objects.all():
        acme_sends.script(
            message.to_address,
            Unavailable("450 slow down", error_class="throttled", retry_after=timedelta(seconds=20)),
        )
    wait_is_over()
    turn()
    assert timedelta(seconds=18) < held_for() <= timedelta(seconds=20)


def test_an_answer_in_between_keeps_the_circuit_closed(acme_sends):
    acme_sends.connections = 1
    for number in range(3 * circuits.FAILURES):
        message = accepted(f"a{number}@example.com")
        acme_sends.script(message.to_address, *(down() if number % 3 else [Accepted()]))
    turn()
    assert not AccountHold.objects.exclude(not_before=None).exists()


@pytest.mark.parametrize("refusal", [Rejected("550 no"), Unavailable("450 mailbox busy")])
def test_refusals_of_single_messages_hold_nobody(acme_sends, refusal):
    for number in range(2 * circuits.FAILURES):
        acme_sends.script(accepted(f"a{number}@example.com").to_address, refusal)
    turn()
    assert not AccountHold.objects.exists()


def test_a_provider_that_leaves_messages_in_doubt_opens_its_circuit_too(acme_sends):
    acme_sends.connections = 1
    for number in range(circuits.FAILURES):
        acme_sends.script(accepted(f"a{number}@example.com").to_address, Uncertain("no answer"))
    turn()
    assert held_for() > timedelta(0)
    waiting = accepted("b@example.com")
    turn()
    assert fresh(waiting).status == "pending"


def test_a_tenants_circuit_is_its_own(acme, globex, provider):
    for tenant in (acme, globex):
        with tenant_context(tenant):
            factories.Outbox()
    with tenant_context(acme):
        break_circuit(provider)
    with tenant_context(globex):
        free = accepted()
        turn()
        assert fresh(free).status == "sent"


def test_the_platforms_circuit_holds_all_that_share_the_sender(acme, globex, provider):
    with public_context():
        Account.objects.filter(kind="email").update(provider="fake", updated_at=timezone.now())
    with tenant_context(acme):
        break_circuit(provider)
    with tenant_context(globex):
        waiting = accepted()
        assert turn().total == 0
        assert fresh(waiting).status == "pending"


# Standing in


@pytest.fixture
def two_senders(acme_sends, monkeypatch):
    """A second e-mail account, by another provider, and leave to use it."""
    second = Fake()
    monkeypatch.setattr(adapters, "adapter_for", lambda account, _: second if account.name == "second" else acme_sends)
    account = factories.Account(name="second")
    factories.Outbox(address="second@acme.test", account=account, priority=200)
    CommunicationSettings.objects.update(failover=True)
    return acme_sends, second


def test_what_may_have_arrived_stays_with_its_sender_whatever_becomes_of_the_next_attempt(two_senders):
    first, second = two_senders
    message = accepted()
    first.script(message.to_address, Uncertain("perhaps"), Unavailable("450 later"), *down())
    for _ in range(3):
        turn()
        make_due(message)
    stored = fresh(message)
    assert (stored.status, stored.attempt_count) == ("uncertain", 3)
    assert not any(outgoing.to == message.to_address for outgoing in second.received)


@pytest.mark.parametrize("last", [Unavailable("450 later"), Rejected("550 no")])
def test_what_may_have_arrived_is_not_failed_but_left_to_a_person(acme_sends, settings, last):
    settings.NOTIFY_MAX_ATTEMPTS = 2
    message = accepted()
    acme_sends.script(message.to_address, Uncertain("perhaps"), last)
    turn()
    make_due(message)
    turn()
    stored = fresh(message)
    assert (stored.status, stored.dead_lettered_at is None) == ("uncertain", False)
    assert "an earlier attempt may have arrived" in stored.error_message
    assert not on_ledger(message).exists()


def test_a_message_that_the_first_certainly_did_not_take_goes_by_the_next_at_once(two_senders):
    first, second = two_senders
    message = accepted()
    first.script(message.to_address, *down())
    turn()
    turn()
    stored = fresh(message)
    assert (stored.status, stored.from_address, stored.attempt_count) == ("sent", "second@acme.test", 2)
    assert [o.to for o in second.accepted] == [message.to_address]
    assert [a.outcome for a in Attempt.objects.filter(message=message).order_by("number")] == [
        "unavailable", "accepted"]  # fmt: skip


def test_a_message_of_unknown_fate_never_goes_by_another(two_senders):
    first, second = two_senders
    message = accepted()
    first.script(message.to_address, Uncertain("perhaps"))
    turn()
    turn()
    assert fresh(message).status == MessageStatus.UNCERTAIN
    make_due()
    AccountHold.objects.update(opened=1, not_before=timezone.now() + timedelta(minutes=1))
    turn()
    assert not second.received
    assert on_ledger(message).get().due_at > timezone.now() + timedelta(seconds=30)


def test_what_waits_behind_an_open_circuit_goes_by_the_next(two_senders):
    first, second = two_senders
    waiting = break_circuit(first)
    for _ in range(3):
        turn()
    assert {fresh(message).status for message in waiting} == {"sent"}
    assert {fresh(message).from_address for message in waiting} == {"second@acme.test"}
    received = [outgoing.to for outgoing in [*first.accepted, *second.accepted]]
    assert len(received) == len(set(received))


def hold_second(second) -> None:
    """Its provider asks for a pause, by an answer to another message."""
    second.script("loud@example.com", Unavailable("429", error_class="throttled", retry_after=timedelta(hours=1)))
    accepted("loud@example.com", from_address="second@acme.test")
    turn()
    assert AccountHold.objects.get(reason="429").not_before > timezone.now()


def test_what_waits_behind_a_held_sender_does_not_go_back_to_one_that_did_not_take_it(two_senders):
    first, second = two_senders
    tried, untried = accepted("tried@example.com"), accepted("untried@example.com", from_address="second@acme.test")
    type(untried).objects.filter(pk=untried.pk).update(from_fixed=False)
    on_ledger(untried).update(due_at=timezone.now() + timedelta(hours=1))
    for provider in two_senders:
        provider.script(tried.to_address, *down())
    turn()
    turn()
    hold_second(second)
    make_due(tried, untried)
    turn()
    turn()
    assert [outgoing.to for outgoing in first.received] == ["tried@example.com", "untried@example.com"]
    assert (fresh(tried).status, fresh(tried).attempt_count) == ("scheduled", 2)
    assert on_ledger(tried).get().due_at == AccountHold.objects.get(reason="429").not_before
    assert (fresh(untried).status, fresh(untried).from_address) == ("sent", "hello@acme.test")


def test_in_a_new_cycle_each_sender_may_be_tried_again(two_senders):
    first, second = two_senders
    message = accepted("tried@example.com")
    for provider in two_senders:
        provider.script(message.to_address, *down())
    turn()
    turn()
    assert fresh(message).from_address == "second@acme.test"
    hold_second(second)
    on_ledger(message).delete()
    type(message).objects.filter(pk=message.pk).update(status="failed")
    lifecycle.requeue(fresh(message))
    turn()
    turn()
    assert (fresh(message).status, fresh(message).from_address) == ("sent", "hello@acme.test")
    assert len(first.received) == 2


def test_what_waits_behind_a_held_sender_is_put_off_a_batch_at_a_time(two_senders, settings):
    settings.NOTIFICATION_SETTINGS = {**settings.NOTIFICATION_SETTINGS, "PROCESSING_BATCH_SIZE": 2}
    _, second = two_senders
    hold_second(second)
    until = AccountHold.objects.get(reason="429").not_before
    fixed = [accepted(f"ada{number}@example.com", from_address="second@acme.test") for number in range(5)]
    type(fixed[0]).objects.filter(pk__in=[message.pk for message in fixed]).update(from_fixed=True)
    numbers = []
    for _ in range(4):
        turn(seconds=0)
        numbers.append(on_ledger(*fixed).filter(due_at=until).count())
    assert numbers == [2, 4, 5, 5]
    assert len(second.received) == 1


def test_a_sender_that_the_caller_named_is_kept(two_senders):
    first, second = two_senders
    message = accepted(from_address="hello@acme.test")
    type(message).objects.filter(pk=message.pk).update(from_fixed=True)
    first.script(message.to_address, *down())
    turn()
    turn()
    assert fresh(message).status == "scheduled"
    assert not second.received


def test_the_same_address_on_another_account_may_stand_in_for_a_named_sender(two_senders):
    first, second = two_senders
    Outbox.objects.filter(account__name="second").update(address="hello@acme.test", priority=200)
    message = accepted()
    type(message).objects.filter(pk=message.pk).update(from_fixed=True)
    first.script(message.to_address, *down())
    turn()
    turn()
    assert fresh(message).status == "sent"
    assert second.accepted


def test_when_all_have_failed_it_waits_and_begins_anew(two_senders):
    first, second = two_senders
    message = accepted()
    first.script(message.to_address, *down())
    second.script(message.to_address, *down())
    turn()
    turn()
    turn()
    stored = fresh(message)
    assert (stored.status, stored.attempt_count) == ("scheduled", 2)
    assert on_ledger(message).get().due_at > timezone.now() + timedelta(seconds=30)


def test_without_leave_nobody_stands_in(two_senders):
    first, second = two_senders
    CommunicationSettings.objects.update(failover=False)
    message = accepted()
    first.script(message.to_address, *down())
    turn()
    turn()
    assert not second.received


# People


def test_saving_a_paused_account_lets_its_messages_go(acme_sends):
    waiting = break_circuit(acme_sends)
    account = waiting[0].account
    client = Client(headers={"host": "acme.carillon.test"})
    client.force_login(get_user_model().objects.get(username="owner@acme.example"))
    page = f"/admin/notifications/account/{account.pk}/change/"
    with public_context():
        assert "no answer" in client.get(page).text
        assert client.post(page, {"service": "email/fake", "name": "Mended", "is_active": "on"}).status_code == 302
        assert "no answer" not in client.get(page).text
    turn()
    assert {fresh(message).status for message in waiting} == {"sent"}


def test_an_address_that_leaves_its_own_messages_in_doubt_holds_nobody_else(acme_sends):
    for number in range(2 * circuits.FAILURES):
        to = accepted(f"a{number}@example.com").to_address
        acme_sends.script(to, Uncertain("no answer", account_wide=False))
    turn()
    assert not AccountHold.objects.exists()
