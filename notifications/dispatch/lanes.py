"""Lanes: which of a tenant's work may be done now, and in which order."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from notifications.models.choices import Priority
from tenants.connection import connection

TABLE = "public.dispatch_lane"
PRESSING = [str(queue) for queue in (*Priority.values, "inbound", "maintenance")]
"""The queues, most pressing first."""


@dataclass(frozen=True, slots=True)
class DueLane:
    """A lane with work that may be done now."""

    id: int
    outbox_scope: str
    outbox_uuid: UUID


def lane_for(*, tenant_id: int, queue: str, outbox_scope: str, outbox_uuid: UUID) -> int:
    """The id of the lane, made when it is first needed."""
    find = f"SELECT id FROM {TABLE} WHERE tenant_id = %s AND queue = %s AND outbox_uuid = %s"
    values: list[Any] = [tenant_id, queue, outbox_uuid]
    with connection.cursor() as cursor:
        cursor.execute(find, values)
        found = cursor.fetchone()
        if found is None:
            # An outbox's lanes are made together and in one order: two callers would otherwise wait for each other.
            cursor.execute(
                f"""
                INSERT INTO {TABLE} (tenant_id, queue, outbox_uuid, outbox_scope, paused_reason)
                SELECT %s, queue, %s, %s, '' FROM unnest(%s::text[]) AS queue
                ON CONFLICT (tenant_id, queue, outbox_uuid) DO NOTHING
                """,
                [tenant_id, outbox_uuid, outbox_scope, sorted({queue, *Priority.values})],
            )
            cursor.execute(find, values)
            found = cursor.fetchone()
    return int(found[0])


def due(*, tenant_id: int, queue: str, manual: bool = False) -> list[DueLane]:
    """The tenant's lanes in a queue with work due and nothing that holds it back, least recently served first."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT id, outbox_scope, outbox_uuid FROM {TABLE} AS lane
            WHERE tenant_id = %s AND queue = %s AND paused_reason = ''
              AND (not_before IS NULL OR not_before <= now())
              AND EXISTS (
                SELECT FROM public.dispatch_ledgerrow
                WHERE lane_id = lane.id AND manual = ANY(%s) AND due_at <= now()
                  AND (lease_until IS NULL OR lease_until < now()))
            ORDER BY last_served_at NULLS FIRST, id
            """,
            [tenant_id, queue, [False, True] if manual else [False]],
        )
        return [DueLane(*row) for row in cursor.fetchall()]


def served(lane_id: int) -> None:
    """Move the lane to the end of its tenant's round."""
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {TABLE} SET last_served_at = clock_timestamp() WHERE id = %s", [lane_id])


def hold(lane_id: int, until: datetime, *, got_nothing: bool = False) -> None:
    """Leave the lane alone until then: its sender may not send before.

    With `got_nothing` it goes before those that its sender's limit had something for.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            UPDATE {TABLE} SET not_before = %s, last_served_at = CASE WHEN %s THEN NULL ELSE last_served_at END
            WHERE id = %s AND (not_before IS NULL OR not_before < %s)
            """,
            [until, got_nothing, lane_id, until],
        )


def gives_way(lane: DueLane, *, tenant_id: int, queue: str, seconds: float) -> bool:
    """Whether the tenant has more pressing work for the same sender that nobody has begun.

    Work that has been due for longer than `seconds` is not waited for: nobody may be there for it.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT EXISTS (
                SELECT FROM {TABLE} AS pressing
                JOIN public.dispatch_ledgerrow AS ledger ON ledger.lane_id = pressing.id
                WHERE pressing.outbox_uuid = %s AND pressing.tenant_id = %s AND pressing.queue = ANY(%s)
                  AND pressing.paused_reason = '' AND NOT ledger.manual
                  AND ledger.due_at BETWEEN now() - %s::interval AND now()
                  AND (ledger.lease_until IS NULL OR ledger.lease_until < now()))
            """,
            [lane.outbox_uuid, tenant_id, PRESSING[: PRESSING.index(queue)], f"{seconds} seconds"],
        )
        found: bool = cursor.fetchone()[0]
        return found


def hold_for(lane_id: int, wait: timedelta) -> None:
    """Leave the lane alone for so long, by the database's clock."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE {TABLE} SET not_before = greatest(not_before, clock_timestamp() + %s::interval) WHERE id = %s",
            [f"{wait.total_seconds()} seconds", lane_id],
        )


def wake() -> tuple[list[tuple[int, str]], float | None]:
    """Let lanes go whose wait is over.

    Returns:
        tenant and queue of each, most pressing first and then least recently served, and the seconds until the next
        one's is over (None: none waits).
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            UPDATE {TABLE} SET not_before = NULL
            WHERE id IN (
                SELECT id FROM {TABLE} WHERE not_before <= clock_timestamp() ORDER BY id FOR UPDATE SKIP LOCKED)
            RETURNING tenant_id, queue, last_served_at
            """
        )
        first = datetime.min.replace(tzinfo=UTC)
        served = sorted(cursor.fetchall(), key=lambda row: (PRESSING.index(row[1]), row[2] or first))
        woken = list(dict.fromkeys((tenant_id, queue) for tenant_id, queue, _ in served))
        cursor.execute(f"SELECT extract(epoch FROM min(not_before) - clock_timestamp())::float8 FROM {TABLE}")
        return woken, cursor.fetchone()[0]


def hold_outboxes(outboxes: Collection[UUID], until: datetime) -> None:
    """Leave all lanes of these outboxes alone until then."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            UPDATE {TABLE} SET not_before = %s
            WHERE id IN (
                SELECT id FROM {TABLE} WHERE outbox_uuid = ANY(%s) AND (not_before IS NULL OR not_before < %s)
                ORDER BY id FOR UPDATE)
            """,
            [until, list(outboxes), until],
        )


def let_go(outboxes: Collection[UUID]) -> list[tuple[int, str]]:
    """Let all lanes of these outboxes be served again; returns tenant and queue of those that waited."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            UPDATE {TABLE} SET not_before = NULL
            WHERE id IN (
                SELECT id FROM {TABLE} WHERE outbox_uuid = ANY(%s) AND not_before IS NOT NULL ORDER BY id FOR UPDATE)
            RETURNING tenant_id, queue
            """,
            [list(outboxes)],
        )
        return sorted(set(cursor.fetchall()))
