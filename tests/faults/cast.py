"""The processes of a case: started, watched, killed, and started again."""

import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
from redis import RedisError
from rq import Worker

from notifications import queues
from tests.benchmarks.processes import Process, say
from tests.faults.books import Books
from tests.faults.processes import Child, Failed, Kept
from tests.faults.results import Result

ROOT = Path(__file__).parents[2]
SETTLE_SECONDS = 0.3
"""What PostgreSQL gets to finish what a killed process had begun, before anybody looks."""


class Cast(Books):
    """Processes, and what is noted of them when they end."""

    def __init__(self, name: str, folder: Path, seed: int, sql: Callable[..., list[tuple[Any, ...]]]) -> None:
        super().__init__(sql)
        self.name, self.folder = name, folder
        self.random = random.Random(f"{seed} {name}")
        self.result = Result(name, seed=seed)
        self.lease: int | None = None
        """Seconds; the product's own when None."""
        self.in_doubt: set[str] = set()
        """Ids of messages that were on their way when something was killed."""
        self.fault_at: float | None = None
        """When the last fault ended (Unix): from then on the rest is to go out."""
        self.kept: list[Kept] = []
        self.names = count(1)
        self._processes: list[Process] = []
        self._unnoted: list[Process] = []
        """Processes that ended while PostgreSQL could not say what they had on their way."""
        self._dead: set[int] = set()
        """Processes of which it is noted what they had on their way."""

    def note(self, text: str) -> None:
        """Add to what the report says of the case."""
        say(f"  {text}")
        self.result.notes.append(text)

    def expect(self, holds: object, otherwise: str) -> None:
        """Count it against the case when something does not hold."""
        if not holds:
            say(f"  PROBLEM {otherwise}")
            self.result.problems.append(otherwise)

    def proves(self, holds: object, otherwise: str) -> None:
        """Count it against the case when its fault met nothing that it could have harmed."""
        self.expect(holds, f"proved nothing: {otherwise}")

    def start(self, name: str, module: str, *arguments: str, skew: float = 0.0, **environment: str | None) -> Child:
        """Start a module as a process whose clock is so many seconds ahead."""
        clock = ["tests.faults.skewed", str(skew)] if skew else []
        if self.lease is not None:
            environment["NOTIFY_LOCK_TIMEOUT_SECONDS"] = str(self.lease)
        command = [sys.executable, "-m", *clock, module, *arguments]
        child = Child(command, self.folder / f"{name}.log", PYTHONPATH=str(ROOT), **environment)
        self._processes.append(child)
        return child

    def worker(
        self,
        queue: str = "default",
        *,
        fault: str = "",
        skew: float = 0.0,
        keep: bool = True,
        fault_again: bool = False,
    ) -> Kept:
        """Start a worker; one that dies of its fault comes back without it, unless `fault_again`."""

        def start(fault: str) -> Child:
            module = "tests.faults.worker" if fault else "services.worker"
            return self.start(f"worker-{queue}", module, queue, skew=skew, FAULT=fault or None)

        later = partial(start, fault if fault_again else "")
        kept = Kept(later, start(fault))
        if keep:
            self.kept.append(kept)
        return kept

    def scheduler(self, *, skew: float = 0.0) -> Kept:
        """Start a scheduler."""
        start = partial(self.start, "scheduler", "services.scheduler", skew=skew)
        kept = Kept(start, start())
        self.kept.append(kept)
        return kept

    def listening(self, number: int = 1, queue: str = "default", seconds: float = 60) -> None:
        """Wait until so many workers of a queue listen."""
        self.wait(lambda: Worker.count(queue=queues.queue_named(queue)) >= number, f"{number} workers listen", seconds)

    def revive(self) -> None:
        """Start again what has ended, a second after it did."""
        with suppress(psycopg.OperationalError):
            while self._unnoted:
                self._note_marks(self._unnoted[-1])
                self._unnoted.pop()
        for kept in self.kept:
            if kept.child.code is None:
                continue
            if not kept.again_at:
                if kept.child.code:
                    self._unnoted.append(kept.child)
                kept.again_at = time.monotonic() + 1
            elif time.monotonic() >= kept.again_at:
                kept.child, kept.again_at, kept.restarts = kept.start(), 0.0, kept.restarts + 1

    def wait(self, reached: Callable[[], object], what: str, seconds: float, *, revive: bool = True) -> None:
        """Look until it is so.

        Raises:
            Failed: it was not within so many seconds.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                if reached():
                    return
            except (psycopg.OperationalError, RedisError, OSError):
                # A server is down on purpose.
                pass
            if time.monotonic() > deadline:
                raise Failed(f"{what}: not within {seconds:g} s")
            if revive:
                self.revive()
            time.sleep(0.05)

    def rest(self, seconds: float) -> None:
        """Let time pass, while what ends is started again."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.revive()
            time.sleep(0.05)

    def end_processes(self) -> None:
        """End all of them."""
        for process in reversed(self._processes):
            if isinstance(process, Child):
                process.signal(signal.SIGCONT)
        for process in reversed(self._processes):
            # A worker may have a message in a provider that never answers.
            process.end(seconds=10)
        self._processes.clear()

    def wait_for_attempts(self, number: int, seconds: float = 90) -> None:
        """Wait until the providers were given so many messages."""
        self.wait(lambda: self.attempts() >= number, f"{number} messages are handed over", seconds)

    def wait_for_the_rest(self, seconds: float = 120) -> None:
        """Wait until nothing is due or claimed any more; what waits for its time is left."""
        try:
            self.wait(lambda: not self.left_now(), "all that is due has gone out", seconds)
        except Failed as error:
            self.expect(False, f"{error}; {self.left_now()} are left")

    # The nemesis.

    def kill(self, kept: Kept, number: signal.Signals = signal.SIGKILL, *, seconds: float = 60) -> None:
        """End a process, and note what was on its way then."""
        victim = kept.child
        victim.signal(number)
        victim.gone(seconds)
        self.died(victim)

    def died(self, victim: Process) -> None:
        """Note what was on its way in a process that is gone."""
        self.fault_at = time.time()
        time.sleep(SETTLE_SECONDS)
        self._note_marks(victim)

    def _note_marks(self, victim: Process) -> None:
        if victim.pid in self._dead:
            return
        marked = self.marked_by(victim)
        self._dead.add(victim.pid)
        self.in_doubt |= marked
        self.result.in_flight_at_kill += len(marked)
        say(f"  process {victim.pid} is gone with {len(marked)} messages on their way")

    def marked_by(self, process: Process) -> set[str]:
        """The messages that a process has on their way."""
        rows = self.sql(
            "SELECT item FROM dispatch_ledgerrow WHERE handed_over_at IS NOT NULL AND token IS NOT NULL"
            " AND worker LIKE %s",
            f"%:{process.pid}",
        )
        return {str(row[0]) for row in rows}

    def over(self) -> None:
        """The fault has ended: from now on the rest is to go out."""
        self.fault_at = time.time()
