"""The cases: what is broken, and what must hold then. A module tells those of one theme.

The numbers are those of the usual faults of such a service; `x` is beyond them. A case's bounds hold whatever its
volume is: `QUICK=1` changes the volumes only.
"""

from tests.faults.cases import (
    accepting,
    answers,
    clocks,
    content,
    crash_points,
    database,
    outages,
    schedulers,
    valkey,
    workers,
)
from tests.faults.cases.base import CASES as _CASES
from tests.faults.cases.base import Case

THEMES = (workers, valkey, database, accepting, answers, outages, clocks, schedulers, content, crash_points)

CASES: dict[str, Case] = dict(sorted(_CASES.items()))
"""By name."""

LEFT_OUT = {
    "20-partial-rcpt": "a message has one recipient: there is no partial refusal",
    "26-leap-second": "no leap second can be made here; DST changes nothing, as all times are UTC",
    "28-attachments": "there are no attachments yet",
    "30-receipts": "there are no receipts from providers yet",
}
"""What is not run, and why."""
