"""Processes that a benchmark starts, each ended by its own id; and what they cost."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tests.benchmarks.results import NotMeasured

_BEGAN = time.monotonic()


def say(text: str) -> None:
    """Print progress: not part of the result."""
    print(f"[{time.monotonic() - _BEGAN:5.0f} s] {text}", file=sys.stderr, flush=True)


class Process:
    """A child in a session of its own, so that Ctrl-C reaches the benchmark alone, which then ends it."""

    def __init__(self, arguments: Sequence[str], log: Path, **environment: str | None) -> None:
        """Start it; a variable given as None is taken away. What it prints goes to the log."""
        merged = {**os.environ, **environment}
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={name: value for name, value in merged.items() if value is not None},
                start_new_session=True,
            )
        self._asked = False
        self.log = log
        self.began = time.perf_counter()

    @property
    def pid(self) -> int:
        """Its id."""
        return self._child.pid

    def wait(self, seconds: float) -> int:
        """Its exit code.

        Raises:
            NotMeasured: it did not end in time.
        """
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise NotMeasured(f"{self.log.stem} did not end within {seconds:g} s") from None

    def require_alive(self) -> None:
        """Raise NotMeasured if it ended by itself."""
        if (code := self._child.poll()) is not None:
            tail = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise NotMeasured(f"a process ended with code {code}: {' '.join(tail)[-300:]}")

    def ask_to_end(self, *, whole_group: bool = False) -> None:
        """Ask it once to end, and do not wait: a worker that is asked twice drops what it is at."""
        if not self._asked:
            self._asked = True
            self._signal(signal.SIGTERM, whole_group)

    def end(self, *, whole_group: bool = False, seconds: float = 20) -> None:
        """Ask it to end, then make it; with `whole_group` also what it started itself."""
        if self._child.poll() is None:
            self.ask_to_end(whole_group=whole_group)
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(seconds)
        if self._child.poll() is None:
            self._signal(signal.SIGKILL, whole_group)
            self._child.wait()

    def _signal(self, number: signal.Signals, whole_group: bool) -> None:
        with suppress(ProcessLookupError):
            if whole_group:
                os.killpg(self.pid, number)
            else:
                self._child.send_signal(number)

    def megabytes(self) -> float:
        """Its resident memory now."""
        return float(psutil.Process(self.pid).memory_info().rss) / 1e6


def cpu_seconds(process_ids: Sequence[int]) -> float:
    """CPU time that these processes and their living children have used."""
    total = 0.0
    for process_id in process_ids:
        parent = psutil.Process(process_id)
        for process in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                total += _cpu_seconds(process)
    return total


def _cpu_seconds(process: psutil.Process) -> float:
    """To the nanosecond where the kernel tells (proc(5), schedstat), else to the hundredth of a second."""
    try:
        tasks = list(Path(f"/proc/{process.pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9
    except OSError:
        times = process.cpu_times()
        return float(times.user + times.system)


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(reached: Callable[[], bool], *, what: str, seconds: float, every: float = 0.02) -> float:
    """Look until it is so; the time (`perf_counter`) at which it was seen.

    Raises:
        NotMeasured: it was not within so many seconds; the message says what was waited for.
    """
    deadline = time.perf_counter() + seconds
    while not reached():
        if time.perf_counter() > deadline:
            raise NotMeasured(f"{what}: not within {seconds:g} s")
        time.sleep(every)
    return time.perf_counter()


def accepts_connections(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
