"""The writer: outcomes are written down on a thread of its own, so that a drain claims and renders meanwhile."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime

from notifications import crashpoints, recording
from notifications.dispatch.ledger import Claim
from notifications.handover import HandOver
from notifications.lifecycle import Ending
from notifications.recording import Sender
from tenants.connection import connection
from tenants.models import Tenant

WRITES_AHEAD = 2
"""How many sets of outcomes may wait for the writer."""

type Written = tuple[list[Ending], datetime | None]

_writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")


@dataclass(slots=True)
class Outcomes:
    """What came of one lane's hand-overs, until it is written down."""

    claim: Claim
    sender: Sender
    tenant: Tenant
    unwritten: list[HandOver] = field(default_factory=list)
    endings: list[Ending] = field(default_factory=list)
    """What was written down."""
    held_until: datetime | None = None
    """Until when the account is to be left alone, by what its provider answered."""
    _writing: deque[tuple[Sequence[HandOver], Future[Written]]] = field(default_factory=deque)

    @property
    def unseen(self) -> int:
        """How many of them are not yet written down, as far as is known."""
        return len(self.unwritten) + sum(len(overs) for overs, _ in self._writing)

    def write(self) -> None:
        """Have what has landed written down. In a caller's transaction there is only the one connection.

        Raises:
            DatabaseError: an earlier set was not written; it is among the unwritten again.
        """
        self.see(most=WRITES_AHEAD)
        if not self.unwritten:
            return
        overs, self.unwritten = self.unwritten, []
        if connection.in_atomic_block:
            self._writing.append((overs, _done_here(self, overs)))
        else:
            self._writing.append((overs, _writer.submit(self._write_elsewhere, overs)))

    def see(self, most: int = 0) -> None:
        """Wait until at most so many sets are left to write, and see what came of the others.

        Raises:
            DatabaseError: a set was not written; it is among the unwritten again.
        """
        while self._writing and (len(self._writing) > most or self._writing[0][1].done()):
            overs, future = self._writing.popleft()
            try:
                endings, until = future.result()
            except BaseException:
                self.unwritten = [*overs, *self.unwritten]
                # Their rows are as they were, and so is the lease to be renewed on them.
                self.claim.open.update(over.message.pk for over in overs)
                raise
            self.endings += endings
            self.held_until = until or self.held_until

    def _write(self, overs: Sequence[HandOver]) -> Written:
        crashpoints.reached("before_outcome_write")
        written = recording.write_down(self.claim, self.sender, overs)
        crashpoints.reached("after_outcome_write")
        return written

    def _write_elsewhere(self, overs: Sequence[HandOver]) -> Written:
        """The same on the writer's own connection, in the same schema."""
        try:
            connection.set_tenant(self.tenant)
            return self._write(overs)
        except BaseException:
            connection.close()
            raise
        finally:
            connection.set_schema_to_public()


def _done_here(outcomes: Outcomes, overs: Sequence[HandOver]) -> Future[Written]:
    future: Future[Written] = Future()
    try:
        future.set_result(outcomes._write(overs))
    except Exception as error:  # noqa: BLE001 (raised where it is seen)
        future.set_exception(error)
    return future


def close_connection() -> None:
    """Close the writer's connection; the next set opens another."""
    if _writer._threads:
        # A connection belongs to its thread, and is looked up there.
        _writer.submit(lambda: connection.close()).result()  # noqa: PLW0108
