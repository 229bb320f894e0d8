"""What else a Django team would use, run by the peers' own `run.sh`, on the same machine and in the same run.

They live outside of this repository, in the folder that `PEERS` names. Without it their columns stay empty.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.processes import Process, free_port, say
from tests.benchmarks.results import NotMeasured

ROOT = Path(__file__).parents[2]
SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a peer."""

    count: int
    deliver_per_s: float
    """From the end of the enqueue; a Celery or RQ worker's start-up is part of it."""
    e2e_per_s: float

    @property
    def accept_per_s(self) -> float | None:
        """Messages a second from the call to the last one stored or enqueued; None when that took no time."""
        seconds = 1 / self.e2e_per_s - 1 / self.deliver_per_s
        return 1 / seconds if seconds > 0 else None


class Peers:
    """The peers' runs, each made once however many rows stand beside it."""

    def __init__(self, logs: Path, runs: int) -> None:
        self.folder = Path(os.environ.get("PEERS") or ROOT.parent / "shared" / "bench" / "peers").absolute()
        self._logs, self._runs = logs, runs
        self._known: dict[tuple[object, ...], list[Run]] = {}
        self.absent = "" if (self.folder / "run.sh").exists() else "the peers' folder is absent: set PEERS to it"
        if not self.absent and shutil.which("bash") is None:
            self.absent = "the peers need bash"

    @property
    def sink(self) -> Path | None:
        """The mail server that the peers use where latency is asked for."""
        path = self.folder.parent / "sink.py"
        return path if path.exists() else None

    def measure(
        self, peer: str, count: int, *, processes: int = 1, latency_ms: int = 0, threads: int | None = None
    ) -> Sequence[Run]:
        """Its runs; none when the peers are absent or this one fails, which is said."""
        key = (peer, count, processes, latency_ms, threads)
        if key not in self._known:
            try:
                self._known[key] = [] if self.absent else self._measure(*key)
            except OSError as error:
                say(f"peer {peer} was not measured: {error}")
                self._known[key] = []
        return self._known[key]

    def _measure(self, peer: str, count: int, processes: int, latency_ms: int, threads: int | None) -> list[Run]:
        found = []
        for number in range(1, self._runs + 1):
            say(f"peer {peer}, {count} messages, {latency_ms} ms: run {number} of {self._runs}")
            log = self._logs / f"peer-{peer}.json"
            log.unlink(missing_ok=True)
            process = Process(
                ["bash", str(self.folder / "run.sh"), peer, str(count), str(processes)],
                log,
                SINK_PORT=str(free_port()),
                LATENCY_MS=str(latency_ms),
                POST_OFFICE_THREADS=str(threads or 5),
                DJANGO_SETTINGS_MODULE=None,
            )
            try:
                process.wait(SECONDS)
            except NotMeasured as error:
                say(str(error))
            finally:
                process.end(whole_group=True)
            run = _read(log, count)
            if run is None:
                say(f"peer {peer} was not measured: {_last_line(log) or 'no answer'}")
                return []
            found.append(run)
        return found


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _read(log: Path, count: int) -> Run | None:
    """Its answer, if it delivered everything."""
    try:
        answer = json.loads(_last_line(log))
        if answer["sent"] != count:
            return None
        run = Run(count, float(answer["deliver_per_s"]), float(answer["e2e_per_s"]))
    except (ValueError, KeyError, TypeError):
        return None
    return run if run.deliver_per_s > 0 and run.e2e_per_s > 0 else None
