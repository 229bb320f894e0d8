"""Writing down how hand-overs ended: messages, attempts, ledger, permits and the account's health, as sets.

Everything about a set of hand-overs is one transaction. What a provider said decides what comes next: a retry, the
next sender, a wait until somebody knows more, or the end.
"""

import json
import logging
import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import batched
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Max

from notifications import due, handover, lifecycle, retry, routing, signals
from notifications.channels import Accepted, Adapter, Failure, Rejected, Unavailable, Uncertain
from notifications.dispatch import bells, circuits, lanes, ledger, limiter
from notifications.dispatch.circuits import WELL, State, Who
from notifications.dispatch.ledger import Claim
from notifications.dispatch.limiter import Grant, Limit
from notifications.due import DueMessage
from notifications.handover import HandOver
from notifications.lifecycle import Ending
from notifications.models import (
    Attempt,
    AttemptOutcome,
    MessageStatus,
    NotificationChannel,
    Outbox,
    Suppression,
    SuppressionReason,
)
from notifications.models.fields import new_id
from tenants.connection import connection, one_trip
from tenants.context import current_tenant_id

logger = logging.getLogger(__name__)

DIED = "the worker died while handing over"
RESEND_AFTER = timedelta(minutes=10)
"""How long a message of unknown fate waits before it goes again, where a second copy is harmless."""
ASK_AFTER = (timedelta(minutes=2), timedelta(minutes=10), timedelta(hours=1), timedelta(hours=6))
"""How long after a hand-over of unknown fate its provider is asked, where a second copy would cost."""
GIVE_UP_AFTER = timedelta(hours=24)
"""How long a receipt is waited for before a person has to decide."""
COSTLY = frozenset({NotificationChannel.SMS, NotificationChannel.WHATSAPP, NotificationChannel.VOICE})
"""Channels on which a second copy costs money and nerves. On the others it carries the first one's Message-ID or
reference, by which the far end can tell."""
LONGEST_HOLD = timedelta(days=1)


@dataclass(slots=True)
class Sender:
    """A lane's outbox, ready to hand over: with its adapter, its limit and how its account is."""

    outbox: Outbox
    scope: str
    adapter: Adapter
    limit: Limit | None
    state: State = WELL
    stand_ins: list[Outbox] | None = None

    @property
    def who(self) -> Who:
        """Its account, as circuits know it."""
        return routing.who_is(self.outbox.account, self.scope)

    def others(self) -> list[Outbox]:
        """The outboxes that may stand in for it, asked once."""
        if self.stand_ins is None:
            self.stand_ins = routing.stand_ins(self.outbox, self.scope)
        return self.stand_ins


@dataclass(slots=True)
class _Plan:
    """What is to be written about a set of hand-overs."""

    endings: list[Ending] = field(default_factory=list)
    not_begun: list[Ending] = field(default_factory=list)
    done: list[UUID] = field(default_factory=list)
    again: dict[UUID, datetime | None] = field(default_factory=dict)
    moved: dict[UUID, list[DueMessage]] = field(default_factory=lambda: defaultdict(list))
    """By the outbox that takes over."""


def write_down(claim: Claim, sender: Sender, overs: Sequence[HandOver]) -> tuple[list[Ending], datetime | None]:
    """Write down how hand-overs ended.

    Returns:
        the endings, and until when the account's lanes wait now, if they do.
    """
    with transaction.atomic():
        until = _judge(sender, overs)
        plan = _plan(claim, sender, overs)
        with one_trip():
            # The ledger before the messages, as everywhere: two orders would deadlock.
            ledger.finish(claim, plan.done)
            ledger.postpone(claim, list(plan.again), list(plan.again.values()))
            lifecycle.record([*plan.endings, *plan.not_begun])
            _add_attempts([_attempt(over, claim) for over in overs if over.begun], claim.worker, sender)
        _suppress(overs)
        if plan.again:
            bells.plan_all_on_commit(overs[0].message.priority, plan.again.values())
        for outbox in sender.others() if plan.moved else ():
            move(claim, plan.moved[outbox.pk], outbox, sender.scope)
        _settle_permits(overs)
    return plan.endings, until


