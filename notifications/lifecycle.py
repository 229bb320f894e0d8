"""The only writer of a message's status: every move is a guarded update, in sets.

`MOVES` says what may follow what. The database refuses all else by a trigger with the same list, so a
mistake elsewhere cannot send a cancelled message or forget a sent one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from auditlog.models import LogEntry
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from notifications.dispatch import bells, lanes, ledger
from notifications.exceptions import NotCancellable, NotRetryable
from notifications.models import MessageStatus as S
from notifications.models import OutboxMessage
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


def sources(target: S) -> list[S]:
    """The statuses that may move to the target."""
    return [status for status, following in MOVES.items() if target in following]


def mark_sending(messages: Sequence[OutboxMessage]) -> set[UUID]:
    """Move messages to `sending`, with the text that goes out; in the transaction that marks their ledger rows.

    Only those that come back may go out: a receipt may have settled the others meanwhile.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE notifications AS message
            SET status = 'sending', subject = sent.subject, body_text = sent.body_text, body_html = sent.body_html,
                deferral_reason = ''
            FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[]) AS sent (id, subject, body_text, body_html)
            WHERE message.id = sent.id AND message.status = ANY(%s)
            RETURNING message.id
            """,
            [
                [message.pk for message in messages],
                [message.subject for message in messages],
                [message.body_text for message in messages],
                [message.body_html for message in messages],
                sources(S.SENDING),
            ],
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


def record(endings: Sequence[Ending]) -> None:
    """Write outcomes down, in one statement. A message that has moved on meanwhile is left as it is.

    So is an uncertain one that was stopped before another attempt: that tells nothing of the attempt before.
    """
    columns = ("status", "external_id", "error_class", "reason", "response")
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE notifications AS message
            SET status = ending.status,
                attempt_count = attempt_count + ending.attempted::int,
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
            FROM unnest(
                %s::uuid[], %s::timestamptz[], %s::bool[], %s::bool[],
                %s::text[], %s::text[], %s::text[], %s::text[], %s::text[]
            ) AS ending (id, at, attempted, dead_letter, status, external_id, error_class, reason, response)
            WHERE message.id = ending.id
              AND (message.status, ending.status) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
              AND (ending.attempted OR message.status <> 'uncertain')
            """,
            [
                [ending.message_id for ending in endings],
                [ending.at for ending in endings],
                [ending.attempted for ending in endings],
                [ending.dead_letter for ending in endings],
                *[[str(getattr(ending, column)) for ending in endings] for column in columns],
                *map(list, zip(*allowed_pairs(), strict=True)),
            ],
        )


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
    tenant_id = current_tenant_id()
    now = timezone.now()
    with transaction.atomic():
        # The ledger's row first, as a drain does: two orders would deadlock.
        ledger.lock(message.pk, tenant_id=tenant_id)
        before = OutboxMessage.objects.select_for_update().get(pk=message.pk)
        moved = OutboxMessage.objects.filter(pk=message.pk, status__in=REQUEUABLE).update(
            status=S.PENDING,
            attempt_count=0,
            retry_count=before.retry_count + 1,
            error_message="",
            error_class="",
            dead_lettered_at=None,
            scheduled_at=None,
            expires_at=max(before.expires_at, now + timedelta(seconds=settings.NOTIFY_EXPIRY_SECONDS)),
        )
        if not moved:
            raise NotRetryable(f"message {message.pk} is {before.status}: only failed ones are sent again")
        lane_id = lanes.lane_for(
            tenant_id=tenant_id,
            queue=before.priority,
            outbox_scope=before.outbox_scope,
            outbox_uuid=before.outbox_uuid,
        )
        manual = not settings.NOTIFY_SEND_IMMEDIATELY
        ledger.add([message.pk], tenant_id=tenant_id, lane_id=lane_id, manual=manual)
        _audit(before, S.PENDING, actor, reason)
        if not manual:
            bells.ring_on_commit(before.priority)
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
