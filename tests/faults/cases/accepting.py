"""Calls that race, repeat each other, or die half-way."""

import time

from tests.faults.cases.base import case, done, ready, resumed_within
from tests.faults.crashes import DIED
from tests.faults.stage import Scene


@case("14-same-key-race")
def same_key_race(scene: Scene) -> None:
    """14. Thirty-two calls at once under one key: one message."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    ready(scene)
    scene.accept(scene.order(3 if scene.quick else 10, mail), "--race=32")
    done(scene)
    failed = scene.refusals()
    scene.expect(not failed, f"calls of the race failed: {failed[:2]}")


@case("15-same-key-other-call")
def same_key_other_call(scene: Scene) -> None:
    """15. The same key for another text is refused; for another tenant it is another message."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    ready(scene)
    first = scene.order(1, mail, tenants=scene.tenants[:1], idempotency_key="the-same")
    scene.accept(first)
    other = scene.order(1, mail, tenants=scene.tenants[:1], idempotency_key="the-same")
    scene.orders.remove(other[0])
    scene.accept(other)
    refused = scene.accepted()[other[0].key]
    scene.expect(
        not refused.ids and "IdempotencyConflict" in refused.refused, f"another text: {refused.refused or 'accepted'}"
    )
    scene.accept(scene.order(1, mail, tenants=scene.tenants[1:], idempotency_key="the-same"))
    done(scene)


@case("16-crash-in-accept")
def crash_in_accept(scene: Scene) -> None:
    """16. The caller dies before its transaction commits; asked for again, there is one message."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    ready(scene)
    orders = scene.order(10, mail)
    died = scene.accept(orders, fault="before_accept_commit:6", wait=False)
    scene.expect(died.gone(60) == DIED, "the caller did not die where it was to")
    stored = len(scene.statuses())
    scene.expect(stored == 5, f"{stored} messages are stored, and 5 were committed")
    scene.accept(orders)
    done(scene)


@case("17-crash-before-ring")
def crash_before_ring(scene: Scene) -> None:
    """17. The caller dies between commit and bell: the sweep finds the message within thirty seconds."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    ready(scene)
    orders = scene.order(1, mail)
    died = scene.accept(orders, fault="after_accept_commit:1", wait=False)
    scene.expect(died.gone(60) == DIED, "the caller did not die where it was to")
    scene.over()
    scene.expect(len(scene.statuses()) == 1, "what was committed is not there")
    scene.wait_for_attempts(1, 60)
    waited = time.time() - (scene.fault_at or 0)
    scene.accept(orders)
    done(scene)
    scene.result.resumed_s = round(waited, 1)
    resumed_within(scene, 30)
