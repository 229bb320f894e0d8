"""What the cases share: their registry, a usual start and end, and the bounds that several have in common."""

from collections.abc import Callable

from tests.faults.stage import Scene

type Case = Callable[[Scene], None]

CASES: dict[str, Case] = {}
"""All cases by name, each put there by the module that tells it."""

SHORT_LEASE = 4
"""Seconds; where it is not the lease that is tried."""
LEASE, SWEEP = 60.0, 15.0
"""Seconds: how long a dead worker's claims are its own, and how often the scheduler looks for due work."""
STEADY = "--delay-ms=20"
SLOW = "--delay-ms=150"
"""A provider that always has some messages on their way."""


def case[C: Case](name: str) -> Callable[[C], C]:
    """Put a case into the registry."""

    def keep(told: C) -> C:
        if name in CASES:
            raise ValueError(f"there are two cases named {name}")
        CASES[name] = told
        return told

    return keep


def ready(scene: Scene, *, workers: int = 1) -> None:
    """A scheduler and workers that listen."""
    scene.scheduler()
    for _ in range(workers):
        scene.worker()
    scene.listening(workers)


def done(scene: Scene, *, seconds: float = 120) -> None:
    """See everything to its end, and join the ledgers."""
    scene.settle(seconds=seconds)
    scene.judge()


def resumed_within(scene: Scene, seconds: float) -> None:
    """What the fault had held up is handed over so soon after it."""
    resumed = scene.result.resumed_s
    scene.expect(resumed is not None, "nobody noted how long it took to go on")
    scene.expect((resumed or 0) <= seconds, f"resumed after {resumed} s, not within {seconds:g}")


def bells_within(scene: Scene, seconds: float) -> None:
    """Every tenant with something to do gets a turn so soon after the fault."""
    rung = scene.bells_back()
    scene.note(f"every tenant had a turn after {rung} s")
    scene.expect(rung <= seconds, f"rung again after {rung} s, not within {seconds:g}")


def in_flight(scene: Scene) -> None:
    """Something was on its way when the fault came: else it harmed nobody."""
    scene.proves(scene.result.in_flight_at_kill, "nothing was on its way when the fault came")


def nothing_twice(scene: Scene, otherwise: str) -> None:
    """Nobody got a second copy."""
    scene.expect(scene.result.duplicated == 0, otherwise)
