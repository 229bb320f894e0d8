"""Draining one lane for as long as its part of a turn lasts: claim, prepare, mark, hand over, have it written down.

One batch is written down while the next is on its way. At the end of the turn, what is not begun is given back, and
what is on its way lands beside the turns that follow.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.db import transaction

from notifications import adapters, crashpoints, due, latecomers, lifecycle, preparing, recording, routing
from notifications.channels import Adapter, Failure, Rejected, Unavailable
from notifications.dispatch import bells, circuits, lanes, ledger, limiter
from notifications.dispatch.lanes import DueLane
from notifications.dispatch.ledger import Claim, Claimed
from notifications.dispatch.limiter import Grant, Limit
from notifications.due import DueMessage
from notifications.exceptions import HandlerNotAllowed
from notifications.handling import HandlerAdapter, HandlerFlight
from notifications.handover import SHORTEST_WAIT, Flight
from notifications.lifecycle import Ending
from notifications.models import MessageStatus, Scope
from notifications.recording import Sender
from notifications.writing import Outcomes
from tenants.connection import connection, one_trip
from tenants.models import Tenant

GRACE_SECONDS = 0.25
"""How long a lane without more work waits, after the turn's end, for what is on its way."""
DEATHS_ALONE = 3
PERMIT_SECONDS = 900.0
"""Longer than any hand-over takes, each reply as late as an account may allow; so long a dead worker's permits are in
use."""
PRESSING_SECONDS = 120.0
"""For how long, beyond a limit's window, more pressing messages are expected to be begun by somebody."""
GIVE_WAY = timedelta(seconds=1)
"""How long a lane waits that has left its permits to more pressing messages."""