def _plan(claim: Claim, sender: Sender, overs: Sequence[HandOver]) -> _Plan:
    plan = _Plan()
    tried = _tried(sender, overs)
    for over in overs:
        message, at = over.message, claim.by_database(over.finished_at)
        if not over.begun:
            plan.not_begun.append(Ending(message.pk, _waiting(message), at, False, _why(over)))
            plan.again[message.pk] = None
            continue
        other = _stand_in(sender, message, tried) if message.pk in tried else None
        ending, due_at = _ending(over, at, moves=other is not None)
        if other is not None and ending.status == MessageStatus.SCHEDULED:
            plan.moved[other.pk].append(message)
        elif due_at:
            plan.again[message.pk] = due_at
        elif ending.status == MessageStatus.UNCERTAIN and not ending.dead_letter:
            plan.again[message.pk] = settles_at(message, sender.adapter, at)
        else:
            plan.done.append(message.pk)
        plan.endings.append(ending)
    return plan


def _suppress(overs: Sequence[HandOver]) -> None:
    """Put addresses that do not exist on the tenant's suppression list."""
    dead = [over for over in overs if isinstance(over.failure, Rejected) and over.failure.dead_address]
    Suppression.objects.bulk_create(
        [
            Suppression(
                channel=over.message.channel,
                address=over.message.to_address.lower(),
                reason=SuppressionReason.HARD_BOUNCE,
                note=str(over.failure)[:300],
            )
            for over in dead
        ],
        ignore_conflicts=True,
    )
    for over in dead:
        # Security messages pass an opt-out, and would go there for ever.
        Suppression.objects.filter(
            channel=over.message.channel,
            address=over.message.to_address.lower(),
            reason=SuppressionReason.UNSUBSCRIBED,
        ).update(reason=SuppressionReason.HARD_BOUNCE, note=f"unsubscribed before; {over.failure}"[:300])


def _why(over: HandOver) -> str:
    return f"not begun: {over.failure}" if over.failure else "not begun: the provider is slow"


def _ending(over: HandOver, at: datetime, *, moves: bool) -> tuple[Ending, datetime | None]:
    """The message's next state after a hand-over that ended then, and when it is due again; now, if it moves on."""
    message = over.message
    if over.accepted is not None:
        taken = over.accepted
        ending = Ending(message.pk, MessageStatus.SENT, at, external_id=taken.provider_id, response=taken.response)
        return ending, None
    failure = over.failure or Uncertain("the hand-over did not end")
    reason, error_class = str(failure), failure.error_class
    if in_doubt(message) and not isinstance(failure, Uncertain):
        reason = f"an earlier attempt may have arrived; then: {reason}"
    # What one attempt may have brought there is not failed, whatever became of the next.
    over_with = MessageStatus.UNCERTAIN if in_doubt(message) else MessageStatus.FAILED
    if isinstance(failure, Unavailable):
        attempts = message.attempt_count + 1
        due_at = at if moves else at + _pause(attempts, failure)
        if attempts < message.max_attempts and due_at < message.expires_at:
            return Ending(message.pk, _waiting(message), at, True, reason, error_class), due_at
        return Ending(message.pk, over_with, at, True, reason, error_class, dead_letter=True), None
    if isinstance(failure, Uncertain):
        left = not _resent(message)
        return Ending(message.pk, MessageStatus.UNCERTAIN, at, True, reason, error_class, dead_letter=left), None
    return Ending(message.pk, over_with, at, True, reason, error_class, dead_letter=in_doubt(message)), None


def in_doubt(message: DueMessage) -> bool:
    """Whether an earlier attempt of its cycle may have brought it there; of a costly one its provider was asked."""
    return message.status == MessageStatus.UNCERTAIN and message.channel not in COSTLY


def _waiting(message: DueMessage) -> MessageStatus:
    """The status in which a message waits for its next attempt."""
    return MessageStatus.UNCERTAIN if in_doubt(message) else MessageStatus.SCHEDULED


def _pause(attempts: int, failure: Unavailable) -> timedelta:
    """The wait before the next attempt, up to a tenth longer, so that failures together do not return together."""
    planned = retry.delay_before(attempts, settings.NOTIFY_RETRY_BACKOFF_SECONDS)
    asked = failure.retry_after or timedelta()
    return max(planned, asked) * (1 + random.random() / 10)  # noqa: S311 (jitter, not a secret)


def _resent(message: DueMessage) -> bool:
    """Whether a message of unknown fate is taken up again by itself; else a person decides."""
    return message.channel in COSTLY or message.attempt_count + 1 < message.max_attempts


