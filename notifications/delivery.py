"""Delivering: one turn of a worker for one tenant in one queue.

Claim a batch, decide, render, mark it as handed over, hand it over, record how it ended. No transaction
spans a hand-over, and the threads that hand over never touch the database.
"""

import logging
import math
import os
import random
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import astuple, dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from django.conf import settings
from django.db import DatabaseError, InterfaceError, transaction
from django.utils import timezone

from notifications import adapters, lifecycle, retry, routing, wording
from notifications.channels import Accepted, Adapter, Failure, Outgoing, Rejected, Unavailable, Uncertain
from notifications.dispatch import bells, lanes, ledger, limiter
from notifications.dispatch.lanes import DueLane
from notifications.dispatch.ledger import Claim
from notifications.dispatch.limiter import Grant, Limit
from notifications.exceptions import CommunicationError
from notifications.lifecycle import Ending
from notifications.models import (
    Attempt,
    AttemptOutcome,
    MessageStatus,
    NotificationChannel,
    NotificationPreference,
    OutboxMessage,
    Scope,
    Suppression,
)
from notifications.preferences import Decision, Drop, Send, Wait, decide
from tenants.connection import connection
from tenants.context import current_tenant_id, tenant_context
from tenants.models import Tenant

logger = logging.getLogger(__name__)

TURN_SECONDS = 0.5
BATCH = 100
DEATHS_ALONE = 3
PERMIT_SECONDS = 300.0
"""Longer than any hand-over takes: for so long a dead worker's permits count as in use."""
DIED = "the worker died while handing over"
RESEND_AFTER = timedelta(minutes=10)
"""How long an e-mail of unknown fate waits before it goes again under the same Message-ID."""

_threads = ThreadPoolExecutor(max_workers=64, thread_name_prefix="hand-over")


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

    @property
    def total(self) -> int:
        """All messages that the turn came to an answer about."""
        return self.sent + self.failed + self.later + self.dropped

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(mine + more for mine, more in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        return f"{self.sent} sent, {self.later} later, {self.failed} failed, {self.dropped} suppressed"

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
    queue: str, *, worker: str = "", limit: int | None = None, manual: bool = False, seconds: float = TURN_SECONDS
) -> Tally:
    """Work for the current tenant in one queue until its due work or the time is used up.

    Args:
        queue: a priority's name.
        worker: written on the leases.
        limit: at most so many messages.
        manual: take rows flagged for the commands too.
        seconds: after so long no hand-over begins but the first; those that have begun are finished.
    """
    schema_name = connection.schema_name
    bells.answered(schema_name, queue)
    tally = Tally()
    deadline = time.monotonic() + seconds
    tenant_id = current_tenant_id()
    for lane in lanes.due(tenant_id=tenant_id, queue=queue, manual=manual):
        # Before its work: when the time is used up here, the next turn begins with another lane.
        lanes.served(lane.id)
        size = BATCH
        while size == BATCH:
            size = min(BATCH, limit - tally.total) if limit is not None else BATCH
            if size <= 0:
                return tally
            if tally.total and time.monotonic() > deadline:
                bells.ring(schema_name, queue)
                return tally
            claim = ledger.claim(
                lane.id, tenant_id=tenant_id, limit=size, worker=worker or worker_name(), manual=manual
            )
            if len(claim.rows) == BATCH:
                # A full batch: others may join in.
                bells.ring(schema_name, queue)
            tally.count(deliver(claim, lane, deadline))
            if claim.held:
                break
            if claim.released:
                bells.ring(schema_name, queue)
                return tally
            size = len(claim.rows)
    return tally


def deliver_one(message_id: UUID, lane_id: int, *, schema_name: str) -> None:
    """Deliver one message in the calling process (dispatch mode `inline`)."""
    tenant = Tenant.objects.serving().filter(schema_name=schema_name).first()
    if tenant is None:
        # A suspended tenant's messages wait in every mode.
        return
    with tenant_context(tenant):
        message = OutboxMessage.objects.get(pk=message_id)
        lane = DueLane(lane_id, message.outbox_scope, message.outbox_uuid)
        tenant_id = current_tenant_id()
        deliver(ledger.claim(lane_id, tenant_id=tenant_id, limit=1, worker=worker_name(), only=message_id), lane)