@dataclass(slots=True)
class Drain:
    """One lane's part of a turn."""

    lane: DueLane
    queue: str
    claim: Claim
    deadline: float = math.inf
    only: UUID | None = None
    left: int | None = None
    """How many messages may still be claimed; None: any number."""
    manual: bool = False

    more: bool = False
    """Whether there is work left that the time did not suffice for."""
    endings: list[Ending] = field(default_factory=list)
    """Of messages that were not handed over."""
    held_until: datetime | None = None
    """Until when the sender must wait."""

    tenant: Tenant = field(init=False)
    sender: Sender = field(init=False)
    flight: Flight = field(init=False)
    outcomes: Outcomes = field(init=False)
    asked: bool = True
    """Whether the lane may hold more than was claimed."""
    rung: bool = False
    """Whether others were rung for to join in."""
    ready: deque[DueMessage] = field(default_factory=deque)
    suspects: list[Claimed] = field(default_factory=list)
    begun: set[UUID] = field(default_factory=set)
    broken: bool = False
    """Whether an error ended its turn, so that claimed messages are left."""
    begun_at: float | None = None
    """When messages were last sent on their way."""
    on_late: Callable[[Sequence[Ending], int], None] | None = None
    """Called by the thread that writes down what lands after the turn: with the endings, and how many landed."""
    left_under_way: int = 0
    """How many were, at the turn's end, not written down yet."""
    _told: int = 0
    _untold: int = 0
    """How many of these are still to be told of; the latecomers' thread counts it down."""

    def run(self) -> list[Ending]:
        """Bring the lane's due messages to an ending, as far as the time goes; those that are written down."""
        self.tenant = connection.tenant
        problem = self._find_sender()
        if problem is not None:
            self._refuse_all(problem)
            return self.endings
        try:
            self._work()
        except BaseException:
            self.broken = True
            raise
        finally:
            written = list(self.outcomes.endings)
            self._told = len(written)
            self.left_under_way = self._untold = self._under_way
            if self.broken or self.left_under_way:
                latecomers.add(self)
        return [*self.endings, *written]

    def _work(self) -> None:
        state = self.sender.state
        if state.until is not None:
            self._leave_alone(state.until)
        elif not self.flight.wait_for_room(GRACE_SECONDS):
            # A slow provider has all the connections of this process; the next message that lands rings.
            return
        elif state.half_open and not circuits.probe(self.sender.who):
            # Another worker tries the account just now.
            lanes.hold_for(self.lane.id, circuits.PAUSE)
        else:
            self._drain()
            if state.half_open and self.begun_at is None:
                circuits.leave(self.sender.who)

    def take_back(self) -> bool:
        """Write down what has landed since the turn ended; whether that was the last of it."""
        if self.broken:
            # What was claimed for nothing need not wait for its lease to end.
            ledger.release(self.claim, list(self.claim.open - self.begun))
            self.broken = False
        self.flight.hurry()
        landed = self.flight.landed(at_least=1, seconds=0)
        self.outcomes.unwritten += landed
        ledger.hold(self.claim)
        self.outcomes.write()
        self._see_outcomes()
        self._tell()
        if landed:
            # The lane may have been passed over meanwhile, because its connections were taken.
            bells.ring(connection.schema_name, self.queue)
        return not self.pending

    @property
    def _under_way(self) -> int:
        return self.pending + self.outcomes.unseen

    def _tell(self) -> None:
        written = self.outcomes.endings[self._told :]
        self._told += len(written)
        landed, self._untold = self._untold - self._under_way, self._under_way
        if self.on_late is not None and landed:
            self.on_late(written, landed)

    # The sender.

    def _find_sender(self) -> Failure | None:
        """Find the outbox and its adapter; what is wrong with them, if something is."""
        scope = self.lane.outbox_scope
        outbox = routing.outbox_at(scope, self.lane.outbox_uuid)
        if outbox is None:
            return Rejected("the outbox is gone")
        if not (outbox.is_active and outbox.account.is_active):
            return Unavailable("the outbox or its account is switched off")
        adapter: Adapter
        try:
            if outbox.handler:
                adapter = handled = HandlerAdapter({"handler": outbox.handler})
                self.flight = HandlerFlight(handled, connection.schema_name)
            else:
                adapter = adapters.adapter_for(outbox.account, scope)
                self.flight = Flight(adapter, connection.schema_name)
        except HandlerNotAllowed as error:
            return Unavailable(str(error))
        except (Rejected, Unavailable) as error:
            return error
        owner = limiter.PLATFORM if scope == Scope.PLATFORM else self.claim.tenant_id
        state = circuits.state_of(owner, outbox.account_id)
        self.sender = Sender(outbox, scope, adapter, routing.limit_of(outbox, scope), state)
        self.outcomes = Outcomes(self.claim, self.sender, self.tenant)
        return None

    def _refuse_all(self, problem: Failure) -> None:
        """Nothing can leave: what cannot be mended fails, else the lane waits, and so do all that have not expired."""
        held = False
        while self._in_time() and self._claim(prepared=False):
            left = [row for row in self.claim.rows if not row.handed_over]
            # A suspect keeps its deaths while it waits.
            suspects = [row.item for row in left if row.suspect and not isinstance(problem, Rejected)]
            messages = self._load([row.item for row in left if row.item not in suspects])
            now = self.claim.now()
            ledger.leave(self.claim, suspects)
            held = held or bool(suspects)
            if isinstance(problem, Rejected):
                over = [recording.failed(m, str(problem), now, error_class=problem.error_class) for m in messages]
            else:
                over = [recording.failed(m, "expired", now) for m in messages if m.expires_at <= now]
                waiting = [message for message in messages if message.expires_at > now]
                self.endings += recording.wait_for_mending(self.claim, waiting, str(problem))
            self.endings += recording.stop(self.claim, over)
        self.more = self.asked
        if held or (self.more and not isinstance(problem, Rejected)):
            lanes.hold_for(self.lane.id, recording.mending_pause())
            self.more = False

    def _in_time(self) -> bool:
        """Whether there is time for a batch that nothing is handed over of; the first has it always."""
        return not self.claim.rows or time.monotonic() < self.deadline

    def _leave_alone(self, until: datetime) -> None:
        """The account is held: what waits goes by other senders where there are some, else the lane waits."""
        others = self.sender.others()
        if not others:
            self._hold(until)
            return
        while self._in_time() and self._claim(prepared=False):
            messages = self._load([row.item for row in self.claim.rows if not row.suspect])
            tried = recording.tried_outboxes(messages)
            for other in others:
                going = [
                    message
                    for message in messages
                    if message.status in lifecycle.OPEN
                    and other.pk not in tried[message.pk]
                    and recording.may_stand_in(other, message)
                ]
                with transaction.atomic():
                    recording.move(self.claim, going, other, self.sender.scope)
                messages = [message for message in messages if message not in going]
            ledger.postpone(self.claim, [message.pk for message in messages], [until] * len(messages))
            ledger.leave(self.claim, [row.item for row in self.claim.rows if row.suspect and not row.handed_over])
        self.more = self.asked

    def _hold(self, until: datetime) -> None:
        self.held_until = until
        lanes.hold(self.lane.id, until)

    # Claiming.

    def _claim(self, *, most: int | None = None, prepared: bool = True) -> bool:
        """Claim another batch, and prepare it; whether there was one."""
        batch: int = settings.NOTIFICATION_SETTINGS["PROCESSING_BATCH_SIZE"]
        size = min(batch, most or batch, batch if self.left is None else self.left)
        if not self.asked or size <= 0:
            return False
        rows = ledger.extend(self.claim, self.lane.id, limit=size, manual=self.manual, only=self.only)
        crashpoints.reached("after_claim")
        self.asked = len(rows) == size
        if self.left is not None:
            self.left -= len(rows)
        if self.asked and not self.rung:
            # A full batch: others may join in, and whoever does rings for the next.
            self.rung = bells.ring(connection.schema_name, self.queue)
        if marked := [row.item for row in rows if row.handed_over]:
            self.endings += recording.settle_marked(self.claim, self.lane.outbox_scope, self.lane.outbox_uuid, marked)
        if prepared:
            self.suspects += [row for row in rows if row.suspect and not row.handed_over]
            self.ready += self._prepared([row.item for row in rows if not row.suspect])
        return bool(rows)

    @property
    def _may_claim(self) -> bool:
        """Whether the lane may hold more, and this part of the turn may take it."""
        return self.asked and self.left != 0

    def _load(self, items: Sequence[UUID]) -> list[DueMessage]:
        messages = due.load(items)
        known = {message.pk for message in messages}
        ledger.finish(self.claim, [item for item in items if item not in known])
        return messages

    def _prepared(self, items: Sequence[UUID]) -> list[DueMessage]:
        messages = self._load(items)
        if not messages:
            return []
        unknown = [m for m in messages if m.status == MessageStatus.UNCERTAIN and m.channel in recording.COSTLY]
        if unknown:
            endings, again = recording.ask_about(self.claim, unknown, self.sender.adapter)
            self.endings += endings
            messages = [message for message in messages if message not in unknown or message in again]
        ready, endings = preparing.prepare(self.claim, messages)
        self.endings += endings
        return ready

    # Handing over.

    @property
    def pending(self) -> int:
        """How many messages are on their way."""
        return self.flight.pending if self.begun_at is not None else 0

    def _over(self) -> bool:
        return self.begun_at is not None and time.monotonic() >= self.deadline

    def _drain(self) -> None:
        """Keep the adapter's connections busy until the lane is empty, the time is over or its sender must wait."""
        eager = False
        while True:
            ledger.hold(self.claim)
            if self._may_begin():
                self._begin(eager=eager)
            waiting = bool(self.ready or self._may_claim) and self._may_begin()
            there_is_more = self._over() and bool(self.ready or self.asked)
            if there_is_more or not (self.pending or waiting):
                break
            patience = self._patience()
            if patience <= 0:
                break
            eager = self._collect(min(patience, self.flight.patience), all_of_them=not waiting)
        if self.flight.queued:
            # A quick provider gets to them in a moment; a stalled one never would.
            self._collect(self.flight.patience, all_of_them=True)
            self.flight.call_off()
            self._collect(0, all_of_them=False)
        self._see_outcomes()
        for suspect in self.suspects:
            self._alone(suspect)
        if self.ready:
            ledger.release(self.claim, [message.pk for message in self.ready])
            self.more = self.held_until is None or bool(self.sender.stand_ins)
        elif self._may_claim and self.held_until is None:
            self.more = True

    def _begin(self, *, eager: bool) -> None:
        """Claim if there is nothing ready, send on their way as many as there is room for, and prepare the next."""
        most = 1 if self._probing() else self.flight.window
        if not self.ready:
            self._claim(most=most)
        if self.ready:
            self._launch(min(most, self.flight.room(eager=eager or most == 1)))
        in_time = time.monotonic() + self.flight.patience < self.deadline
        if in_time and self._may_begin() and 2 * len(self.ready) < most and self.flight.busy:
            self._claim(most=most)

    def _probing(self) -> bool:
        return self.sender.state.half_open

    def _may_begin(self) -> bool:
        probed = self._probing() and self.begun_at is not None
        return self.held_until is None and not self._over() and not probed

    def _patience(self) -> float:
        """Seconds for which what is on its way is still waited for."""
        return max(self.deadline, self.begun_at or 0) + GRACE_SECONDS - time.monotonic()

    def _collect(self, seconds: float, *, all_of_them: bool) -> bool:
        """Take back what lands and have it written down; whether it is fewer than hoped for."""
        if not self.pending:
            # Others of this process have the connections.
            if not self.flight.wait_for_room(seconds):
                time.sleep(min(seconds, SHORTEST_WAIT))
            return True
        enough = self.pending if all_of_them else self.flight.worth_while(self.pending)
        landed = self.flight.landed(at_least=enough, seconds=seconds)
        slow = len(landed) < enough
        if slow:
            self.flight.hurry()
        self.outcomes.unwritten += landed
        self.outcomes.write()
        if self._probing() or any(over.failure for over in landed):
            # It may hold the whole account: no more goes out before that is known.
            self._see_outcomes()
        return slow

    def _see_outcomes(self) -> None:
        self.outcomes.see()
        self.held_until = self.held_until or self.outcomes.held_until

    def _launch(self, room: int) -> None:
        """Take permits and mark, in one transaction; then send on their way.

        What the marks do not return has lost its lease, or is settled. What got no permit is left as it was.
        """
        self._stop_expired()
        chunk = [self.ready.popleft() for _ in range(min(room, len(self.ready)))]
        if not chunk:
            return
        self.begun_at = time.monotonic()
        permit: Grant | None = None
        with transaction.atomic(), one_trip():
            if self.sender.limit is not None:
                permit = self._permits(self.sender.limit, len(chunk))
                self.ready.extendleft(reversed(chunk[permit.permits :]))
                chunk = chunk[: permit.permits]
            if chunk:
                ours = ledger.mark_handed_over(self.claim, [message.pk for message in chunk])
                moved = lifecycle.mark_sending([message for message in chunk if message.pk in ours])
                ledger.finish(self.claim, list(ours - moved))
                chunk = [message for message in chunk if message.pk in moved]
            if permit is not None and len(chunk) < permit.permits:
                limiter.give_back(permit, unused=permit.permits - len(chunk))
        if permit is not None and permit.retry_at is not None:
            self.held_until = permit.retry_at
            lanes.hold(self.lane.id, permit.retry_at, got_nothing=not self.begun and not chunk)
        if chunk:
            self.begun.update(message.pk for message in chunk)
            self.flight.launch(chunk, permit)

    def _permits(self, limit: Limit, wanted: int) -> Grant:
        """Take permits, but leave them to the tenant's more pressing messages where there are some."""
        grant = limiter.take(limit, wanted=wanted, lease=PERMIT_SECONDS)
        pressing_for = limit.seconds + PRESSING_SECONDS
        if not grant.permits or not lanes.gives_way(
            self.lane, tenant_id=self.claim.tenant_id, queue=self.queue, seconds=pressing_for
        ):
            return grant
        limiter.give_back(grant, unused=grant.permits)
        return replace(grant, permits=0, retry_at=self.claim.now() + GIVE_WAY)

    def _stop_expired(self) -> None:
        """What has expired since it was decided about does not go."""
        now = self.claim.now()
        if expired := [message for message in self.ready if message.expires_at <= now]:
            self.ready = deque(message for message in self.ready if message.expires_at > now)
            endings = [recording.failed(message, "expired", now) for message in expired]
            self.endings += recording.stop(self.claim, endings)

    def _alone(self, suspect: Claimed) -> None:
        """A message that a worker died with goes alone, so that what kills workers harms only itself."""
        others = self.pending
        if self.held_until is not None or others or (self._over() and self.only is None):
            ledger.leave(self.claim, [suspect.item])
            self.more = self.held_until is None and not others
            return
        if suspect.deaths >= DEATHS_ALONE:
            reason = f"poison: {suspect.deaths} workers died with this message alone"
            poison = Ending(
                suspect.item, MessageStatus.FAILED, self.claim.now(), False, reason, "permanent", dead_letter=True
            )
            self.endings += recording.stop(self.claim, [poison])
            return
        ledger.charge(self.claim, suspect.item)
        waiting, self.ready = self.ready, deque(self._prepared([suspect.item]))
        self._launch(1)
        while self.pending and (patience := self._patience()) > 0:
            self._collect(min(patience, self.flight.patience), all_of_them=True)
            ledger.hold(self.claim)
        self._see_outcomes()
        ledger.release(self.claim, [message.pk for message in self.ready])
        self.ready = waiting
