"""The clock: `python -m services.scheduler`.

Every second it rings the bells that were planned for later and enqueues the periodic jobs that are due, and it wakes
each lane at the moment when its sender may send again. Every 15 seconds it rings for all due work that the ledger
holds: that sweep runs here and not as a queued job, so that nothing lost in Redis can stop it. Any number of these may
run, and any of them may be killed at any time.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

# rq-scheduler reads the clock without a zone in places.
os.environ["TZ"] = "UTC"
time.tzset()

from services.start import configure, require_servers  # noqa: E402

configure()

import django  # noqa: E402 (settings are read first)

django.setup()

from django.db import DatabaseError  # noqa: E402
from redis import RedisError  # noqa: E402

from notifications.dispatch import bells  # noqa: E402
from notifications.dispatch.sweep import sweep, wake  # noqa: E402
from notifications.jobs import keep_periodic_jobs  # noqa: E402
from tenants.connection import connection  # noqa: E402

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 15.0
TICK_SECONDS = 1.0
SHORTEST_WAIT = 0.02
LATE_SECONDS = 0.02
"""How long after a whole second it looks, as that is when planned bells are due."""


class _Outage:
    """Says once that a server is away, and once that it is back."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.since: float | None = None

    def begins(self, error: Exception) -> None:
        if self.since is None:
            self.since = time.monotonic()
            logger.warning("%s does not answer: %s", self.what, type(error).__name__)

    def ends(self) -> None:
        if self.since is not None:
            logger.warning("%s answers again, after %.0f s", self.what, time.monotonic() - self.since)
            self.since = None


def run(stop: threading.Event, seconds: float = SWEEP_SECONDS) -> None:
    """Sweep, wake and look after the schedule until told to stop. A server that is away is tried again and again."""
    database, redis = _Outage("the database"), _Outage("Redis")
    next_sweep = time.monotonic()
    while not stop.is_set():
        due = time.monotonic() >= next_sweep
        if due:
            next_sweep = time.monotonic() + seconds
            _reach(redis, keep_periodic_jobs)
        waking: float | None = None
        try:
            connection.close_if_unusable_or_obsolete()
            connection.set_schema_to_public()
            if due:
                sweep()
            waking = wake()
            database.ends()
        except DatabaseError as error:
            database.begins(error)
        _reach(redis, bells.look_after_schedule)
        now = time.time()
        tick = TICK_SECONDS - now % TICK_SECONDS + LATE_SECONDS
        wait = min(tick, next_sweep - time.monotonic(), tick if waking is None else waking)
        stop.wait(max(wait, SHORTEST_WAIT))


def _reach(redis: _Outage, look: Callable[[], None]) -> None:
    try:
        look()
        redis.ends()
    except (RedisError, OSError) as error:
        redis.begins(error)


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    require_servers()
    stop = threading.Event()

    def end(_: int, __: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    run(stop)


if __name__ == "__main__":
    main()
