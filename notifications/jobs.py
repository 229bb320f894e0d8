"""Jobs: names and ids in, one call out. A job's dotted name is a contract with what is queued already."""

from dataclasses import dataclass
from datetime import timedelta

from notifications import delivery, queues
from tenants.jobs import tenant_job


@tenant_job
def drain(queue: str) -> None:
    """Answer a bell: one turn for one tenant in one queue."""
    delivery.take_turn(queue)


@dataclass(frozen=True, slots=True)
class Periodic:
    """A job that comes again and again, under one name for ever."""

    name: str
    every: timedelta
    function: str


PERIODIC = (
    Periodic("periodic-process-scheduled", timedelta(minutes=1), "notifications.tasks.process_scheduled_notifications"),
    Periodic("periodic-retry-failed", timedelta(minutes=5), "notifications.tasks.retry_failed_notifications"),
)


def keep_periodic_jobs() -> None:
    """See that every periodic job is in the schedule: Redis may have been wiped, or a scheduler killed in between.

    Raises:
        RedisError: Redis does not answer.
    """
    for job in PERIODIC:
        queues.schedule().keep(job.name, job.every, job.function, queue="maintenance")
