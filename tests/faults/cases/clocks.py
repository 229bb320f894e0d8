"""Processes whose clocks are wrong, by minutes or by hours, and messages that are of no use later."""

import time
from collections.abc import Iterable

from tests.faults.cases.base import SHORT_LEASE, SLOW, STEADY, case, done, nothing_twice, ready
from tests.faults.cases.schedulers import not_early
from tests.faults.ledger import Order
from tests.faults.stage import Scene

MINUTES, HOURS = 300, 5 * 3600
"""Seconds by which a clock is off."""
BEGUN_SECONDS = 1.0
"""What a hand-over may take from its beginning, which is before the expiry, to the provider's note of it."""


@case("26-skewed-clocks")
def skewed_clocks(scene: Scene) -> None:
    """26. A worker and a scheduler five minutes ahead, others five minutes behind: nothing early, nothing twice."""
    mail = scene.smtp(STEADY)
    scene.two_tenants(mail)
    scene.worker(skew=MINUTES)
    scene.worker(skew=-MINUTES)
    scene.worker()
    scene.scheduler(skew=MINUTES)
    scene.scheduler(skew=-MINUTES)
    scene.listening(3)
    later = [order for at in (6, 9, 12) for order in scene.order(10, mail, in_seconds=at)]
    scene.accept(later + scene.order(150, mail))
    scene.rest(14)
    done(scene)
    not_early(scene)
    nothing_twice(scene, "clocks that differ made second copies")


@case("26-far-clocks")
def far_clocks(scene: Scene) -> None:
    """26. All workers are hours off, one ahead and one behind: retries keep their times, leases hold."""
    scene.lease = SHORT_LEASE
    mail, hooks = scene.smtp(SLOW), scene.http()
    scene.tenant(mail)
    scene.tenant(hooks)
    by_mail, by_hook = ([tenant] for tenant in scene.tenants)
    for skew in (HOURS, -HOURS):
        scene.worker(skew=skew)
    scene.scheduler()
    scene.listening(2)
    again = scene.order(20, mail, steps="450", tenants=by_mail)
    # Each takes longer than a lease lasts.
    slow = scene.order(8, mail, steps=f"w{1500 * SHORT_LEASE}", tenants=by_mail)
    scene.accept(again + slow + scene.order(200, mail, tenants=by_mail))
    scene.wait_for_the_rest()
    _retried_in_time(scene, again, 60)
    _told_in_time(scene)
    for step in ("429s90", "429d90", "429s90", "429d90"):
        # One at a time, as each holds the account.
        throttled, before = scene.order(1, hooks, steps=step, tenants=by_hook), scene.attempts()
        scene.accept(throttled)
        scene.wait_for_attempts(before + 1)
        scene.wait_for_the_rest()
        _retried_in_time(scene, throttled, 90)
        # Forgotten, not over: a half-open account is tried, and that holds it for longer.
        scene.sql("DELETE FROM dispatch_accounthold WHERE owner = %s", by_hook[0].pk)
        scene.sql("UPDATE dispatch_lane SET not_before = NULL WHERE tenant_id = %s", by_hook[0].pk)
    done(scene)
    nothing_twice(scene, "clocks that are hours off made second copies: a lease was lost")


def _retried_in_time(scene: Scene, orders: Iterable[Order], seconds: float) -> None:
    """Each waits for so long since its attempt, and up to a tenth longer."""
    due, refused = scene.due_times(), {receipt.to: receipt.at for receipt in scene.receipts()}
    for order in orders:
        waits = [due[i] - refused[order.to] for i in scene.ids([order]) if i in due]
        scene.proves(waits, f"{order.key} does not wait for another attempt")
        for wait in waits:
            # A date has whole seconds only.
            in_time = seconds - 1.1 <= wait <= 1.1 * seconds + 2
            scene.expect(in_time, f"{order.key} is tried again after {wait:.0f} s, not {seconds:g}")


def _told_in_time(scene: Scene) -> None:
    """The times that the product tells are not those of the workers' clocks."""
    came = {receipt.id: receipt.at for receipt in scene.receipts() if receipt.taken}
    off = [abs(at.timestamp() - came[i]) for i, at in scene.messages("sent_at").items() if at and i in came]
    scene.expect(max(off, default=0.0) < 30, f"sent_at is {max(off, default=0.0):.0f} s from when it was sent")


@case("26-far-expiry")
def far_expiry(scene: Scene) -> None:
    """26. Codes that are valid for a while, and workers hours off: none expires early, none goes out late."""
    mail = scene.smtp(STEADY)
    scene.two_tenants(mail)
    scene.scheduler()
    lifetime = 8
    late = scene.order(40, mail, expected="failed")
    _accept_for(scene, late, lifetime)
    time.sleep(lifetime + 1)
    # By the clock of the one behind they are valid for hours, by that of the one ahead all others ended hours ago.
    for skew in (HOURS, -HOURS):
        scene.worker(skew=skew)
    scene.listening(2)
    scene.ring()
    scene.wait_for_the_rest()
    fresh = scene.order(100, mail)
    _accept_for(scene, fresh, 60)
    scene.wait_for_the_rest()
    done(scene)
    _none_late(scene)
    told = {scene.messages("error_message")[i] for i in scene.ids(late)}
    scene.expect(told == {"expired"}, f"codes that ran out failed because of: {', '.join(sorted(told))}")


@case("26-far-caller")
def far_caller(scene: Scene) -> None:
    """26. Callers hours off accept codes that are valid for a minute: none expires early, none goes out late."""
    mail = scene.smtp(STEADY)
    scene.two_tenants(mail)
    lifetime = 60
    for skew in (HOURS, -HOURS):
        orders = scene.order(20, mail)
        _accept_for(scene, orders, lifetime, skew=skew)
        now, ends = time.time(), scene.messages("expires_at")
        left = [ends[i].timestamp() - now for i in scene.ids(orders)]
        scene.expect(
            min(left) > 0 and max(left) <= lifetime,
            f"accepted by a clock that is {skew} s off, a code for {lifetime} s is valid for another {max(left):.0f} s",
        )
    ready(scene)
    done(scene)


@case("x-short-lived")
def short_lived(scene: Scene) -> None:
    """Extra. More codes than a slow provider takes before they expire: those in time go out, no other is begun."""
    mail = scene.smtp("--delay-ms=1000")
    scene.two_tenants(mail, settings={"connections": 2})
    ready(scene)
    codes = scene.order(80, mail, expected="either")
    _accept_for(scene, codes, 8)
    done(scene)
    _none_late(scene)
    statuses = [scene.status(order) for order in codes]
    scene.note(f"{statuses.count('sent')} went out in time, {statuses.count('failed')} expired")
    scene.proves({"sent", "failed"} <= set(statuses), "all codes went out in time, or none")


def _accept_for(scene: Scene, orders: list[Order], seconds: int, *, skew: float = 0.0) -> None:
    """Accept messages that are valid for so long."""
    scene.accept(orders, skew=skew, NOTIFY_EXPIRY_SECONDS=str(seconds))


def _none_late(scene: Scene) -> None:
    """No hand-over began after its message's expiry. The database and the providers have the machine's clock."""
    ends = scene.messages("expires_at")
    late = [receipt.at - ends[receipt.id].timestamp() for receipt in scene.receipts() if receipt.id in ends]
    latest = max(late, default=0.0)
    scene.expect(latest <= BEGUN_SECONDS, f"a message was handed over {latest:.1f} s after its expiry")
