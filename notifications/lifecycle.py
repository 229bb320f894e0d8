"""The only writer of a message's status: every move is a guarded update, in sets.

`MOVES` says what may follow what. The database refuses all else by a trigger with the same list, so a
mistake elsewhere cannot send a cancelled message or forget a sent one.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from auditlog.models import LogEntry
from django.conf import settings
from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from notifications.dispatch import bells, lanes, ledger
from notifications.due import DueMessage
from notifications.exceptions import CommunicationError, NotCancellable, NotRetryable
from notifications.models import MessageStatus as S
from notifications.models import Outbox, OutboxMessage
from tenants.connection import connection
from tenants.context import current_tenant_id
from tenants.scoping import guard

MOVES: Mapping[S, frozenset[S]] = {
    S.SCHEDULED: frozenset({S.PENDING, S.SENDING, S.FAILED, S.CANCELLED, S.SUPPRESSED}),
    S.PENDING: frozenset({S.SCHEDULED, S.SENDING, S.FAILED, S.CANCELLED, S.SUPPRESSED}),
    S.SENDING: frozenset({S.SCHEDULED, S.UNCERTAIN, S.SENT, S.DELIVERED, S.BOUNCED, S.FAILED}),
    S.UNCERTAIN: frozenset({S.PENDING, S.SENDING, S.SENT, S.DELIVERED, S.BOUNCED, S.FAILED}),
    S.SENT: frozenset({S.DELIVERED, S.BOUNCED, S.FAILED}),
    S.DELIVERED: frozenset({S.BOUNCED}),
    S.BOUNCED: frozenset({S.PENDING}),
    S.FAILED: frozenset({S.PENDING, S.SENT, S.DELIVERED}),
    S.CANCELLED: frozenset(),
    S.SUPPRESSED: frozenset({S.PENDING}),
}

OPEN = frozenset({S.SCHEDULED, S.PENDING})
"""Not handed over yet: it can still be cancelled, and has a row in the ledger."""

REQUEUABLE = frozenset({S.FAILED, S.BOUNCED, S.SUPPRESSED, S.UNCERTAIN})

PASSING = frozenset({"transient", "throttled"})
"""The classes of errors that pass by themselves; of the others somebody has to mend something first."""

REOPEN_PAUSES = (timedelta(hours=2), timedelta(hours=4), timedelta(hours=8))
"""Before each new cycle, so that with the cycles' own pauses a message is tried for more than a day."""


def sources(target: S) -> list[S]:
    """The statuses that may move to the target."""
    return [status for status, following in MOVES.items() if target in following]


def mark_sending(messages: Sequence[DueMessage | OutboxMessage]) -> set[UUID]:
    """Move messages to `sending`, with the text that goes out; in the transaction that marks their ledger rows.

    Only those that come back may go out: a receipt may have settled the others meanwhile.
    """
    texts = [
        {
            "id": str(message.pk),
            "subject": message.subject,
            "body_text": message.body_text,
            "body_html": message.body_html,
        }
        for message in messages
    ]
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE notifications AS message
            SET status = 'sending', subject = sent.subject, body_text = sent.body_text, body_html = sent.body_html,
                deferral_reason = ''
            FROM json_to_recordset(%s::json) AS sent (id uuid, subject text, body_text text, body_html text)
            WHERE message.id = sent.id AND message.status = ANY(%s)
            RETURNING message.id
            """,
            [json.dumps(texts), sources(S.SENDING)],
        )
        return {row[0] for row in cursor.fetchall()}


@dataclass(frozen=True, slots=True)
class Ending:
    """How a message came out of a hand-over, or was stopped before it."""

    message_id: UUID
    status: S
    at: datetime
    attempted: bool = True
    reason: str = ""
    error_class: str = ""
    external_id: str = ""
    dead_letter: bool = False
    response: str = ""


_ENDING = [field.name for field in fields(Ending)]


def record(endings: Sequence[Ending]) -> None:
    """Write outcomes down, as a set. A message that has moved on meanwhile is left as it is.

    So is an uncertain one that was stopped before another attempt: that tells nothing of the attempt before. It is
    left to a person.
    """
    if not endings:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE notifications AS message
            SET status = ending.status,
                -- One that is uncertain was counted when it became so.
                attempt_count = attempt_count + (ending.attempted AND message.status <> 'uncertain')::int,
                sent_at = CASE ending.status
                    WHEN 'sent' THEN ending.at WHEN 'delivered' THEN coalesce(sent_at, ending.at) ELSE sent_at END,
                delivered_at = CASE WHEN ending.status = 'delivered' THEN ending.at ELSE delivered_at END,
                failed_at = CASE WHEN ending.status = 'failed' THEN ending.at ELSE failed_at END,
                dead_lettered_at = CASE WHEN ending.dead_letter THEN ending.at ELSE dead_lettered_at END,
                external_id = CASE WHEN ending.external_id <> '' THEN ending.external_id ELSE message.external_id END,
                provider_response = CASE WHEN ending.attempted
                    THEN jsonb_strip_nulls(jsonb_build_object(
                        'response', nullif(ending.response, ''), 'error', nullif(ending.reason, '')))
                    ELSE message.provider_response END,
                error_class = ending.error_class,
                error_message = ending.reason,
                deferral_reason = CASE WHEN ending.status = 'scheduled' THEN left(ending.reason, 200) ELSE '' END
            FROM json_to_recordset(%s::json) AS ending (
                message_id uuid, at timestamptz, attempted bool, dead_letter bool, status text, external_id text,
                error_class text, reason text, response text)
            WHERE message.id = ending.message_id
              AND (message.status, ending.status) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
              AND (ending.attempted OR message.status <> 'uncertain')
            """,
            [
                json.dumps([{name: getattr(ending, name) for name in _ENDING} for ending in endings], default=str),
                *map(list, zip(*allowed_pairs(), strict=True)),
            ],
        )
    if stopped := [e.message_id for e in endings if not e.attempted and e.status in {S.FAILED, S.SUPPRESSED}]:
        leave_to_a_person(stopped)


