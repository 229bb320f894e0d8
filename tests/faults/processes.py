"""The processes of a case: each is ended by its own id, and may be started again whenever it ends."""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.processes import Process


class Failed(Exception):
    """Something that had to happen did not."""


class Child(Process):
    """A process of a case."""

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        self._signal(number, whole_group=False)

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._child.poll()

    def gone(self, seconds: float) -> int:
        """Its exit code, once it has ended by itself."""
        return self.wait(seconds)

    def most_megabytes(self) -> float:
        """The most memory that it had resident so far (proc_pid_status(5), VmHWM)."""
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
        most = next(line for line in lines if line.startswith("VmHWM:"))
        return int(most.split()[1]) * 1024 / 1e6

    def says(self, text: str) -> bool:
        """Whether its log holds a text."""
        return text in self.log.read_text(encoding="utf-8", errors="replace")


@dataclass(slots=True)
class Kept:
    """A process that is started again whenever it ends, as Kubernetes does."""

    start: Callable[[], Child]
    child: Child
    again_at: float = 0.0
    restarts: int = 0


@dataclass(slots=True)
class Provider:
    """A fake provider."""

    kind: str
    port: int
    receipts: Path
    process: Child

    def address(self, name: str) -> str:
        """Whom a message by that name goes to."""
        return f"{name}@example.com" if self.kind == "smtp" else f"http://127.0.0.1:{self.port}/{name}"

    def attempts(self) -> int:
        """How many receipts it has written."""
        return self.receipts.read_bytes().count(b"\n") if self.receipts.exists() else 0