def deliver(claim: Claim, lane: DueLane, deadline: float = math.inf) -> list[Ending]:
    """Bring every claimed message to an ending, written down when this returns.

    What has not begun at the deadline (a monotonic time) is given back, and `claim.released` says so.
    """
    endings = _settle_marked(claim, lane)
    fresh = [row.item for row in claim.rows if not row.suspect]
    if fresh:
        endings += _deliver_together(claim, lane, fresh, deadline)
    for row in claim.rows:
        if row.suspect and not row.handed_over:
            endings += _deliver_alone(claim, lane, row.item, row.deaths)
    return endings


def _deliver_alone(claim: Claim, lane: DueLane, item: UUID, deaths: int) -> list[Ending]:
    """A message that a worker died with goes alone, so that what kills workers harms only itself."""
    if deaths >= DEATHS_ALONE:
        reason = f"poison: {deaths} workers died with this message alone"
        return _stop(
            claim, [Ending(item, MessageStatus.FAILED, timezone.now(), False, reason, "permanent", dead_letter=True)]
        )
    ledger.charge(claim, item)
    return _deliver_together(claim, lane, [item])


def _settle_marked(claim: Claim, lane: DueLane) -> list[Ending]:
    """What a dead worker had marked may have gone out: it is uncertain until something settles it."""
    marked = [row.item for row in claim.rows if row.handed_over]
    if not marked:
        return []
    now = timezone.now()
    # The others are settled: by a receipt that was faster, or because they are gone.
    unsettled = OutboxMessage.objects.filter(pk__in=marked, status=MessageStatus.SENDING)
    stuck = {message.pk: message for message in unsettled}
    endings = [Ending(item, MessageStatus.UNCERTAIN, now, True, DIED, "transient") for item in stuck]
    with transaction.atomic():
        lifecycle.record(endings)
        Attempt.objects.bulk_create([_lost_attempt(message, lane, now) for message in stuck.values()])
        _plan_uncertain(claim, list(stuck.values()), now)
        ledger.finish(claim, [item for item in marked if item not in stuck])
    return endings


def _plan_uncertain(claim: Claim, messages: Sequence[OutboxMessage], now: datetime) -> None:
    """E-mail is harmless twice under one Message-ID: it goes again. What costs waits for a receipt or a person."""
    again = [m.pk for m in messages if m.channel == NotificationChannel.EMAIL and m.attempt_count + 1 < m.max_attempts]
    ledger.postpone(claim, again, [now + RESEND_AFTER] * len(again))
    ledger.finish(claim, [m.pk for m in messages if m.pk not in again])


def _deliver_together(claim: Claim, lane: DueLane, items: Sequence[UUID], deadline: float = math.inf) -> list[Ending]:
    known = OutboxMessage.objects.in_bulk(items)
    messages = [known[item] for item in items if item in known]
    ledger.finish(claim, [item for item in items if item not in known])
    ready, endings = _prepare(claim, messages)
    if not ready:
        return endings
    outbox = routing.outbox_at(lane.outbox_scope, lane.outbox_uuid)
    if outbox is None:
        return endings + _stop(claim, [_failed(message, "the outbox is gone") for message in ready])
    if not (outbox.is_active and outbox.account.is_active):
        return endings + _wait_for_mending(claim, ready, "the outbox or its account is switched off")
    try:
        adapter = adapters.adapter_for(outbox.account, lane.outbox_scope)
    except Rejected as error:
        return endings + _stop(claim, [_failed(message, str(error), error.error_class) for message in ready])
    except Unavailable as error:
        return endings + _wait_for_mending(claim, ready, str(error))
    limit = routing.limit_of(outbox, lane.outbox_scope)
    size = max(adapter.connections, 1)
    begun = 0
    while begun < len(ready):
        if begun and time.monotonic() > deadline:
            ledger.release(claim, [message.pk for message in ready[begun:]])
            break
        chunk = ready[begun : begun + size]
        ended, granted = _hand_over_chunk(claim, lane, adapter, chunk, limit)
        endings += ended
        begun += len(chunk) if granted is None else granted.permits
        if granted is not None and granted.retry_at is not None:
            ledger.release(claim, [message.pk for message in ready[begun:]])
            lanes.hold(lane.id, granted.retry_at)
            claim.held = True
            break
    return endings


