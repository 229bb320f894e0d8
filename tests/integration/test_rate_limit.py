"""A sender's limit holds over all workers, costs no attempt, and is seen before it is met."""

from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone

from notifications import drain, routing
from notifications.dispatch import lanes, limiter, sweep
from notifications.dispatch.models import Lane, OutboxWindow
from notifications.models import Outbox, OutboxMessage, Scope
from notifications.models.fields import new_id
from notifications.queues import queue_named
from tenants.context import public_context, tenant_context
from tests import factories
from tests.factories import accepted, fresh, on_ledger, race, turn


def limit_to(most: int) -> Outbox:
    Outbox.objects.update(rate_limit=most)
    return Outbox.objects.get(account__kind="email")


def sent() -> int:
    return OutboxMessage.objects.filter(status="sent").count()


def window_passes() -> None:
    OutboxWindow.objects.update(ends={})
    Lane.objects.update(not_before=None)


def test_no_more_than_the_limit_goes_out_in_a_window(acme_sends):
    limit_to(3)
    for _ in range(5):
        accepted()
    turn()
    turn()
    assert len(acme_sends.received) == 3


def test_what_is_over_the_limit_waits_without_an_attempt_and_goes_later(acme_sends):
    limit_to(2)
    messages = [accepted() for _ in range(3)]
    turn()
    late = fresh(messages[2])
    assert (late.status, late.attempt_count, on_ledger(late).exists()) == ("pending", 0, True)
    window_passes()
    turn()
    assert fresh(late).status == "sent"


def test_the_lane_waits_until_a_permit_frees(acme_sends, settings):
    settings.NOTIFICATION_SETTINGS = {**settings.NOTIFICATION_SETTINGS, "RATE_LIMIT_WINDOW": 3600}
    limit_to(1)
    for _ in range(2):
        accepted()
    turn()
    wait = Lane.objects.exclude(not_before=None).get().not_before - timezone.now()
    assert timedelta(minutes=59) < wait <= timedelta(seconds=3600 + 2 * 36)


def test_check_rate_limit_only_looks(acme_sends):
    outbox = limit_to(1)
    assert [outbox.check_rate_limit() for _ in range(3)] == [True] * 3
    accepted()
    turn()
    assert not outbox.check_rate_limit()


def test_an_outbox_without_a_limit_may_always_send(acme_sends):
    assert Outbox.objects.get(account__kind="email").check_rate_limit()


def test_messages_that_do_not_go_use_no_permit(acme_sends):
    limit_to(1)
    accepted(headers={})
    OutboxMessage.objects.update(expires_at=timezone.now())
    accepted()
    turn()
    assert sent() == 1


def test_one_senders_limit_does_not_hold_another(acme_sends):
    limit_to(1)
    for _ in range(2):
        accepted()
    factories.Outbox(address="other@acme.test", account=factories.Account())
    free = accepted(from_address="other@acme.test")
    turn()
    assert fresh(free).status == "sent"


def test_tenants_share_the_limit_of_the_platforms_sender(acme, globex):
    with public_context():
        shared = Outbox.objects.filter(account__kind="email").first()
        Outbox.objects.filter(pk=shared.pk).update(rate_limit=3)
    for tenant in (acme, globex):
        with tenant_context(tenant):
            for _ in range(2):
                accepted()
            turn()
    with tenant_context(globex):
        assert sent() == 1


@pytest.mark.django_db(transaction=True)
def test_racing_workers_never_take_more_than_there_is(acme):
    with tenant_context(acme):
        outbox = factories.Outbox(account=factories.Account(), rate_limit=20)
        limit = routing.limit_of(outbox, Scope.TENANT)

    def take(_: int) -> int:
        with transaction.atomic():
            return limiter.take(limit, wanted=5, lease=drain.PERMIT_SECONDS).permits

    assert sum(race(8, take)) == 20


def test_a_suspect_without_a_permit_is_not_charged_and_stays_one(acme_sends):
    limit_to(1)
    accepted()
    turn()
    suspect = accepted()
    Lane.objects.update(not_before=None)
    on_ledger(suspect).update(token=new_id(), lease_until=timezone.now() - timedelta(seconds=1))
    turn()
    row = on_ledger(suspect).get()
    assert (row.deaths, row.token is not None, row.lease_until) == (0, True, None)
    window_passes()
    turn()
    assert fresh(suspect).status == "sent"