def change_sender(messages: Sequence[DueMessage], outbox: Outbox) -> None:
    """Let messages leave by another outbox, under its address and name."""
    OutboxMessage.objects.filter(pk__in=[message.pk for message in messages], status__in=OPEN).update(
        outbox_uuid=outbox.pk, from_address=outbox.address, from_name=outbox.name, reply_to=outbox.reply_to
    )


def leave_to_a_person(messages: Sequence[UUID]) -> None:
    """Let messages whose fate stays unknown stand among the dead letters, where a person decides."""
    OutboxMessage.objects.filter(pk__in=messages, status=S.UNCERTAIN).update(dead_lettered_at=timezone.now())


def allowed_pairs() -> list[tuple[str, str]]:
    """Every allowed move as (from, to)."""
    return [(str(before), str(after)) for before, following in MOVES.items() for after in sorted(following)]


def retry_allowed(message: OutboxMessage) -> bool:
    """Whether the message failed and may still be sent again without a person's word."""
    return message.is_failed and message.retry_count < message.max_retries


def requeue(message: OutboxMessage, *, actor: Any = None, reason: str = "") -> None:
    """Open a new delivery cycle for a message that failed, bounced, was suppressed or is uncertain.

    Args:
        message: refreshed from the database when it returns.
        actor: the person who asks; a person may go beyond the number of automatic retries.
        reason: written to the audit log.

    Raises:
        NotRetryable: it is in no such state, or nobody asks and its retries are used up.
        WrongTenant: it is another tenant's.
    """
    guard(message)
    if actor is None and not retry_allowed(message):
        raise NotRetryable(f"message {message.pk} is {message.status} with {message.retry_count} retries")
    _open_again(message, REQUEUABLE, actor, reason)


def _open_again(message: OutboxMessage, allowed: Collection[S], actor: Any, reason: str) -> None:
    tenant_id = current_tenant_id()
    now = timezone.now()
    with transaction.atomic():
        # The ledger's row first, as a drain does: two orders would deadlock.
        ledger.lock(message.pk, tenant_id=tenant_id)
        before = OutboxMessage.objects.select_for_update().get(pk=message.pk)
        if before.status not in allowed:
            which = ", ".join(sorted(allowed))
            raise NotRetryable(f"message {message.pk} is {before.status}: only {which} ones are sent again")
        OutboxMessage.objects.filter(pk=message.pk).update(
            status=S.PENDING,
            attempt_count=0,
            retry_count=before.retry_count + 1,
            error_message="",
            error_class="",
            dead_lettered_at=None,
            scheduled_at=None,
            expires_at=max(before.expires_at, now + timedelta(seconds=settings.NOTIFY_EXPIRY_SECONDS)),
        )
        # A worker that has claimed the row must not take it off when it learns of the attempt before.
        ledger.drop(message.pk, tenant_id=tenant_id)
        _put_back([(before.pk, before.priority, before.outbox_scope, before.outbox_uuid)])
        _audit(before, S.PENDING, actor, reason)
    message.refresh_from_db()


def _put_back(messages: Iterable[tuple[UUID, str, str, UUID]]) -> None:
    """Write messages down as due now, and ring; each is its key, priority and outbox (scope and key)."""
    tenant_id = current_tenant_id()
    manual = not settings.NOTIFY_SEND_IMMEDIATELY
    by_lane: dict[tuple[str, str, UUID], list[UUID]] = defaultdict(list)
    for pk, *lane in messages:
        by_lane[tuple(lane)].append(pk)  # type: ignore[index]
    for (queue, scope, outbox), items in sorted(by_lane.items()):
        lane_id = lanes.lane_for(tenant_id=tenant_id, queue=queue, outbox_scope=scope, outbox_uuid=outbox)
        ledger.add(items, tenant_id=tenant_id, lane_id=lane_id, manual=manual)
    for queue in () if manual else {queue for queue, _, _ in by_lane}:
        bells.ring_on_commit(queue)


