"""Schedulers that are killed or stopped while messages are planned for later."""

import signal

from tests.faults.cases.base import case, done, nothing_twice
from tests.faults.stage import Scene


@case("27-two-schedulers")
def two_schedulers(scene: Scene) -> None:
    """27. Two schedulers, one stopped for a minute and a half (SIGSTOP) and let go: what is planned goes once."""
    seconds = 10 if scene.quick else 90
    mail = scene.smtp()
    scene.two_tenants(mail)
    scene.worker()
    first, _ = scene.scheduler(), scene.scheduler()
    scene.listening()
    every = [int(2 + (seconds + 6) * position / 20) for position in range(20)]
    scene.accept([order for at in every for order in scene.order(3, mail, in_seconds=at + 2)])
    scene.rest(2)
    first.child.signal(signal.SIGSTOP)
    scene.rest(seconds)
    first.child.signal(signal.SIGCONT)
    scene.rest(12)
    scene.late_after = 20
    done(scene)
    nothing_twice(scene, "two schedulers made second copies")
    not_early(scene)


@case("x-kill-schedulers")
def kill_schedulers(scene: Scene) -> None:
    """Extra. SIGKILL the scheduler again and again, with messages planned for later."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    scene.worker()
    scheduler = scene.scheduler()
    scene.listening()
    scene.accept([order for at in range(2, 14) for order in scene.order(5, mail, in_seconds=at + 4)])
    for _ in range(5):
        scene.rest(2)
        scheduler.child.signal(signal.SIGKILL)
        scheduler.child.gone(10)
    scene.rest(6)
    scene.late_after = 20
    done(scene)
    not_early(scene)


def not_early(scene: Scene) -> None:
    """No planned message comes more than a second before its time."""
    earliest = scene.earliest()
    scene.note(f"planned messages came {earliest:.2f} s to {scene.result.slowest_s} s after their time")
    scene.expect(earliest > -1, f"a message came {-earliest:.1f} s before its time")