def settles_at(message: DueMessage, adapter: Adapter | None, at: datetime) -> datetime:
    """When a message whose fate is unknown since `at` is taken up again."""
    if message.channel not in COSTLY:
        return at + RESEND_AFTER
    return at + (ASK_AFTER[0] if adapter is not None and adapter.can_look_up else GIVE_UP_AFTER)


def asks_again_at(since: datetime, now: datetime) -> datetime:
    """When a provider is asked again about a message whose fate is unknown since then."""
    times = [since + wait for wait in (*ASK_AFTER, GIVE_UP_AFTER)]
    return next((moment for moment in times if moment > now), since + GIVE_UP_AFTER)


# The account's health.


def _judge(sender: Sender, overs: Sequence[HandOver]) -> datetime | None:
    """Hold the account, or let it go, by what its provider answered; until when it is held."""
    overs = [over for over in overs if over.begun]
    failures = [over.failure for over in overs if over.failure is not None]
    wide = [error for error in failures if isinstance(error, Unavailable) and error.account_wide]
    waits = [_hold_for(error) for error in wide if error.error_class in {"throttled", "auth"}]
    if refused := [error for error in wide if error.error_class == "auth"]:
        tell = partial(
            signals.credentials_refused.send_robust,
            sender=None,
            account=sender.outbox.account,
            scope=sender.scope,
            reason=str(refused[-1]),
        )
        transaction.on_commit(tell, robust=True)
    if waits:
        wait, reason = max(waits)
        if sender.state.half_open:
            # The try is over, and with it the wait of those who let it be tried.
            circuits.leave(sender.who)
        until = circuits.pause(_held(sender), wait=wait, reason=reason)
        logger.warning("account paused until %s: %s", until, reason, extra={"account": str(sender.outbox.account_id)})
        return until
    in_doubt = [*wide, *(error for error in failures if isinstance(error, Uncertain) and error.account_wide)]
    if not overs:
        return None
    if len(in_doubt) < len(overs):
        # It answered: whatever it said about one message, it is there.
        if not sender.state.well:
            sender.state = WELL
            routing.ring_for(circuits.well(sender.who))
        return None
    reason = str(in_doubt[-1])
    until_ = circuits.failed(_held(sender), times=len(in_doubt), reason=reason)
    sender.state = State(until_, failures=1, reason=reason)
    if until_:
        logger.warning("circuit open until %s: %s", until_, reason, extra={"account": str(sender.outbox.account_id)})
    return until_


def _hold_for(error: Unavailable) -> tuple[timedelta, str]:
    default = circuits.AUTH_PAUSE if error.error_class == "auth" else circuits.THROTTLED_PAUSE
    return min(error.retry_after or default, LONGEST_HOLD), str(error)


def _held(sender: Sender) -> Who:
    """The account, whose lanes wait with it, unless what waits there can go by another."""
    who = sender.who
    return Who(who.owner, who.account, ()) if sender.others() else who


# The next sender.


def _tried(sender: Sender, overs: Sequence[HandOver]) -> Mapping[UUID, set[UUID]]:
    """The outboxes that each message that may move has tried in its cycle, this one included."""
    refused = (over.message for over in overs if over.begun and isinstance(over.failure, Unavailable))
    failed = [message for message in refused if not in_doubt(message)]
    if not failed or not sender.others():
        return {}
    return {pk: {*outboxes, sender.outbox.pk} for pk, outboxes in tried_outboxes(failed).items()}


def tried_outboxes(messages: Sequence[DueMessage]) -> Mapping[UUID, set[UUID]]:
    """The outboxes that messages have tried in their cycle, as far as it is written down."""
    cycles = {message.pk: message.retry_count for message in messages}
    tried: dict[UUID, set[UUID]] = {pk: set() for pk in cycles}
    rows = Attempt.objects.filter(message_id__in=cycles).values_list("message_id", "cycle", "outbox_uuid")
    for pk, cycle, outbox in rows:
        if cycle == cycles[pk]:
            tried[pk].add(outbox)
    return tried


def _stand_in(sender: Sender, message: DueMessage, tried: Mapping[UUID, set[UUID]]) -> Outbox | None:
    """The next outbox for a message that its sender's provider certainly did not take."""
    return next(
        (
            other
            for other in sender.others()
            if other.pk not in tried.get(message.pk, ()) and may_stand_in(other, message)
        ),
        None,
    )