def _wait_for_mending(claim: Claim, messages: Sequence[OutboxMessage], reason: str) -> list[Ending]:
    """What an operator or the tenant has to mend first costs no attempt; expiry ends the wait."""
    now = timezone.now()
    due_at = now + retry.delay_before(1, settings.NOTIFY_RETRY_BACKOFF_SECONDS)
    endings = [Ending(message.pk, MessageStatus.SCHEDULED, now, False, reason) for message in messages]
    with transaction.atomic():
        lifecycle.record(endings)
        ledger.postpone(claim, [message.pk for message in messages], [due_at] * len(messages))
    return endings


def _failed(message: OutboxMessage, reason: str, error_class: str = "permanent", *, dead_letter: bool = True) -> Ending:
    return Ending(message.pk, MessageStatus.FAILED, timezone.now(), False, reason, error_class, dead_letter=dead_letter)


def _stop(claim: Claim, endings: list[Ending]) -> list[Ending]:
    """Write down endings without a hand-over, and take the work off the ledger."""
    with transaction.atomic():
        lifecycle.record(endings)
        ledger.finish(claim, [ending.message_id for ending in endings])
    return endings


def _prepare(claim: Claim, messages: Sequence[OutboxMessage]) -> tuple[list[OutboxMessage], list[Ending]]:
    """Decide about and render a batch: the messages that may go now, and the endings of the others."""
    now = timezone.now()
    suppressed = _suppressed(messages)
    allowing = _preferences(messages)
    ready: list[OutboxMessage] = []
    stopped: list[Ending] = []
    waiting: list[tuple[OutboxMessage, Wait]] = []
    for message in messages:
        try:
            decision = _decision(message, now, suppressed, allowing)
            if isinstance(decision, Send):
                message.subject, message.body_text, message.body_html = content_of(message)
                ready.append(message)
        except (DatabaseError, InterfaceError):
            raise
        except CommunicationError as error:
            stopped.append(_failed(message, str(error)))
            continue
        except Exception as error:
            # One message that cannot be prepared must not keep its neighbours.
            logger.exception("message cannot be prepared", extra={"message_id": str(message.pk)})
            stopped.append(_failed(message, f"cannot be prepared: {type(error).__name__}"))
            continue
        match decision:
            case Drop(reason, expired=True):
                stopped.append(_failed(message, reason))
            case Drop(reason):
                stopped.append(Ending(message.pk, MessageStatus.SUPPRESSED, now, False, reason))
            case Wait():
                waiting.append((message, decision))
    deferred = [Ending(m.pk, MessageStatus.SCHEDULED, now, False, wait.reason) for m, wait in waiting]
    if stopped or deferred:
        with transaction.atomic():
            lifecycle.record([*stopped, *deferred])
            ledger.finish(claim, [ending.message_id for ending in stopped])
            ledger.postpone(claim, [m.pk for m, _ in waiting], [wait.until for _, wait in waiting])
    return ready, [*stopped, *deferred]


def _decision(
    message: OutboxMessage,
    now: datetime,
    suppressed: Mapping[tuple[str, str], str],
    allowing: Mapping[UUID | None, NotificationPreference],
) -> Decision:
    preference = allowing.get(message.recipient_id) or allowing.get(None)
    return decide(
        now=now,
        expires_at=message.expires_at,
        category=message.category,
        channel=message.channel,
        security=message.security,
        suppressed=suppressed.get((message.channel, message.to_address.lower())),
        allows=preference.allows if preference else _everything,
    )


def _everything(_category: str, _channel: str) -> bool:
    return True


