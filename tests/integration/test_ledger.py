"""The ledger: a row is one worker's at a time, a dead worker's work goes on, what may have gone out is uncertain."""

from datetime import timedelta
from threading import Event

import pytest
from django.contrib.auth import get_user_model
from django.db import connection, transaction
from django.utils import timezone

from notifications import lifecycle, preparing
from notifications.channels import Accepted
from notifications.dispatch import ledger
from notifications.dispatch.sweep import waiting
from notifications.exceptions import NotCancellable
from notifications.models import Attempt, AttemptOutcome, MessageStatus, OutboxMessage, Suppression
from notifications.models import Outbox as OutboxModel
from notifications.models.fields import new_id
from tenants.context import tenant_context
from tests import factories
from tests.factories import accepted, end_leases, fresh, make_due, on_ledger, race, turn


def claim(message, limit=100, **options):
    row = on_ledger(message).get()
    return ledger.claim(row.lane_id, tenant_id=row.tenant_id, limit=limit, worker="w", **options)


def die_after_claiming(*messages):
    """A worker claims the messages' lane and is heard of no more."""
    dead = claim(messages[0])
    end_leases()
    return dead


def die_while_handing_over(message):
    dead = claim(message)
    with transaction.atomic():
        assert ledger.mark_handed_over(dead, [message.pk]) == {message.pk}
        lifecycle.mark_sending([fresh(message)])
    end_leases()
    return dead


# Claiming


@pytest.mark.django_db(transaction=True)
def test_eight_workers_claiming_500_rows_get_each_row_once(acme, acme_sends):
    messages = [accepted() for _ in range(2)]
    lane_id, tenant_id = on_ledger(messages[0]).values_list("lane_id", "tenant_id").get()
    ledger.add([new_id() for _ in range(498)], tenant_id=tenant_id, lane_id=lane_id)

    def claim_all(_):
        mine = []
        while rows := ledger.claim(lane_id, tenant_id=tenant_id, limit=7, worker="w").rows:
            mine += [row.item for row in rows]
        return mine

    claims = race(8, claim_all)
    claimed = [item for mine in claims for item in mine]
    assert len(claimed) == len(set(claimed)) == 500
    assert sum(1 for mine in claims if mine) > 1


@pytest.mark.django_db(transaction=True)
def test_eight_workers_draining_one_lane_send_each_message_once(acme, acme_sends):
    messages = [accepted(to=f"ada{number}@example.com") for number in range(60)]

    def drain(_):
        with tenant_context(acme):
            return turn().sent

    assert sum(race(8, drain)) == 60
    assert sorted(outgoing.to for outgoing in acme_sends.received) == sorted(m.to_address for m in messages)


def test_the_oldest_due_row_goes_first(acme_sends):
    first, second, third = (accepted() for _ in range(3))
    on_ledger(third).update(due_at=timezone.now() - timedelta(hours=2))
    on_ledger(second).update(due_at=timezone.now() - timedelta(hours=1))
    assert [row.item for row in claim(first, limit=2).rows] == [third.pk, second.pk]


def test_what_is_not_due_or_held_by_another_is_left(acme_sends):
    held, later, free = (accepted() for _ in range(3))
    on_ledger(later).update(due_at=timezone.now() + timedelta(minutes=1))
    assert [row.item for row in claim(held, only=held.pk).rows] == [held.pk]
    assert [row.item for row in claim(held).rows] == [free.pk]


# Leases


def test_unmarked_rows_of_a_dead_worker_go_again_and_its_token_is_worth_nothing(acme_sends):
    message = accepted()
    dead = die_after_claiming(message)
    alive = claim(message)
    assert [(row.item, row.suspect, row.handed_over) for row in alive.rows] == [(message.pk, True, False)]
    assert ledger.mark_handed_over(dead, [message.pk]) == set()
    ledger.finish(dead, [message.pk])
    ledger.postpone(dead, [message.pk], [timezone.now() + timedelta(days=1)])
    ledger.charge(dead, message.pk)
    ledger.renew(dead)
    row = on_ledger(message).get()
    assert (row.token, row.deaths, row.handed_over_at) == (alive.token, 0, None)
    assert ledger.mark_handed_over(alive, [message.pk]) == {message.pk}


def test_a_worker_whose_lease_ended_hands_nothing_over(acme_sends, monkeypatch):
    message = accepted()
    prepare = preparing.prepare

    def pause(*args):
        end_leases()
        return prepare(*args)

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "prepare", pause)
        assert turn().total == 0
    assert not acme_sends.received
    assert fresh(message).status == MessageStatus.PENDING
    assert turn().sent == 1


def test_renewing_holds_the_lease(acme_sends):
    message = accepted()
    held = die_after_claiming(message)
    ledger.renew(held)
    assert not claim(message).rows
    assert on_ledger(message).get().lease_until > timezone.now() + timedelta(seconds=30)


