"""The clock: `python -m services.scheduler`. Every 15 seconds it rings for all due work that the ledger holds.

The sweep runs here and not as a queued job, so that nothing lost in Redis can stop it. Any number of these may
run: bells coalesce.
"""

import logging
import signal
import threading
from types import FrameType

from services.start import configure, require_servers

configure()

import django  # noqa: E402 (settings are read first)

django.setup()

from django.db import DatabaseError  # noqa: E402

from notifications.dispatch.sweep import sweep  # noqa: E402
from tenants.connection import connection  # noqa: E402

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 15.0


def run(stop: threading.Event, seconds: float = SWEEP_SECONDS) -> None:
    """Sweep, wait, and again, until told to stop. A database that is away is tried again at the next time."""
    while True:
        try:
            connection.close_if_unusable_or_obsolete()
            connection.set_schema_to_public()
            sweep()
        except DatabaseError as error:
            logger.warning("no sweep, the database does not answer: %s", type(error).__name__)
        if stop.wait(seconds):
            return


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