def _suppressed(messages: Sequence[OutboxMessage]) -> dict[tuple[str, str], str]:
    """The reason by channel and address, from the tenant's own list and the platform's."""
    addresses = {message.to_address.lower() for message in messages}
    found: dict[tuple[str, str], str] = {}
    for scope in (Scope.TENANT, Scope.PLATFORM):
        with routing.in_scope(scope):
            rows = Suppression.objects.filter(address__in=addresses).values_list("channel", "address", "reason")
            for channel, address, reason in rows:
                # An opt-out lets security messages pass, and so hides no other reason.
                if found.get((channel, address), "unsubscribed") == "unsubscribed":
                    found[channel, address] = reason
    return found


def _preferences(messages: Sequence[OutboxMessage]) -> dict[UUID | None, NotificationPreference]:
    """Preferences by recipient; under None the tenant's defaults."""
    recipients = {message.recipient_id for message in messages if message.recipient_id}
    rows = NotificationPreference.objects.filter(recipient_id__in=recipients) | NotificationPreference.objects.filter(
        recipient=None
    )
    return {row.recipient_id: row for row in rows}


def content_of(message: OutboxMessage) -> tuple[str, str, str]:
    """Subject, text and HTML: what the message has of its own, else its template's, rendered.

    Raises:
        TemplateRenderError: the template cannot be rendered with the message's context.
        TemplateNotFoundError: the version that it was accepted with is gone.
    """
    own = message.subject, message.body_text, message.body_html
    if message.template_uuid is None or message.template_version is None or all(own):
        return own
    rendered = wording.compiled(message.template_scope, message.template_uuid, message.template_version).render(
        message.context
    )
    return own[0] or rendered.subject, own[1] or rendered.text, own[2] or rendered.html


def outgoing(message: OutboxMessage) -> Outgoing:
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


@dataclass(frozen=True, slots=True)
class _HandOver:
    """One hand-over and how it ended."""

    message: OutboxMessage
    started_at: datetime
    finished_at: datetime
    accepted: Accepted | None = None
    failure: Failure | None = None
    ended: float = field(default_factory=time.monotonic)


def _hand_over(adapter: Adapter, message: OutboxMessage) -> _HandOver:
    """Runs in a thread of its own: no database here."""
    started_at = timezone.now()
    accepted: Accepted | None = None
    failure: Failure | None = None
    try:
        accepted = adapter.send(outgoing(message))
    except Failure as error:
        failure = error
    except Exception as error:
        # A fault of ours, before or after the provider took it: nobody knows, so nobody is told otherwise.
        schema_name = getattr(message._state, "schema", None)
        logger.exception(
            "hand-over broke",
            extra={"schema": schema_name, "message_id": str(message.pk), "provider": adapter.provider},
        )
        failure = Uncertain(f"hand-over broke: {type(error).__name__}")
    return _HandOver(message, started_at, timezone.now(), accepted, failure)


def _hand_over_chunk(
    claim: Claim, lane: DueLane, adapter: Adapter, chunk: Sequence[OutboxMessage], limit: Limit | None
) -> tuple[list[Ending], Grant | None]:
    """Take permits, mark, hand over side by side, record: the endings, and the grant where the sender has a limit.

    What the marks do not return has lost its lease, or is settled. Messages that got no permit are left as they were.
    """
    ledger.hold(claim)
    granted: Grant | None = None
    with transaction.atomic():
        if limit is not None:
            granted = limiter.take(limit, wanted=len(chunk), lease=PERMIT_SECONDS)
            chunk = chunk[: granted.permits]
        ours = ledger.mark_handed_over(claim, [message.pk for message in chunk])
        moved = lifecycle.mark_sending([message for message in chunk if message.pk in ours])
        ledger.finish(claim, list(ours - moved))
    going = [message for message in chunk if message.pk in moved]
    pending: set[Future[_HandOver]] = {_threads.submit(_hand_over, adapter, message) for message in going}
    done: list[_HandOver] = []
    while pending:
        finished, pending = wait(pending, timeout=settings.NOTIFY_LOCK_TIMEOUT_SECONDS / 3)
        done += [future.result() for future in finished]
        if pending:
            ledger.renew(claim)
    return _record(claim, lane, adapter.provider, done, granted), granted