@pytest.mark.django_db(transaction=True)
def test_a_slow_provider_does_not_outlive_the_lease_of_what_waits_behind_it(acme, in_acme, provider, settings):
    """Eight hand-overs follow one another; each is quick, and together they take longer than a lease."""
    settings.NOTIFY_LOCK_TIMEOUT_SECONDS = 2
    provider.connections = 1
    factories.Outbox()
    messages = [accepted(to=f"ada{number}@example.com") for number in range(8)]

    def slowly(_):
        Event().wait(0.3)
        return Accepted()

    for message in messages:
        provider.script(message.to_address, slowly)
    assert turn().sent == 8


# A worker that died in a hand-over


def test_an_email_that_may_have_gone_out_is_uncertain_and_goes_again_in_ten_minutes_under_its_message_id(acme_sends):
    message = accepted()
    die_while_handing_over(message)
    assert turn().later == 1
    stored = fresh(message)
    assert (stored.status, stored.attempt_count) == (MessageStatus.UNCERTAIN, 1)
    assert on_ledger(message).get().due_at > timezone.now() + timedelta(minutes=9)
    assert turn().total == 0
    make_due(message)
    assert turn().sent == 1
    assert [outgoing.message_id for outgoing in acme_sends.received] == [f"<{message.pk}@acme.test>"]
    assert (fresh(message).status, fresh(message).attempt_count) == (MessageStatus.SENT, 2)


def test_a_text_message_that_may_have_gone_out_is_left_to_a_receipt_or_a_person(acme_sends):
    message = accepted("+12025550188", channel="sms")
    die_while_handing_over(message)
    turn()
    assert fresh(message).status == MessageStatus.UNCERTAIN
    assert turn().total == 0
    make_due(message)
    Attempt.objects.update(finished_at=timezone.now() - timedelta(hours=25))
    turn()
    assert fresh(message).dead_lettered_at
    assert not on_ledger(message).exists()
    assert not acme_sends.received
    lifecycle.requeue(message, actor=operator())
    assert turn().sent == 1


def operator():
    return get_user_model().objects.create_user("operator")


def test_a_message_that_a_receipt_settled_meanwhile_is_not_sent_again(acme_sends):
    message = accepted()
    die_while_handing_over(message)
    OutboxMessage.objects.filter(pk=message.pk).update(status=MessageStatus.DELIVERED, sent_at=timezone.now())
    turn()
    make_due(message)
    turn()
    assert not acme_sends.received
    assert fresh(message).status == MessageStatus.DELIVERED
    assert not on_ledger(message).exists()


def test_an_email_of_unknown_fate_is_settled_before_it_goes_again(acme_sends):
    message = accepted()
    die_while_handing_over(message)
    turn()
    OutboxMessage.objects.filter(pk=message.pk).update(status=MessageStatus.SENT, sent_at=timezone.now())
    make_due(message)
    turn()
    assert not acme_sends.received
    assert not on_ledger(message).exists()


@pytest.mark.parametrize("why", ["expired", "suppressed", "sender off"])
def test_what_stops_a_second_attempt_does_not_tell_of_the_first(acme_sends, why):
    message = accepted()
    die_while_handing_over(message)
    turn()
    if why == "expired":
        OutboxMessage.objects.filter(pk=message.pk).update(expires_at=timezone.now())
    elif why == "suppressed":
        Suppression.objects.create(channel="email", address="ada@example.com")
    else:
        OutboxModel.objects.update(is_active=False)
    make_due(message)
    turn()
    assert fresh(message).status == MessageStatus.UNCERTAIN
    assert not acme_sends.received
    # A sender can be switched on again; the others will not change.
    assert on_ledger(message).exists() is (why == "sender off")


def test_a_worker_that_died_leaves_an_attempt(acme_sends):
    message = accepted()
    die_while_handing_over(message)
    turn()
    assert message.attempts.get().outcome == AttemptOutcome.UNCERTAIN
    assert "died" in fresh(message).error_log


def test_an_email_of_unknown_fate_goes_again_only_as_often_as_any_other(acme_sends, settings):
    settings.NOTIFY_MAX_ATTEMPTS = 2
    message = accepted()
    for _ in range(2):
        make_due(message)
        die_while_handing_over(message)
        turn()
    assert fresh(message).status == MessageStatus.UNCERTAIN
    assert not on_ledger(message).exists()


# What kills workers


def test_three_deaths_alone_are_poison_and_the_neighbours_are_sent(acme_sends):
    poison, *others = [accepted(to=f"ada{number}@example.com") for number in range(4)]
    die_after_claiming(poison)
    for deaths in range(1, 4):
        # What was claimed by a dead worker is charged before it is touched, and only alone.
        suspect = claim(poison, only=poison.pk)
        assert [(row.suspect, row.deaths) for row in suspect.rows] == [(True, deaths - 1)]
        ledger.charge(suspect, poison.pk)
        end_leases()
    assert turn().sent == 3
    assert {fresh(message).status for message in others} == {MessageStatus.SENT}
    stored = fresh(poison)
    assert stored.status == MessageStatus.FAILED
    assert "poison" in stored.error_message
    assert stored.dead_lettered_at
    assert not on_ledger().exists()
    assert "ada0@example.com" not in {outgoing.to for outgoing in acme_sends.received}


