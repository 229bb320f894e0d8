"""Hand-overs side by side: the threads that talk to providers. None of them touches the database.

Each adapter has a line of messages, served by at most as many threads as it has connections, in this process over
all lanes and turns. A stalled provider holds up its own line, and nobody else's.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from threading import Condition, Lock
from weakref import WeakKeyDictionary

from django.utils import timezone

from notifications import crashpoints
from notifications.channels import Accepted, Adapter, Failure, Outgoing, Unavailable, Uncertain
from notifications.dispatch.limiter import Grant
from notifications.due import DueMessage

logger = logging.getLogger(__name__)

MOST_THREADS = 256
"""In this process; beyond these, each provider has a few of its own, so that stalled ones never have them all."""
OWN_THREADS = 2
MOST_AT_ONCE = 128
"""How many messages may be under way, unless the provider has more connections."""
SHORTEST_WAIT, LONGEST_WAIT = 0.05, 0.15
"""Seconds after which free connections get more, whether or not half of them are free."""
STALLED_SECONDS = 1.0
"""A provider from which nothing has come back for so long is not waited for."""
AHEAD_SECONDS = 0.1
"""For how long ahead connections are given work: a killed process leaves so much more in doubt. Hand-overs that began
together end together, and of a wave's end half would find nothing to do if it were less."""
QUICK_SECONDS = 0.04
"""A hand-over that takes less is over before it is worth a thread of its own."""
SLOWER = 1.02
"""By how much, with each hand-over, less is made of how quick the quickest was."""

_threads = ThreadPoolExecutor(max_workers=MOST_THREADS + 200 * OWN_THREADS, thread_name_prefix="hand-over")


class _Shared:
    """How many of the threads that all providers share are in use."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._used = 0

    def take(self, wanted: int) -> int:
        with self._lock:
            taken = min(wanted, MOST_THREADS - self._used)
            self._used += taken
            return taken

    def give_back(self) -> None:
        with self._lock:
            self._used -= 1


_shared = _Shared()


@dataclass(frozen=True, slots=True)
class HandOver:
    """One hand-over and how it ended."""

    message: DueMessage
    started_at: datetime
    finished_at: datetime
    permit: Grant | None = None
    accepted: Accepted | None = None
    failure: Failure | None = None
    begun: bool = True
    """False when it was called off before anything of it was sent."""
    ended: float = field(default_factory=time.monotonic)


class _Line:
    """What waits for an adapter's connections in this process."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter_connections = max(adapter.connections, 1)
        self.lock = Condition()
        self.waiting: deque[tuple[Flight, DueMessage, Grant | None]] = deque()
        self.threads = 0
        self.under_way = 0
        self.landed_at = time.monotonic()
        self.pace = 1.0
        """Seconds that one hand-over takes, on average of late."""
        self.quickest = 1.0
        """The same at its best of late: so long a connection is needed, however many threads there are."""
        self.halted: Failure | None = None
        """What concerns the whole account, until nothing waits any more: what waits then is not begun."""

    def serve(self, adapter: Adapter) -> None:
        """Hand over what waits, one after the other, until nothing does. Runs in a thread."""
        while True:
            with self.lock:
                if not self.waiting:
                    if self.threads > OWN_THREADS:
                        _shared.give_back()
                    self.threads -= 1
                    return
                flight, message, permit = self.waiting.popleft()
                halted = self.halted
            began = time.monotonic()
            if halted is None:
                over = hand_over(adapter, message, permit, flight.schema_name)
            else:
                over = _called_off(message, permit, halted)
            with self.lock:
                self.under_way -= 1
                self.landed_at = time.monotonic()
                if over.begun:
                    took = time.monotonic() - began
                    self.pace += (took - self.pace) / 4
                    self.quickest = min(self.quickest * SLOWER, took)
                if isinstance(over.failure, Unavailable) and over.failure.account_wide:
                    self.halted = over.failure
                if not self.waiting:
                    self.halted = None
                self.lock.notify_all()
            flight.land(over)


_lines: WeakKeyDictionary[Adapter, _Line] = WeakKeyDictionary()
_lines_lock = Lock()


def _line_of(adapter: Adapter) -> _Line:
    with _lines_lock:
        return _lines.setdefault(adapter, _Line(adapter))