def _record(
    claim: Claim, lane: DueLane, provider: str, done: Sequence[_HandOver], granted: Grant | None
) -> list[Ending]:
    """Write down how hand-overs ended: messages, attempts, ledger and permits in one transaction."""
    endings: list[Ending] = []
    again: dict[UUID, datetime] = {}
    uncertain: list[OutboxMessage] = []
    for over in done:
        ending, due_at = _ending(over)
        endings.append(ending)
        if due_at:
            again[ending.message_id] = due_at
        elif ending.status == MessageStatus.UNCERTAIN:
            uncertain.append(over.message)
    with transaction.atomic():
        lifecycle.record(endings)
        Attempt.objects.bulk_create([_attempt(over, claim.worker, lane, provider) for over in done])
        ledger.postpone(claim, list(again), list(again.values()))
        _plan_uncertain(claim, uncertain, timezone.now())
        settled = [e.message_id for e in endings if e.message_id not in again and e.status != MessageStatus.UNCERTAIN]
        ledger.finish(claim, settled)
        if granted is not None and granted.permits:
            now = time.monotonic()
            limiter.give_back(granted, ended_ago=[now - over.ended for over in done])
    return endings


def _ending(over: _HandOver) -> tuple[Ending, datetime | None]:
    """The message's next state after a hand-over, and when it is due again."""
    message, at = over.message, over.finished_at
    if over.accepted is not None:
        taken = over.accepted
        ending = Ending(message.pk, MessageStatus.SENT, at, external_id=taken.provider_id, response=taken.response)
        return ending, None
    failure = over.failure or Uncertain("the hand-over did not end")
    reason, error_class = str(failure), failure.error_class
    if isinstance(failure, Unavailable):
        attempts = message.attempt_count + 1
        due_at = at + _pause(attempts, failure)
        if attempts < message.max_attempts and due_at < message.expires_at:
            return Ending(message.pk, MessageStatus.SCHEDULED, at, True, reason, error_class), due_at
        return Ending(message.pk, MessageStatus.FAILED, at, True, reason, error_class, dead_letter=True), None
    if isinstance(failure, Uncertain):
        return Ending(message.pk, MessageStatus.UNCERTAIN, at, True, reason, error_class), None
    return Ending(message.pk, MessageStatus.FAILED, at, True, reason, error_class), None


def _pause(attempts: int, failure: Unavailable) -> timedelta:
    """The wait before the next attempt, up to a tenth longer, so that failures together do not return together."""
    planned = retry.delay_before(attempts, settings.NOTIFY_RETRY_BACKOFF_SECONDS)
    asked = failure.retry_after or timedelta()
    return max(planned, asked) * (1 + random.random() / 10)  # noqa: S311 (jitter, not a secret)


def _attempt(over: _HandOver, worker: str, lane: DueLane, provider: str) -> Attempt:
    failure = over.failure
    outcome = (
        AttemptOutcome.ACCEPTED
        if failure is None
        else AttemptOutcome.REJECTED
        if isinstance(failure, Rejected)
        else AttemptOutcome.UNAVAILABLE
        if isinstance(failure, Unavailable)
        else AttemptOutcome.UNCERTAIN
    )
    return Attempt(
        message_id=over.message.pk,
        cycle=over.message.retry_count,
        number=over.message.attempt_count + 1,
        provider=provider,
        outbox_scope=lane.outbox_scope,
        outbox_uuid=lane.outbox_uuid,
        worker=worker,
        started_at=over.started_at,
        finished_at=over.finished_at,
        outcome=outcome,
        error_class=failure.error_class if failure else "",
        error=str(failure) if failure else "",
        response=over.accepted.response[:500] if over.accepted else "",
    )


def _lost_attempt(message: OutboxMessage, lane: DueLane, now: datetime) -> Attempt:
    """The attempt of a worker that died before it could write it down."""
    return Attempt(
        message_id=message.pk,
        cycle=message.retry_count,
        number=message.attempt_count + 1,
        outbox_scope=lane.outbox_scope,
        outbox_uuid=lane.outbox_uuid,
        started_at=now,
        finished_at=now,
        outcome=AttemptOutcome.UNCERTAIN,
        error_class="transient",
        error=DIED,
    )