def may_stand_in(other: Outbox, message: DueMessage) -> bool:
    """Whether a message may leave by another outbox: one that the caller named its sender for keeps its address."""
    return not message.from_fixed or other.address.lower() == message.from_address.lower()


def move(claim: Claim, messages: Sequence[DueMessage], outbox: Outbox, scope: str) -> None:
    """Give messages to another outbox, due at once."""
    if not messages:
        return
    tenant_id = current_tenant_id()
    lifecycle.change_sender(messages, outbox)
    by_queue: dict[str, list[UUID]] = defaultdict(list)
    for message in messages:
        by_queue[message.priority].append(message.pk)
    for queue, items in by_queue.items():
        lane_id = lanes.lane_for(tenant_id=tenant_id, queue=queue, outbox_scope=scope, outbox_uuid=outbox.pk)
        ledger.move(claim, items, lane_id)
        bells.ring_on_commit(queue)


# Permits and attempts.


def _settle_permits(overs: Sequence[HandOver]) -> None:
    now = time.monotonic()
    grants: dict[int, tuple[Grant, list[HandOver]]] = {}
    for over in overs:
        if over.permit is not None:
            grants.setdefault(id(over.permit), (over.permit, []))[1].append(over)
    for permit, settled in grants.values():
        ago = [now - over.ended for over in settled if over.begun]
        limiter.give_back(permit, ended_ago=ago, unused=len(settled) - len(ago))


def lost_attempts(messages: Sequence[DueMessage], outbox_scope: str, outbox_uuid: UUID, at: datetime) -> None:
    """Write down the attempts of a worker that died before it could do so itself."""
    rows = [
        {
            **_numbered(message),
            "started_at": at,
            "finished_at": at,
            "outcome": AttemptOutcome.UNCERTAIN,
            "error_class": "transient",
            "error": DIED,
        }
        for message in messages
    ]
    _insert_attempts(rows, worker="", provider="", outbox_scope=outbox_scope, outbox_uuid=outbox_uuid)


def _add_attempts(rows: Sequence[Mapping[str, object]], worker: str, sender: Sender) -> None:
    provider, outbox = sender.adapter.provider, sender.outbox
    _insert_attempts(rows, worker=worker, provider=provider, outbox_scope=sender.scope, outbox_uuid=outbox.pk)


