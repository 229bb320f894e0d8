"""Delivering: one turn of a worker for one tenant in one queue.

The tenant's lanes go by turns, least recently served first, until their due work or about half a second is used up. No
transaction spans a hand-over, and no turn waits for a slow provider.
"""

import os
import socket
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import astuple, dataclass
from uuid import UUID

from notifications import latecomers, writing
from notifications.dispatch import bells, lanes
from notifications.dispatch.lanes import DueLane
from notifications.dispatch.ledger import Claim
from notifications.drain import GRACE_SECONDS, Drain
from notifications.lifecycle import Ending
from notifications.models import MessageStatus, OutboxMessage
from tenants.connection import connection
from tenants.context import current_tenant_id, tenant_context
from tenants.models import Tenant

TURN_SECONDS = 0.5


def worker_name() -> str:
    """What this process is called in leases and attempts."""
    return f"{socket.gethostname()}:{os.getpid()}"


@dataclass(slots=True)
class Tally:
    """What a turn did, in messages."""

    sent: int = 0
    failed: int = 0
    later: int = 0
    dropped: int = 0
    under_way: int = 0
    """Handed over, and not answered by the turn's end."""

    @property
    def total(self) -> int:
        """All messages that the turn took up."""
        return self.sent + self.failed + self.later + self.dropped + self.under_way

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(mine + more for mine, more in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        said = f"{self.sent} sent, {self.later} later, {self.failed} failed, {self.dropped} suppressed"
        return f"{said}, {self.under_way} under way" if self.under_way else said

    def landed(self, endings: Sequence[Ending], number: int) -> None:
        """Add so many that were under way before; those without an ending were not begun, and wait as they were."""
        self.under_way -= number
        self.count(endings)

    def count(self, endings: Iterable[Ending]) -> None:
        """Add what was recorded."""
        for ending in endings:
            if ending.status == MessageStatus.SENT:
                self.sent += 1
            elif ending.status == MessageStatus.FAILED:
                self.failed += 1
            elif ending.status == MessageStatus.SUPPRESSED:
                self.dropped += 1
            else:
                self.later += 1


def take_turn(
    queue: str,
    *,
    worker: str = "",
    limit: int | None = None,
    manual: bool = False,
    seconds: float = TURN_SECONDS,
    outboxes: Collection[UUID] | None = None,
    late: Tally | None = None,
) -> Tally:
    """Work for the current tenant in one queue until its due work or the time is used up.

    Args:
        queue: a priority's name.
        worker: written on the leases.
        limit: at most so many messages.
        manual: take rows flagged for the commands too.
        seconds: after so long no hand-over begins but the first.
        outboxes: only the lanes of these; all when None.
        late: where to add what lands after the turn. It is written to by another thread, and so by itself alone.
    """
    schema_name = connection.schema_name
    bells.answered(schema_name, queue)
    tally = Tally()
    deadline = time.monotonic() + seconds
    claim_of = worker or worker_name()
    tenant_id = current_tenant_id()
    for position, lane in enumerate(_served(lanes.due(tenant_id=tenant_id, queue=queue, manual=manual), outboxes)):
        overdue = time.monotonic() - deadline
        if overdue > 0 and (tally.total or (position and overdue > GRACE_SECONDS)):
            bells.ring(schema_name, queue)
            break
        left = None if limit is None else limit - tally.total
        if left is not None and left <= 0:
            break
        # Before its work: when the time is used up here, the next turn begins with another lane.
        lanes.served(lane.id)
        drain = Drain(lane, queue, Claim(tenant_id, claim_of[:100]), deadline, left=left, manual=manual)
        drain.on_late = None if late is None else late.landed
        tally.count(drain.run())
        tally.under_way += drain.left_under_way
        if drain.more:
            bells.ring(schema_name, queue)
            break
    return tally


def _served(found: list[DueLane], outboxes: Collection[UUID] | None) -> list[DueLane]:
    return [lane for lane in found if outboxes is None or lane.outbox_uuid in outboxes]


def deliver_one(message_id: UUID, lane_id: int, *, schema_name: str) -> None:
    """Deliver one message in the calling process (dispatch mode `inline`)."""
    tenant = Tenant.objects.serving().filter(schema_name=schema_name).first()
    if tenant is None:
        # A suspended tenant's messages wait in every mode.
        return
    with tenant_context(tenant):
        message = OutboxMessage.objects.get(pk=message_id)
        lane = DueLane(lane_id, message.outbox_scope, message.outbox_uuid)
        claim = Claim(current_tenant_id(), worker_name()[:100])
        # Whoever names a message wants that one, also where commands take all others.
        Drain(lane, message.priority, claim, only=message_id, left=1, manual=True).run()


def finish_late(seconds: float | None = None) -> bool:
    """Wait until nothing is on its way any more, at the end of a process; False when the time was over before."""
    finished = latecomers.wait(seconds)
    writing.close_connection()
    return finished
