"""Load for a long time, with a fault every twenty seconds, each from the seed."""

import os
import signal
import time
from collections.abc import Callable

from notifications import queues
from tests.benchmarks.processes import say
from tests.faults.processes import Kept
from tests.faults.stage import Scene

EVERY_SECONDS = 20.0
RATE = 40.0


def soak(scene: Scene, *, minutes: float) -> None:
    """Accept at a rate for so many minutes while things break."""
    mail = scene.smtp("--delay-ms=20")
    scene.two_tenants(mail)
    scene.scheduler()
    workers = [scene.worker() for _ in range(2)]
    scene.listening(2)
    seconds = minutes * 60
    load = scene.accept(scene.order(int(RATE * seconds), mail), f"--rate={RATE}", wait=False)
    faults = _faults(scene, workers)
    began = time.monotonic()
    ends = began + seconds
    number = 0
    while time.monotonic() + EVERY_SECONDS < ends:
        scene.rest(EVERY_SECONDS)
        name = scene.random.choice(sorted(faults))
        number += 1
        say(f"  {name} (fault {number}, {(ends - time.monotonic()) / 60:.0f} min left, {scene.attempts()} handed over)")
        faults[name]()
    scene.wait(lambda: load.code is not None, "the load ends", 600)
    rate = len(scene.orders) / (time.monotonic() - began)
    scene.note(f"{number} faults, {rate:.0f} messages a second")
    scene.late_after = 180
    scene.settle(seconds=180)
    scene.judge()
    scene.note(f"p99 {scene.result.p99_s} s, slowest {scene.result.slowest_s} s")


def _faults(scene: Scene, workers: list[Kept]) -> dict[str, Callable[[], object]]:
    servers = scene.stage.servers

    def victim() -> Kept:
        return scene.random.choice(workers)

    def pause() -> None:
        child = victim().child
        child.signal(signal.SIGSTOP)
        scene.rest(10)
        child.signal(signal.SIGCONT)

    def restart_postgres() -> None:
        servers.postgres.stop("immediate")
        time.sleep(2)
        servers.postgres.start()
        scene.over()

    def restart_valkey() -> None:
        servers.valkey.stop()
        scene.rest(5)
        servers.valkey.start()
        scene.over()

    def silence_valkey() -> None:
        os.kill(servers.valkey.process_id, signal.SIGSTOP)
        scene.rest(5)
        os.kill(servers.valkey.process_id, signal.SIGCONT)
        scene.over()

    def end_backends() -> None:
        scene.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )

    return {
        "kill a worker": lambda: scene.kill(victim()),
        "end a worker": lambda: victim().child.signal(signal.SIGTERM),
        "stop a worker for a while": pause,
        "restart PostgreSQL": restart_postgres,
        "restart Valkey": restart_valkey,
        "silence Valkey": silence_valkey,
        "FLUSHALL": lambda: queues.redis().flushall(),
        "CLIENT KILL": lambda: queues.redis().client_kill_filter(_type="normal", skipme=True),
        "end all backends": end_backends,
        "kill the scheduler": lambda: scene.kept[0].child.signal(signal.SIGKILL),
    }
