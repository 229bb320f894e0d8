"""How a child process is made to die, or to wait, at a named point: read from `FAULT`.

`after_claim:3` dies at the third time; `after_provider:3:/some/file` makes the file at the third time, and waits there
until it is gone. `before_job` is a worker's own: between taking a bell from the queue and answering it. With
`poison:1`, preparing a message whose address begins with `poison` kills the worker.
"""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from notifications import crashpoints
from notifications.crashpoints import Point

DIED = 137


class _Fault:
    def __init__(self, told: str) -> None:
        self.point, _, rest = told.partition(":")
        number, _, file = rest.partition(":")
        self.number = int(number or 1)
        self.file = Path(file) if file else None
        self._lock = threading.Lock()

    def reached(self, point: str) -> None:
        """Die, or wait, if this is the point and the time."""
        if point != self.point:
            return
        with self._lock:
            self.number -= 1
            now = self.number == 0
        if not now:
            return
        if self.file is None:
            os._exit(DIED)
        self.file.touch()
        while self.file.exists():
            time.sleep(0.01)


def install() -> str:
    """Have this process fail as `FAULT` says; the point, '' for none."""
    told = os.environ.get("FAULT", "")
    if not told:
        return ""
    fault = _Fault(told)

    def hook(point: Point) -> None:
        fault.reached(point)

    crashpoints.hook = hook
    reached[0] = fault.reached
    return fault.point


def _nothing(_: str) -> None:
    """No fault is installed."""


reached: list[Callable[[str], None]] = [_nothing]
"""What tests call at points of their own."""