@pytest.mark.django_db(transaction=True)
def test_only_a_message_alone_is_charged_a_death_before_it_is_touched(acme, acme_sends):
    messages = [accepted(to=f"ada{number}@example.com") for number in range(3)]
    seen = []

    def look(outgoing):
        """In a thread of its own, so what it sees is what a worker would leave behind if it died here."""
        try:
            seen.append(sorted(on_ledger().values_list("deaths", flat=True)))
        finally:
            connection.close()
        return Accepted()

    for message in messages:
        acme_sends.script(message.to_address, look, look)
    first = accepted(to="first@example.com", priority="high")
    acme_sends.script(first.to_address, look)
    assert turn("high").sent == 1
    die_after_claiming(*messages)
    assert turn().sent == 3
    assert seen == [[0, 0, 0, 0], [0, 0, 1], [0, 1], [1]]
    assert acme_sends.most_at_once == 1


# Cancelling


def test_a_waiting_message_can_be_cancelled_and_is_never_sent(acme_sends):
    message = accepted()
    lifecycle.cancel(message, reason="mistake")
    assert message.status == MessageStatus.CANCELLED
    assert not on_ledger(message).exists()
    assert turn().total == 0
    with pytest.raises(NotCancellable):
        lifecycle.cancel(message)


def test_what_a_worker_has_cannot_be_cancelled(acme_sends):
    message = accepted()
    claim(message)
    with pytest.raises(NotCancellable, match="on its way"):
        lifecycle.cancel(message)
    assert fresh(message).status == MessageStatus.PENDING


@pytest.mark.django_db(transaction=True)
def test_of_a_cancel_and_a_claim_exactly_one_wins(acme, acme_sends):
    outcomes = set()
    for number in range(25):
        message = accepted(to=f"ada{number}@example.com")

        def act(position, message=message):
            with tenant_context(acme):
                if position % 2:
                    try:
                        lifecycle.cancel(fresh(message))
                    except NotCancellable:
                        return "kept"
                    return "cancelled"
                return turn().sent

        answers = race(4, act)
        sent = sum(answers[::2])
        cancelled = answers[1::2].count("cancelled")
        assert (sent, cancelled) in {(1, 0), (0, 1)}, answers
        assert fresh(message).status == (MessageStatus.SENT if sent else MessageStatus.CANCELLED)
        assert (message.to_address in {outgoing.to for outgoing in acme_sends.received}) == bool(sent)
        outcomes.add(sent)
    connection.set_tenant(acme)
    assert not on_ledger().exists()


# Turns


def test_a_turn_takes_as_many_as_it_may(acme_sends):
    for _ in range(5):
        accepted()
    assert [turn(limit=2).sent for _ in range(4)] == [2, 2, 1, 0]


def test_a_busy_sender_does_not_starve_a_quiet_one(acme_sends):
    """A turn whose time is used up at the first sender begins with the other one next time."""
    for number in range(120):
        accepted(to=f"many{number}@example.com")
    factories.Outbox(address="quiet@acme.test", account=factories.Account())
    quiet = accepted(to="quiet@example.com", from_address="quiet@acme.test")
    turn(seconds=0)
    turn(seconds=0)
    assert fresh(quiet).status == MessageStatus.SENT


def test_a_turn_comes_forward_however_little_time_it_has(acme_sends):
    accepted()
    assert turn(seconds=-1).sent == 1


@pytest.mark.parametrize("held", [{"paused_reason": "by hand"}, {"not_before": timezone.now() + timedelta(hours=1)}])
def test_a_held_lane_waits_and_the_others_go(acme_sends, held):
    waits = accepted()
    factories.Outbox(address="other@acme.test", account=factories.Account())
    goes = accepted(from_address="other@acme.test")
    lane = on_ledger(waits).get().lane
    for name, value in held.items():
        setattr(lane, name, value)
    lane.save()
    turn()
    assert (fresh(waits).status, fresh(goes).status) == (MessageStatus.PENDING, MessageStatus.SENT)
    assert waiting() == []
    type(lane).objects.update(paused_reason="", not_before=None)
    assert waiting() == [(connection.schema_name, "default")]
    assert turn().sent == 1


def test_the_sweep_finds_only_what_is_due_and_nobody_has(acme, acme_sends):
    message = accepted()
    here = [(acme.schema_name, "default")]
    assert waiting() == here
    on_ledger(message).update(due_at=timezone.now() + timedelta(seconds=30))
    assert waiting() == []
    make_due(message)
    claim(message)
    assert waiting() == []
    end_leases()
    assert waiting() == here
    on_ledger(message).update(manual=True)
    assert waiting() == []


def test_the_sweep_finds_every_lane_with_work_and_the_most_pressing_first(acme, globex, acme_sends):
    for number in range(5):
        factories.Outbox(address=f"o{number}@acme.test", account=factories.Account())
        accepted(from_address=f"o{number}@acme.test", priority="bulk" if number % 2 else "high")
    with tenant_context(globex):
        factories.Outbox(address="hello@globex.test")
        accepted()
    expected = [(acme.schema_name, "high"), (globex.schema_name, "default"), (acme.schema_name, "bulk")]
    assert waiting() == expected
