"""A worker for one queue: `python -m services.worker default`.

One queue a process: a worker that listens on several loses what it had popped when it is killed. It does not
fork for each job, so that templates and connections stay warm.
"""

import argparse
import os
import socket
from typing import Any
from uuid import uuid4

from services.start import configure, require_servers

configure()

import django  # noqa: E402 (settings are read first)

django.setup()

from django.conf import settings  # noqa: E402
from rq import Queue, SimpleWorker  # noqa: E402
from rq.serializers import JSONSerializer  # noqa: E402
from rq.timeouts import BaseDeathPenalty  # noqa: E402

from notifications import adapters, delivery, queues  # noqa: E402
from notifications.queues import JsonJob  # noqa: E402
from tenants.connection import connection  # noqa: E402


class NoPenalty(BaseDeathPenalty):
    """A drain keeps its own deadline: an alarm could fire while outcomes are being written."""

    def setup_death_penalty(self) -> None:
        """Set no alarm."""

    def cancel_death_penalty(self) -> None:
        """There is none to cancel."""


class Worker(SimpleWorker):
    """Runs bells in this process, and gives each a usable database connection in public."""

    death_penalty_class = NoPenalty

    def perform_job(self, job: Any, queue: Any) -> bool:
        """Run one job."""
        connection.close_if_unusable_or_obsolete()
        try:
            return bool(super().perform_job(job, queue))
        finally:
            connection.set_schema_to_public()


def main() -> None:
    """Work until told to stop: SIGTERM finishes the turn first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queue", choices=settings.QUEUES)
    name = parser.parse_args().queue
    require_servers()
    # On connections of its own: it waits long on these, and bells must not.
    queue = Queue(name, connection=queues.connect(), job_class=JsonJob, serializer=JSONSerializer)
    worker = Worker(
        [queue],
        name=f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}",
        connection=queue.connection,
        job_class=JsonJob,
        serializer=JSONSerializer,
        worker_ttl=90,
        maintenance_interval=60,
    )
    try:
        worker.work(logging_level="WARNING")
    finally:
        delivery.finish_late()
        adapters.close_all()


if __name__ == "__main__":
    main()
