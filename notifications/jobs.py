"""Jobs: names and ids in, one call out. A job's dotted name is a contract with what is queued already."""

from notifications import delivery
from tenants.jobs import tenant_job


@tenant_job
def drain(queue: str) -> None:
    """Answer a bell: one turn for one tenant in one queue."""
    delivery.take_turn(queue)
