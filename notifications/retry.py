"""When to try again: a table and a pure question. Jitter is added where the work is planned."""

from collections.abc import Sequence
from datetime import timedelta


def delay_before(attempt: int, delays: Sequence[int]) -> timedelta:
    """How long to wait after the given attempt (1 is the first) before the next; the last delay repeats."""
    return timedelta(seconds=delays[min(attempt, len(delays)) - 1]) if delays else timedelta()