def reopen_failed(*, max_age: timedelta, paced: bool = True, channel: str | None = None, limit: int = 1000) -> int:
    """Open new delivery cycles for the current tenant's messages whose failure may have passed, without anybody's word.

    These are the ones that failed for a reason in `PASSING`, have retries left, and have not expired: their time is
    not extended, so that a code that nobody can use any more does not arrive.

    Args:
        max_age: how long ago they failed at most.
        paced: leave the n-th new cycle until the n-th of `REOPEN_PAUSES` after the failure.
        channel: only messages of this one.
        limit: at most so many, those that failed first.

    Returns:
        how many; fewer than `limit` means that no more are due.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            """
            WITH again AS (
                SELECT id FROM notifications AS message
                WHERE status = 'failed' AND error_class = ANY(%(classes)s) AND retry_count < max_retries
                  AND expires_at > now() AND failed_at >= now() - %(max_age)s::interval
                  AND failed_at + coalesce(
                    (%(pauses)s::int[])[least(retry_count + 1, %(last)s)], 0) * interval '1 second' <= now()
                  AND (%(channel)s::text IS NULL OR channel = %(channel)s)
                  -- What still has a row is a worker's to finish, and locked in the other order.
                  AND NOT EXISTS (
                    SELECT FROM public.dispatch_ledgerrow
                    WHERE item = message.id AND tenant_id = %(tenant)s AND kind = 'send')
                ORDER BY failed_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
            )
            UPDATE notifications AS message
            SET status = 'pending', attempt_count = 0, retry_count = retry_count + 1, error_message = '',
                error_class = '', dead_lettered_at = NULL
            FROM again WHERE message.id = again.id
            RETURNING message.id, message.priority, message.outbox_scope, message.outbox_uuid
            """,
            {
                "classes": sorted(PASSING),
                "max_age": f"{max_age.total_seconds()} seconds",
                "pauses": [int(pause.total_seconds()) for pause in REOPEN_PAUSES] if paced else [],
                "last": len(REOPEN_PAUSES),
                "channel": channel,
                "tenant": current_tenant_id(),
                "limit": limit,
            },
        )
        reopened = cursor.fetchall()
        _put_back(reopened)
    return len(reopened)


def settle(message: OutboxMessage, *, arrived: bool, actor: Any, reason: str = "") -> None:
    """Let a person say what became of an uncertain message.

    Args:
        message: refreshed from the database when it returns.
        arrived: it did, and is `sent` since its last attempt; else it is sent again, in a new delivery cycle.
        actor: the person who says so.
        reason: written to the audit log.

    Raises:
        NotRetryable: it did not arrive, and is not uncertain.
        CommunicationError: it arrived, and is not uncertain: something else has settled it.
        WrongTenant: it is another tenant's.
    """
    guard(message)
    if not arrived:
        _open_again(message, {S.UNCERTAIN}, actor, reason)
        return
    tenant_id = current_tenant_id()
    with transaction.atomic():
        # The ledger's row first, as a drain does. It holds when the message would be taken up again.
        ledger.lock(message.pk, tenant_id=tenant_id)
        before = OutboxMessage.objects.select_for_update().get(pk=message.pk)
        if before.status != S.UNCERTAIN:
            raise CommunicationError(f"message {message.pk} is {before.status}: only uncertain ones are to be settled")
        last = before.attempts.aggregate(at=Max("finished_at"))["at"]
        OutboxMessage.objects.filter(pk=message.pk).update(
            status=S.SENT,
            sent_at=last or timezone.now(),
            error_message="",
            error_class="",
            dead_lettered_at=None,
        )
        ledger.drop(message.pk, tenant_id=tenant_id)
        _audit(before, S.SENT, actor, reason)
    message.refresh_from_db()


def cancel(message: OutboxMessage, *, actor: Any = None, reason: str = "") -> None:
    """Cancel a message that is not on its way yet.

    Raises:
        NotCancellable: a worker has it, or it is done.
    """
    guard(message)
    tenant_id = current_tenant_id()
    with transaction.atomic():
        # The ledger's row is locked first, as a drain does, so that one of the two finds the other's mark.
        free = ledger.lock_unclaimed(message.pk, tenant_id=tenant_id)
        moved = free and OutboxMessage.objects.filter(pk=message.pk, status__in=OPEN).update(status=S.CANCELLED)
        if not moved:
            message.refresh_from_db()
            raise NotCancellable(f"message {message.pk} is {message.status}, or on its way: it cannot be cancelled")
        ledger.drop(message.pk, tenant_id=tenant_id)
        _audit(message, S.CANCELLED, actor, reason)
    message.refresh_from_db()


def _audit(before: OutboxMessage, after: S, actor: Any, reason: str) -> None:
    LogEntry.objects.log_create(
        before,
        force_log=True,
        action=LogEntry.Action.UPDATE,
        changes={"status": [before.status, after]},
        actor=actor,
        additional_data={"reason": reason} if reason else None,
    )