class Flight:
    """The messages of one lane that are on their way over one adapter."""

    def __init__(self, adapter: Adapter, schema_name: str) -> None:
        self.schema_name = schema_name
        self._adapter = adapter
        self._line = _line_of(adapter)
        self._landed: list[HandOver] = []
        self._condition = Condition()
        self._awaited = 1
        self.pending = 0
        """How many are launched and not yet taken by `landed`."""

    @property
    def window(self) -> int:
        """How many may be under way: as many as the provider takes at once, and what it takes in a moment.

        A process that is killed leaves what was launched in doubt, so this is no more than keeps connections busy.
        """
        line = self._line
        ahead = round(line.adapter_connections * AHEAD_SECONDS / max(line.pace, 1e-5))
        return max(line.adapter_connections, min(line.adapter_connections + ahead, MOST_AT_ONCE))

    def room(self, *, eager: bool = False) -> int:
        """How many more may be launched now; unless `eager`, not less than what is worth a commit."""
        window = self.window
        room = window - self._line.under_way
        return max(room, 0) if eager or room >= self.worth_while(window) else 0

    def worth_while(self, number: int) -> int:
        """How many out of so many are marked, or written down, together.

        Of a quick provider's it is half, so that one half is written down while the other is on its way. A slow one's
        connections would stand idle meanwhile.
        """
        return max(math.ceil(number / (2 if self._quick else 8)), 1)

    @property
    def busy(self) -> bool:
        """Whether there is time for something else: a slow provider's free connections come first."""
        return self._quick or not self.room()

    @property
    def _quick(self) -> bool:
        return self._line.pace < QUICK_SECONDS

    @property
    def queued(self) -> bool:
        """Whether some of them wait for a connection."""
        with self._line.lock:
            return any(entry[0] is self for entry in self._line.waiting)

    def wait_for_room(self, seconds: float) -> bool:
        """Wait until some connection of this process is free; False when all are taken for so long."""
        line = self._line
        with line.lock:
            if time.monotonic() - line.landed_at > STALLED_SECONDS:
                seconds = 0
            return line.lock.wait_for(lambda: line.under_way < line.adapter_connections, seconds)

    @property
    def patience(self) -> float:
        """Seconds in which half of what is under way should have landed."""
        return min(max(1.5 * self._line.pace, SHORTEST_WAIT), LONGEST_WAIT)

    def launch(self, messages: Sequence[DueMessage], permit: Grant | None = None) -> None:
        """Send messages on their way."""
        line = self._line
        self.pending += len(messages)
        with line.lock:
            line.waiting.extend((self, message, permit) for message in messages)
            line.under_way += len(messages)
        # As many threads as have something to do for a while, and one: more would only wait for each other.
        self._employ(1 + math.ceil(line.under_way * min(line.quickest / QUICK_SECONDS, 1)))

    def hurry(self) -> None:
        """Use every connection: it goes slower than it used to."""
        self._employ(self._line.adapter_connections)

    def _employ(self, threads: int) -> None:
        """Have so many threads, as far as there are connections and messages for them."""
        line = self._line
        with line.lock:
            wanted = min(threads, line.adapter_connections)
            more = max(min(wanted - line.threads, len(line.waiting)), 0)
            own = min(more, max(OWN_THREADS - line.threads, 0))
            more = own + _shared.take(more - own)
            line.threads += more
        for _ in range(more):
            _threads.submit(line.serve, self._adapter)

    def call_off(self) -> None:
        """Take back what no connection has got to yet: it has landed, not begun."""
        line = self._line
        with line.lock:
            mine = [entry for entry in line.waiting if entry[0] is self]
            line.waiting = deque(entry for entry in line.waiting if entry[0] is not self)
            line.under_way -= len(mine)
        for _, message, permit in mine:
            self.land(_called_off(message, permit))

    def land(self, over: HandOver) -> None:
        """Take one back; called by the threads."""
        with self._condition:
            self._landed.append(over)
            if len(self._landed) >= self._awaited:
                self._condition.notify()

    def landed(self, *, at_least: int, seconds: float) -> list[HandOver]:
        """Those that have come back since the last call, once there are so many or the time is over."""
        with self._condition:
            self._awaited = max(min(at_least, self.pending), 1)
            if self.pending:
                self._condition.wait_for(lambda: len(self._landed) >= self._awaited, seconds)
            taken, self._landed = self._landed, []
        self.pending -= len(taken)
        return taken


def _called_off(message: DueMessage, permit: Grant | None, reason: Failure | None = None) -> HandOver:
    now = timezone.now()
    return HandOver(message, now, now, permit, failure=reason, begun=False)


def hand_over(adapter: Adapter, message: DueMessage, permit: Grant | None, schema_name: str) -> HandOver:
    """Hand one message over; whatever happens is an answer. The schema is for the log: threads are in none."""
    started_at = timezone.now()
    accepted: Accepted | None = None
    failure: Failure | None = None
    try:
        crashpoints.reached("before_provider")
        accepted = adapter.send(outgoing(message))
        crashpoints.reached("after_provider")
    except Failure as error:
        failure = error
    except BaseException as error:
        # A fault of ours, before or after the provider took it: nobody knows, so nobody is told otherwise.
        logger.exception(
            "hand-over broke",
            extra={"schema": schema_name, "message_id": str(message.pk), "provider": adapter.provider},
        )
        failure = Uncertain(f"hand-over broke: {type(error).__name__}")
    return HandOver(message, started_at, timezone.now(), permit, accepted, failure)


def outgoing(message: DueMessage) -> Outgoing:
    """The message as plain values for an adapter."""
    domain = message.from_address.rpartition("@")[2] or "carillon.invalid"
    return Outgoing(
        reference=str(message.pk),
        to=message.to_address,
        to_name=message.to_name,
        from_address=message.from_address,
        from_name=message.from_name,
        reply_to=message.reply_to,
        subject=message.subject,
        text=message.body_text,
        html=message.body_html,
        headers=message.headers,
        message_id=f"<{message.pk}@{domain}>",
    )


def look_up(adapter: Adapter, messages: Sequence[DueMessage], schema_name: str) -> list[Accepted | Failure | None]:
    """Ask a provider about hand-overs of unknown fate, side by side; None where it does not have the message.

    Args:
        adapter: the provider's.
        messages: at most as many as it has connections.
        schema_name: for the log.
    """

    def ask(message: DueMessage) -> Accepted | Failure | None:
        try:
            return adapter.look_up(outgoing(message))
        except Failure as error:
            return error
        except Exception as error:
            extra = {"schema": schema_name, "message_id": str(message.pk), "provider": adapter.provider}
            logger.exception("look-up broke", extra=extra)
            return Uncertain(f"look-up broke: {type(error).__name__}")

    return list(_threads.map(ask, messages))
