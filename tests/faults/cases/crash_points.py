"""Processes that die at each named point of the code, for each kind of channel."""

from functools import partial

from tests.faults.cases.base import SHORT_LEASE, case, done, in_flight, ready
from tests.faults.crashes import DIED
from tests.faults.processes import Child
from tests.faults.stage import Scene

WORKER_POINTS = ("after_claim", "before_provider", "after_provider", "before_outcome_write", "after_outcome_write")
AT_THE_PROVIDER = ("before_provider", "after_provider", "before_outcome_write")
ACCEPT_POINTS = ("before_accept_commit", "after_accept_commit")


def crash_in_worker(scene: Scene, point: str, kind: str) -> None:
    """A worker dies there, at the first time and again later."""
    scene.lease = SHORT_LEASE
    provider = scene.smtp() if kind == "email" else scene.http()
    scene.two_tenants(provider)
    scene.scheduler()
    victims = [scene.worker(fault=f"{point}:{number}") for number in (1, 3)]
    scene.listening(2)
    scene.accept(scene.order(60, provider), *(["--bulk"] if kind == "email" else []))
    for victim in victims:
        child = victim.child
        scene.wait(partial(_ended, child), "the worker dies", 60, revive=False)
        scene.expect(child.code == DIED, f"the worker ended with code {child.code}")
        scene.died(child)
    done(scene)
    if point in AT_THE_PROVIDER:
        in_flight(scene)


def _ended(child: Child) -> bool:
    return child.code is not None


def crash_in_caller(scene: Scene, point: str, kind: str) -> None:
    """A caller dies there, and asks again."""
    provider = scene.smtp() if kind == "email" else scene.http()
    scene.two_tenants(provider)
    ready(scene)
    orders = scene.order(20, provider)
    died = scene.accept(orders, fault=f"{point}:8", wait=False)
    scene.expect(died.gone(60) == DIED, "the caller did not die where it was to")
    scene.over()
    scene.accept(orders)
    done(scene)


for _kind in ("email", "webhook"):
    for _point in WORKER_POINTS:
        case(f"crash:{_point}:{_kind}")(partial(crash_in_worker, point=_point, kind=_kind))
    for _point in ACCEPT_POINTS:
        case(f"crash:{_point}:{_kind}")(partial(crash_in_caller, point=_point, kind=_kind))
