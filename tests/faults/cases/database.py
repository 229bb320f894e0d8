"""PostgreSQL restarts, dies at the worst moment, loses connections, and has deadlocks."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg

from tests.faults.cases.base import STEADY, SWEEP, case, done, nothing_twice, ready, resumed_within
from tests.faults.stage import Scene


@case("11-postgres-restart")
def postgres_restart(scene: Scene) -> None:
    """11. PostgreSQL stops as in a power cut under load, and comes back: answers from providers are not forgotten."""
    mail = scene.smtp(STEADY)
    scene.two_tenants(mail)
    ready(scene, workers=2)
    load = scene.accept(scene.order(240 if scene.quick else 600, mail), "--rate=40", wait=False)
    for _ in range(1 if scene.quick else 3):
        scene.rest(2.5)
        scene.stage.servers.postgres.stop("immediate")
        time.sleep(2)
        scene.stage.servers.postgres.start()
        scene.over()
    scene.wait(lambda: load.code is not None, "the load ends", 120)
    done(scene)
    scene.note(f"{len(scene.refusals())} calls were refused at first")
    nothing_twice(scene, "workers that lived forgot what the provider had answered")


@case("12-postgres-dies-after-250")
def postgres_dies_after_250(scene: Scene) -> None:
    """12. PostgreSQL dies between a provider's 250 and the record of it; the worker lives and keeps the answer."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    flag = scene.folder / "after-provider"
    scene.scheduler()
    worker = scene.worker(fault=f"after_provider:5:{flag}")
    scene.listening()
    scene.send(40, mail)
    scene.wait(flag.exists, "the provider has answered", 60)
    scene.stage.servers.postgres.stop("immediate")
    flag.unlink()
    time.sleep(3)
    scene.stage.servers.postgres.start()
    scene.over()
    done(scene)
    scene.expect(worker.restarts == 0, "the worker did not live through it")
    nothing_twice(scene, "the worker forgot what the provider had answered")


@case("x-terminated-backends")
def terminated_backends(scene: Scene) -> None:
    """Extra. pg_terminate_backend on every connection, again and again under load."""
    mail = scene.smtp(STEADY)
    scene.two_tenants(mail)
    ready(scene, workers=2)
    load = scene.accept(scene.order(240 if scene.quick else 500, mail), "--rate=40", wait=False)
    for _ in range(3 if scene.quick else 8):
        scene.rest(1)
        scene.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
    scene.over()
    scene.wait(lambda: load.code is not None, "the load ends", 60)
    done(scene)
    nothing_twice(scene, "lost connections to PostgreSQL made second copies")


@case("13-deadlocks")
def deadlocks(scene: Scene) -> None:
    """13. Somebody locks ledger rows criss-cross while three workers claim: deadlocks cost time only."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    ready(scene, workers=3)
    scene.sql("ALTER DATABASE postgres SET deadlock_timeout = '20ms'")
    before, log_before = _deadlocks(scene), len(_server_log(scene))
    number = 600 if scene.quick else 3000
    try:
        with _disturbers(scene, 3):
            # Workers may be through before anybody gets in their way: then there is more for them to do.
            for _ in range(MOST_ROUNDS):
                scene.send(number, mail)
                scene.wait_for_attempts(len(scene.orders) - number // 2)
                if _with_workers(scene, log_before):
                    break
    finally:
        scene.sql("ALTER DATABASE postgres RESET deadlock_timeout")
    scene.over()
    done(scene)
    all_of_them = _deadlocks(scene) - before
    of_workers = _with_workers(scene, log_before)
    scene.note(f"{all_of_them} deadlocks, {of_workers} of them with workers")
    scene.proves(all_of_them > 0, "there was no deadlock")
    scene.proves(of_workers > 0, "no worker was part of a deadlock")
    nothing_twice(scene, "deadlocks made second copies")
    # What was rolled back is tried again, or given back: nobody waits for a lease to end.
    resumed_within(scene, 2 * SWEEP)


CLAIMED = "SELECT item FROM dispatch_ledgerrow WHERE token IS NOT NULL ORDER BY random() LIMIT 12"
DISTURB = "UPDATE dispatch_ledgerrow SET deaths = deaths WHERE item = %s"
DEADLOCK = "ERROR:  deadlock detected"
MOST_ROUNDS = 8


@contextmanager
def _disturbers(scene: Scene, number: int) -> Iterator[None]:
    """So many threads that lock a dozen rows each that workers have claimed, in any order, again and again."""
    ended = threading.Event()

    def disturb() -> None:
        with psycopg.connect(scene.stage.servers.postgres.url, autocommit=True) as own:
            while not ended.is_set():
                with suppress(psycopg.Error), own.transaction():
                    rows = own.execute(CLAIMED).fetchall()
                    for (item,) in rows:
                        own.execute(DISTURB, [item])
                    time.sleep(0.02)
                time.sleep(0.005)

    threads = [threading.Thread(target=disturb) for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(30)


def _deadlocks(scene: Scene) -> int:
    """How many the server has counted; a backend reports its own a second later, or when it ends."""
    time.sleep(1.5)
    return int(scene.sql("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")[0][0])


def _server_log(scene: Scene) -> str:
    return (scene.stage.servers.postgres.data / "server.log").read_text(encoding="utf-8", errors="replace")


def _with_workers(scene: Scene, log_before: int) -> int:
    """How many deadlocks workers were part of since the log was so long."""
    return sum(_concerns_a_worker(text) for text in _server_log(scene)[log_before:].split(DEADLOCK)[1:])


def _concerns_a_worker(text: str) -> bool:
    """Whether one of the statements that the log names after a deadlock is not a disturber's."""
    statements = re.findall(r"^\s*Process \d+: (.*)$", text.partition("HINT:")[0], re.MULTILINE)
    return any(not statement.startswith(DISTURB.partition("%s")[0]) for statement in statements)
