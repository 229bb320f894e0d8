"""Passes over all tenants: what the commands do by themselves, without workers and without Redis.

Tenants take turns, the most pressing queue first, until nothing is due any more. What breaks in one tenant's turn is
logged and keeps nothing from the others; a database that is away ends the pass.
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from django.conf import settings
from django.db.models.functions import Now

from notifications import delivery, lifecycle
from notifications.delivery import Tally
from notifications.dispatch.models import Kind, LedgerRow
from notifications.dispatch.sweep import waiting
from notifications.exceptions import CommunicationError
from notifications.models import NotificationChannel, Outbox, Priority
from tenants.connection import connection
from tenants.context import public_context, tenant_context
from tenants.models import Tenant

logger = logging.getLogger(__name__)

PASS_SECONDS = 600.0
"""How long a pass goes on with work that came after it had begun."""
TURN_SECONDS = 30.0
"""How long one tenant's turn lasts at most, and so how long the others, and who wants to stop, wait for it."""
LATE_SECONDS = 1.0
"""How often it is looked whether there is more to do, while a slow provider still has messages."""
OUTGOING = tuple(Priority.values)
"""The queues of messages that go out, most pressing first."""
REOPENED_AT_ONCE = 1000

type Turn = tuple[str, str]
"""A tenant's schema and a queue."""


@dataclass(slots=True)
class Pass:
    """One time over all tenants that are served, or over one of them; afterwards it says what was done."""

    schema_name: str | None = None
    """Only this tenant."""
    kind: str | None = None
    """Only messages of this channel."""
    limit: int | None = None
    """At most so many messages of each tenant."""
    worker: str = ""
    """The name on leases and attempts."""
    manual: bool = True
    """Take messages that are kept for the commands, too."""
    stopped: Callable[[], bool] = lambda: False
    """Asked after each turn: whether that was the last one."""
    progress: Callable[["Pass"], None] = lambda _: None
    """Called after each turn."""

    turns: Tally = field(default_factory=Tally)
    late: Tally = field(default_factory=Tally)
    """What landed after its turn; written to by another thread."""
    reopened: int = 0
    """How many failed messages were taken up again."""
    tenants: set[str] = field(default_factory=set)
    """The schemas of those that had a turn."""
    broken: set[str] = field(default_factory=set)
    """The schemas of those in which something broke; the log says what."""

    _left: dict[str, int] = field(default_factory=dict)
    _senders: set[UUID] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Refuse a channel that does not exist.

        Raises:
            CommunicationError: naming those that do.
        """
        if self.kind is not None and self.kind not in NotificationChannel.values:
            raise CommunicationError(f"kind={self.kind!r} is none of {', '.join(NotificationChannel.values)}")

    @property
    def tally(self) -> Tally:
        """What was done with messages."""
        return self.turns + self.late

    def reopen(self, max_age: timedelta, *, paced: bool) -> None:
        """Take failed messages up again whose failure may have passed, as `lifecycle.reopen_failed` says.

        Raises:
            OperationalError: the database is away.
        """
        serving = Tenant.objects.serving().order_by("schema_name").values_list("schema_name", flat=True)
        for schema_name in [self.schema_name] if self.schema_name else list(serving):
            if self.stopped():
                return
            self._inside(schema_name, lambda: self._reopen_here(max_age, paced=paced))

    def _reopen_here(self, max_age: timedelta, *, paced: bool) -> None:
        left = self.limit
        while left is None or left > 0:
            size = REOPENED_AT_ONCE if left is None else min(left, REOPENED_AT_ONCE)
            number = lifecycle.reopen_failed(max_age=max_age, paced=paced, channel=self.kind, limit=size)
            self.reopened += number
            if number < size:
                return
            left = None if left is None else left - number

    def deliver(self) -> None:
        """Deliver everything that is due, in turns of at most `PROCESSING_BATCH_SIZE` messages.

        Raises:
            OperationalError: the database is away.
        """
        if self.kind is not None:
            with public_context():
                self._senders = set(_senders_of(self.kind))
        deadline = time.monotonic() + PASS_SECONDS
        due_first = LedgerRow.objects.filter(kind=Kind.SEND, due_at__lte=Now()).count()
        finished: set[Turn] = set()
        settled = False
        while not self.stopped():
            if time.monotonic() >= deadline and self.tally.total >= due_first:
                return
            if turns := [turn for turn in self._due() if turn not in finished]:
                for turn in turns:
                    if self.stopped():
                        return
                    if self._take(*turn):
                        settled = False
                    else:
                        finished.add(turn)
            elif settled and delivery.finish_late(0):
                return
            else:
                # What a slow provider had may have kept more from going: once it has landed, all are asked again, but
                # for those in which something broke.
                settled = delivery.finish_late(LATE_SECONDS)
                finished = {turn for turn in finished if turn[0] in self.broken}

    def _due(self) -> list[Turn]:
        found = [turn for turn in waiting(manual=self.manual) if turn[1] in OUTGOING]
        mine = [turn for turn in found if self.schema_name in {None, turn[0]} and self._allowed(turn[0]) > 0]
        return sorted(mine, key=lambda turn: (OUTGOING.index(turn[1]), turn[0]))

    def _allowed(self, schema_name: str) -> int:
        size: int = settings.NOTIFICATION_SETTINGS["PROCESSING_BATCH_SIZE"]
        return size if self.limit is None else min(size, self._left.get(schema_name, self.limit))

    def _take(self, schema_name: str, queue: str) -> bool:
        """Take one turn; whether another one might find more."""
        allowed = self._allowed(schema_name)
        if allowed <= 0:
            return False
        tally = self._inside(schema_name, lambda: self._turn(queue, allowed))
        if tally is None:
            return False
        self.tenants.add(schema_name)
        self.turns += tally
        if self.limit is not None:
            self._left[schema_name] = self._left.get(schema_name, self.limit) - tally.total
        self.progress(self)
        return tally.total > 0

    def _turn(self, queue: str, allowed: int) -> Tally:
        return delivery.take_turn(
            queue,
            worker=self.worker,
            limit=allowed,
            manual=self.manual,
            seconds=TURN_SECONDS,
            outboxes=None if self.kind is None else self._senders.union(_senders_of(self.kind)),
            late=self.late,
        )

    def _inside[T](self, schema_name: str, call: Callable[[], T]) -> T | None:
        """Call a function in a tenant's schema; None when the tenant is not served any more, or something broke.

        Raises:
            OperationalError: the database is away.
        """
        try:
            tenant = Tenant.objects.serving().filter(schema_name=schema_name).defer("migrations").first()
            if tenant is None:
                return None
            with tenant_context(tenant):
                return call()
        except Exception:
            revive_connection()
            logger.exception("a tenant's turn broke", extra={"schema": schema_name})
            self.broken.add(schema_name)
            return None


def _senders_of(kind: str) -> Iterable[UUID]:
    """The outboxes of a channel in the current schema."""
    return Outbox.objects.filter(account__kind=kind).values_list("pk", flat=True)


def revive_connection() -> None:
    """Make the thread's connection anew if it is dead.

    Raises:
        OperationalError: the database is away.
    """
    if not (connection.in_atomic_block or connection.is_usable()):
        connection.close()
        connection.ensure_connection()
