"""A provider that takes its time, or stalls, holds up its own connections and nobody else."""

from datetime import timedelta
from threading import Event
from types import SimpleNamespace

import pytest
from django.db import OperationalError
from django.utils import timezone

from notifications import adapters, delivery, handover, latecomers, preparing, recording
from notifications.channels import Accepted
from notifications.channels.fake import Fake
from notifications.delivery import Tally
from notifications.dispatch import ledger
from notifications.models import OutboxMessage
from tests import factories
from tests.factories import accepted, fresh, on_ledger, turn


@pytest.fixture
def stalled(acme, in_acme, provider):
    """A provider that answers when it is told to, and messages for it."""
    provider.connections = 2
    factories.Outbox()
    go = Event()
    messages = [accepted(f"ada{number}@example.com") for number in range(5)]
    for message in messages:
        provider.script(message.to_address, lambda _: Accepted() if go.wait(30) else None)
    yield SimpleNamespace(go=go, messages=messages, provider=provider)
    go.set()
    assert delivery.finish_late(30)


def statuses(messages):
    return [fresh(message).status for message in messages]


@pytest.mark.django_db(transaction=True)
def test_a_turn_does_not_wait_for_a_stalled_provider_and_gives_back_what_has_not_begun(stalled):
    assert delivery.take_turn("default", seconds=0) == Tally(under_way=2)
    assert statuses(stalled.messages) == ["sending", "sending", "pending", "pending", "pending"]
    assert on_ledger().filter(lease_until=None).count() == 3


@pytest.mark.django_db(transaction=True)
def test_what_lands_after_its_turn_is_written_down(stalled):
    late = Tally()
    turned = delivery.take_turn("default", seconds=0, late=late)
    assert str(turned) == "0 sent, 0 later, 0 failed, 0 suppressed, 2 under way"
    stalled.go.set()
    assert delivery.finish_late(30)
    assert statuses(stalled.messages)[:2] == ["sent", "sent"]
    assert turned + late == Tally(sent=2)
    assert turn().sent == 3
    assert not on_ledger().exists()


@pytest.mark.django_db(transaction=True)
def test_what_lands_before_the_turn_has_counted_it_is_counted_once(stalled, monkeypatch):
    """As on a machine so busy that the turn's own thread stands still for a moment."""
    add = latecomers.add

    def add_and_stand_still(drain):
        stalled.go.set()
        add(drain)
        assert latecomers.wait(30)

    monkeypatch.setattr(latecomers, "add", add_and_stand_still)
    late = Tally()
    assert delivery.take_turn("default", seconds=0, late=late) + late == Tally(sent=2)


@pytest.mark.django_db(transaction=True)
def test_a_provider_whose_connections_are_all_taken_gets_no_more(stalled):
    delivery.take_turn("default", seconds=0)
    assert turn(seconds=5).total == 0
    assert len(stalled.provider.received) == 2


@pytest.mark.django_db(transaction=True)
def test_the_lease_on_what_is_late_is_renewed(stalled, settings):
    """Another process finds only what this one gave back, long after the lease that it took would have ended."""
    settings.NOTIFY_LOCK_TIMEOUT_SECONDS = 2
    delivery.take_turn("default", seconds=0)
    Event().wait(3)
    row = on_ledger(stalled.messages[0]).get()
    elsewhere = ledger.claim(row.lane_id, tenant_id=row.tenant_id, limit=100, worker="elsewhere")
    assert elsewhere.open == {message.pk for message in stalled.messages[2:]}
    stalled.go.set()
    assert delivery.finish_late(30)
    assert statuses(stalled.messages)[:2] == ["sent", "sent"]


@pytest.mark.django_db(transaction=True)
def test_a_stalled_provider_holds_up_no_other_sender(stalled, monkeypatch):
    other = Fake()
    monkeypatch.setattr(adapters, "adapter_for", lambda account, _: other if account.name else stalled.provider)
    factories.Outbox(address="other@acme.test", account=factories.Account(name="other"))
    delivery.take_turn("default", seconds=0)
    free = accepted(from_address="other@acme.test")
    turn(seconds=5)
    assert fresh(free).status == "sent"


@pytest.mark.django_db(transaction=True)
def test_four_stalled_accounts_with_all_their_connections_taken_do_not_stop_a_fifth(
    acme, in_acme, provider, monkeypatch
):
    """Each may have 64 connections, and together they have more threads than providers share."""
    go, accounts = Event(), {str(number): Fake(connections=64) for number in range(4)}
    assert sum(account.connections for account in accounts.values()) >= handover.MOST_THREADS
    monkeypatch.setattr(adapters, "adapter_for", lambda account, _: accounts.get(account.name, provider))
    for name, adapter in accounts.items():
        sender = factories.Outbox(address=f"stalls{name}@acme.test", account=factories.Account(name=name))
        for number in range(adapter.connections):
            adapter.script(f"ada{number}@example.com", lambda _: Accepted() if go.wait(60) else None)
            accepted(f"ada{number}@example.com", from_address=sender.address)
    try:
        for _ in accounts:
            assert delivery.take_turn("default", seconds=0).under_way == 64
        factories.Outbox()
        free = accepted(from_address="hello@acme.test")
        turn(seconds=5)
        assert fresh(free).status == "sent"
    finally:
        go.set()
        assert delivery.finish_late(30)


@pytest.mark.django_db(transaction=True)
def test_an_answer_that_the_database_did_not_take_is_kept_until_it_does(acme, in_acme, provider, monkeypatch):
    """PostgreSQL goes away after the provider's acceptance: nothing is in doubt, and nothing goes twice."""
    factories.Outbox()
    message = accepted()
    write_down, refusals = recording.write_down, iter([OperationalError("gone"), OperationalError("still gone")])

    def away(*args):
        for error in refusals:
            raise error
        return write_down(*args)

    monkeypatch.setattr(recording, "write_down", away)
    with pytest.raises(OperationalError):
        turn()
    assert delivery.finish_late(30)
    assert fresh(message).status == "sent"
    assert fresh(message).attempt_count == 1
    assert not on_ledger().exists()
    assert len(provider.received) == 1


@pytest.mark.django_db(transaction=True)
def test_what_a_broken_turn_had_claimed_goes_again_without_waiting_for_its_lease(acme, in_acme, provider, monkeypatch):
    factories.Outbox()
    messages = [accepted(f"ada{number}@example.com") for number in range(3)]

    def away(*_):
        raise OperationalError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "prepare", away)
        with pytest.raises(OperationalError):
            turn()
    assert delivery.finish_late(30)
    assert not on_ledger(*messages).exclude(lease_until=None).exists()
    assert turn().sent == 3


@pytest.mark.django_db(transaction=True)
def test_what_expires_while_it_waits_for_a_slow_providers_connections_does_not_go(acme, in_acme, provider):
    provider.connections = 1
    factories.Outbox()
    slow, code = accepted("slow@example.com"), accepted("code@example.com")
    expires_at = timezone.now() + timedelta(seconds=1)
    OutboxMessage.objects.filter(pk=code.pk).update(expires_at=expires_at)
    provider.script(slow.to_address, lambda _: Accepted() if Event().wait(1.5) is False else None)
    turn()
    assert fresh(slow).status == "sent"
    assert (fresh(code).status, fresh(code).error_message) == ("failed", "expired")
    assert [outgoing.to for outgoing in provider.received] == ["slow@example.com"]