def _insert_attempts(
    rows: Sequence[Mapping[str, object]], *, worker: str, provider: str, outbox_scope: str, outbox_uuid: UUID
) -> None:
    """Add attempts as one set. What the worker itself knows replaces what another had to assume."""
    if not rows:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            INSERT INTO {Attempt._meta.db_table} AS known (
                id, message_id, cycle, number, provider, outbox_scope, outbox_uuid, worker,
                started_at, finished_at, outcome, error_class, error, response)
            SELECT id, message_id, cycle, number, %s, %s, %s, %s,
                started_at, finished_at, outcome, error_class, error, left(coalesce(response, ''), 500)
            FROM json_to_recordset(%s::json) AS attempt (
                id uuid, message_id uuid, cycle smallint, number smallint, started_at timestamptz,
                finished_at timestamptz, outcome text, error_class text, error text, response text)
            ON CONFLICT (message_id, cycle, number) DO UPDATE
            SET outcome = excluded.outcome, error_class = excluded.error_class, error = excluded.error,
                response = excluded.response, provider = excluded.provider, worker = excluded.worker,
                started_at = excluded.started_at, finished_at = excluded.finished_at
            WHERE known.outcome = 'uncertain'
            """,  # noqa: S608 (the model's own table)
            [provider, outbox_scope, outbox_uuid, worker, json.dumps(rows, default=str)],
        )


def _numbered(message: DueMessage) -> dict[str, object]:
    return {
        "id": new_id(),
        "message_id": message.pk,
        "cycle": message.retry_count,
        "number": message.attempt_count + 1,
    }


def _attempt(over: HandOver, claim: Claim) -> dict[str, object]:
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
    return {
        **_numbered(over.message),
        "started_at": claim.by_database(over.started_at),
        "finished_at": claim.by_database(over.finished_at),
        "outcome": outcome,
        "error_class": failure.error_class if failure else "",
        "error": str(failure) if failure else "",
        "response": over.accepted.response if over.accepted else "",
    }


# Messages of unknown fate, where a second copy would cost.


def ask_about(claim: Claim, messages: Sequence[DueMessage], adapter: Adapter) -> tuple[list[Ending], list[DueMessage]]:
    """Ask the provider about messages of unknown fate; without an answer for a day, a person decides.

    Returns:
        the endings of those that it has, and the messages that it does not have: these may go again.
    """
    now = claim.now()
    answers = _answers(claim, messages, adapter) if adapter.can_look_up else [None] * len(messages)
    since = dict(
        Attempt.objects.filter(message_id__in=[message.pk for message in messages])
        .values_list("message_id")
        .annotate(Max("finished_at"))
    )
    endings: list[Ending] = []
    absent: list[DueMessage] = []
    again: dict[UUID, datetime | None] = {}
    left: list[UUID] = []
    for message, answer in zip(messages, answers, strict=True):
        if isinstance(answer, Accepted):
            external_id, response = answer.provider_id, answer.response
            endings.append(Ending(message.pk, MessageStatus.SENT, now, external_id=external_id, response=response))
        elif answer is None and adapter.can_look_up:
            absent.append(message)
        elif (asks_at := asks_again_at(since.get(message.pk, now), now)) > now:
            again[message.pk] = asks_at
        else:
            left.append(message.pk)
    with transaction.atomic():
        ledger.finish(claim, [*(ending.message_id for ending in endings), *left])
        ledger.postpone(claim, list(again), list(again.values()))
        lifecycle.record(endings)
        lifecycle.leave_to_a_person(left)
        bells.plan_all_on_commit(messages[0].priority, again.values())
    return endings, absent


def _answers(claim: Claim, messages: Sequence[DueMessage], adapter: Adapter) -> list[Accepted | Failure | None]:
    found: list[Accepted | Failure | None] = []
    for some in batched(messages, max(adapter.connections, 1), strict=False):
        ledger.hold(claim)
        found += handover.look_up(adapter, some, connection.schema_name)
    return found


# Endings without a hand-over.


def settle_marked(claim: Claim, outbox_scope: str, outbox_uuid: UUID, items: Sequence[UUID]) -> list[Ending]:
    """What a dead worker had marked may have gone out: it is uncertain until something settles it."""
    now = claim.now()
    # The others are settled: by a receipt that was faster, or because they are gone.
    stuck = {message.pk: message for message in due.load(items) if message.status == MessageStatus.SENDING}
    again = {pk: settles_at(message, None, now) for pk, message in stuck.items() if _resent(message)}
    endings = [
        Ending(pk, MessageStatus.UNCERTAIN, now, True, DIED, "transient", dead_letter=pk not in again) for pk in stuck
    ]
    with transaction.atomic():
        ledger.postpone(claim, list(again), list(again.values()))
        ledger.finish(claim, [item for item in items if item not in again])
        lifecycle.record(endings)
        lost_attempts(list(stuck.values()), outbox_scope, outbox_uuid, now)
    return endings


def stop(claim: Claim, endings: list[Ending]) -> list[Ending]:
    """Write down endings without a hand-over, and take the work off the ledger."""
    with transaction.atomic():
        ledger.finish(claim, [ending.message_id for ending in endings])
        lifecycle.record(endings)
    return endings


def mending_pause() -> timedelta:
    """How long a sender that cannot send is left alone before it is looked at again."""
    return retry.delay_before(1, settings.NOTIFY_RETRY_BACKOFF_SECONDS)


def wait_for_mending(claim: Claim, messages: Sequence[DueMessage], reason: str) -> list[Ending]:
    """What an operator or the tenant has to mend first costs no attempt."""
    now = claim.now()
    due_at = now + mending_pause()
    endings = [Ending(message.pk, MessageStatus.SCHEDULED, now, False, reason) for message in messages]
    with transaction.atomic():
        ledger.postpone(claim, [message.pk for message in messages], [due_at] * len(messages))
        lifecycle.record(endings)
        if messages:
            bells.plan_on_commit(messages[0].priority, due_at)
    return endings


def failed(message: DueMessage, reason: str, at: datetime, *, error_class: str = "permanent") -> Ending:
    """The ending of a message that cannot be handed over."""
    return Ending(message.pk, MessageStatus.FAILED, at, False, reason, error_class, dead_letter=True)