# Who goes first.


def next_window() -> list[tuple[str, str]]:
    """Permits are free again, and the lanes that waited for them are let go: schema and queue, as they are rung for."""
    OutboxWindow.objects.update(ends={})
    Lane.objects.exclude(not_before=None).update(not_before=timezone.now() - timedelta(seconds=1))
    return sweep.served(lanes.wake()[0])


@pytest.mark.parametrize("first", [0, 1])
def test_tenants_take_turns_on_the_platforms_sender(acme, globex, provider, first):
    """Whoever has little to send does not wait until the other has sent all."""
    with public_context():
        Outbox.objects.filter(account__kind="email").update(is_active=False)
        factories.Outbox(address="hi@platform.test", rate_limit=2)
    much, little = sorted((acme, globex), key=lambda tenant: tenant.schema_name, reverse=bool(first))
    for tenant, name, number in ((much, "much", 8), (little, "little", 2)):
        with tenant_context(tenant):
            for _ in range(number):
                accepted(f"{name}@example.com")
    due = [(much.schema_name, "default"), (little.schema_name, "default")]
    for _ in range(2):
        for schema_name, queue in due:
            with tenant_context(schema_name):
                turn(queue)
        due = next_window()
    assert [outgoing.to for outgoing in provider.received] == ["much@example.com"] * 2 + ["little@example.com"] * 2


def test_what_is_more_pressing_gets_a_senders_permits_first(acme_sends):
    limit_to(2)
    for _ in range(5):
        accepted("bulk@example.com", priority="bulk")
    turn("bulk")
    for _ in range(3):
        accepted("code@example.com", priority="high")
    assert turn("high").total == 0
    assert [queue for _, queue in next_window()] == ["high", "bulk"]
    # Even if the other's worker is quicker.
    for queue in ("bulk", "high"):
        turn(queue)
    next_window()
    for queue in ("bulk", "high", "bulk"):
        turn(queue)
        Lane.objects.filter(queue="bulk").update(not_before=None)
    assert [outgoing.to.partition("@")[0] for outgoing in acme_sends.received] == [
        "bulk", "bulk", "code", "code", "code", "bulk"]  # fmt: skip


def test_pressing_messages_that_nobody_begins_are_not_waited_for(acme_sends, settings):
    settings.NOTIFICATION_SETTINGS = {**settings.NOTIFICATION_SETTINGS, "RATE_LIMIT_WINDOW": 10}
    limit_to(2)
    on_ledger(accepted(priority="high")).update(due_at=timezone.now() - timedelta(minutes=10))
    accepted("bulk@example.com", priority="bulk")
    assert turn("bulk").sent == 1


@pytest.mark.parametrize("window", [2, 36000])
def test_what_was_used_counts_on_when_operators_change_the_window_and_no_longer(acme_sends, settings, window):
    outbox = limit_to(3)
    for _ in range(2):
        accepted()
    turn()
    settings.NOTIFICATION_SETTINGS = {**settings.NOTIFICATION_SETTINGS, "RATE_LIMIT_WINDOW": window}
    limit = routing.limit_of(outbox, Scope.TENANT)
    assert limiter.free_now(limit) == 1
    for _ in range(2):
        accepted()
    turn()
    assert sent() == 3
    wait = Lane.objects.exclude(not_before=None).get().not_before - timezone.now()
    assert wait <= timedelta(seconds=window * 1.1 + 36)


@pytest.mark.django_db(transaction=True)
def test_a_limit_that_is_raised_lets_what_waits_go_at_once(acme, in_acme, provider, valkey):
    outbox = factories.Outbox(rate_limit=1)
    for _ in range(3):
        accepted()
    turn()
    queue_named("default").empty()
    outbox.rate_limit = 10
    outbox.save()
    assert not Lane.objects.exclude(not_before=None).exists()
    assert len(queue_named("default")) == 1
    assert turn().sent == 2
