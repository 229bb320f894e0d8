"""The ledger's statements: claim work under a lease, mark what goes out, take off what is done.

Times are the database's, so that workers whose clocks differ agree. Every statement that touches
claimed rows names the claim's token: a worker that lost its lease changes nothing any more. Rows are
claimed with `FOR UPDATE SKIP LOCKED`, so any number of workers drain one lane without waiting.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from django.conf import settings
from django.utils import timezone

from notifications.dispatch.models import Kind
from tenants.connection import connection, one_trip

TABLE = "public.dispatch_ledgerrow"


@dataclass(frozen=True, slots=True)
class Claimed:
    """One claimed row."""

    item: UUID
    deaths: int
    suspect: bool  # an earlier worker died with it in a claim
    handed_over: bool  # … and may have handed it over


@dataclass(slots=True)
class Claim:
    """Rows of one lane that are this worker's until the lease ends."""

    tenant_id: int
    worker: str
    token: UUID = field(default_factory=uuid4)
    rows: Sequence[Claimed] = ()
    """What was claimed last."""
    open: set[UUID] = field(default_factory=set)
    """All that was claimed and is not yet given back or taken off."""
    renewed_at: float = field(default_factory=time.monotonic)
    ahead: timedelta = timedelta()
    """How far the database's clock is ahead of this process's, which may be wrong by any amount."""

    def now(self) -> datetime:
        """The time by the database's clock."""
        return self.by_database(timezone.now())

    def by_database(self, moment: datetime) -> datetime:
        """A moment of this process's clock, by the database's."""
        return moment + self.ahead


def database_time() -> datetime:
    """The time now by the clock that decides when something is due."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        now: datetime = cursor.fetchone()[0]
        return now


def _lease() -> str:
    return f"{settings.NOTIFY_LOCK_TIMEOUT_SECONDS} seconds"


def add(
    items: Sequence[UUID],
    *,
    tenant_id: int,
    lane_id: int,
    due_at: datetime | None = None,
    manual: bool = False,
    kind: Kind = Kind.SEND,
) -> None:
    """Write down work, due at once unless `due_at` says later. Work that is there already is made due then."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            INSERT INTO {TABLE} (item, tenant_id, kind, lane_id, due_at, manual, worker, deaths)
            SELECT item, %s, %s, %s, coalesce(%s, now()), %s, '', 0 FROM unnest(%s::uuid[]) AS item
            ON CONFLICT (item, tenant_id, kind) DO UPDATE
            SET lane_id = excluded.lane_id, due_at = excluded.due_at, manual = excluded.manual, deaths = 0
            """,
            [tenant_id, kind, lane_id, due_at, manual, list(items)],
        )


def claim(
    lane_id: int, *, tenant_id: int, limit: int, worker: str, manual: bool = False, only: UUID | None = None
) -> Claim:
    """Claim at most `limit` due rows of a lane, oldest first; with `only`, no other row than that one.

    Rows flagged for the commands are left alone unless `manual` says that a command asks.
    """
    found = Claim(tenant_id, worker[:100])
    extend(found, lane_id, limit=limit, manual=manual, only=only)
    return found


def extend(
    claim: Claim, lane_id: int, *, limit: int, manual: bool = False, only: UUID | None = None
) -> Sequence[Claimed]:
    """Claim more of a lane under the same token; returns what was added, which is `claim.rows` then."""
    with one_trip(), connection.cursor() as cursor:
        cursor.execute(
            f"""
            WITH due AS (
                SELECT ctid AS place, due_at, token, handed_over_at, deaths FROM {TABLE}
                WHERE lane_id = %(lane)s AND manual = ANY(%(manual)s) AND due_at <= now()
                  AND (lease_until IS NULL OR lease_until < now())
                  AND (%(only)s::uuid IS NULL OR item = %(only)s)
                ORDER BY due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
            )
            UPDATE {TABLE} AS ledger
            SET lease_until = now() + %(lease)s::interval, token = %(token)s, worker = %(worker)s
            FROM due
            -- A claim that a crash of the server forgets was never made; a mark, which is durable, brings it along.
            WHERE ledger.ctid = due.place AND (SELECT set_config('synchronous_commit', 'off', true)) = 'off'
            RETURNING due.due_at, ledger.item, due.deaths, due.token IS NOT NULL, due.handed_over_at IS NOT NULL,
                clock_timestamp()
            """,
            {
                "lane": lane_id,
                "manual": [False, True] if manual else [False],
                "only": only,
                "limit": limit,
                "lease": _lease(),
                "token": claim.token,
                "worker": claim.worker,
            },
        )
        rows = sorted(cursor.fetchall())
    if rows:
        claim.ahead = max(row[-1] for row in rows) - timezone.now()
    claim.rows = [Claimed(*row[1:-1]) for row in rows]
    claim.open.update(row.item for row in claim.rows)
    return claim.rows


def _ours(claim: Claim, items: Sequence[UUID]) -> list[Any]:
    return [list(items), claim.tenant_id, Kind.SEND, claim.token]


_OURS = "item = ANY(%s) AND tenant_id = %s AND kind = %s AND token = %s"


def renew(claim: Claim) -> None:
    """Hold the lease on all rows that are left of a claim for a full lease from now."""
    claim.renewed_at = time.monotonic()
    ours = _ours(claim, list(claim.open))
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {TABLE} SET lease_until = now() + %s::interval WHERE {_OURS}", [_lease(), *ours])


def hold(claim: Claim) -> None:
    """Renew a claim when a third of its lease has passed; called before each step, for what waits behind it."""
    if time.monotonic() - claim.renewed_at >= settings.NOTIFY_LOCK_TIMEOUT_SECONDS / 3:
        renew(claim)


def charge(claim: Claim, item: UUID) -> None:
    """Count a death against a row that is about to be worked on alone; finishing takes it back."""
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {TABLE} SET deaths = deaths + 1 WHERE {_OURS}", _ours(claim, [item]))


def mark_handed_over(claim: Claim, items: Sequence[UUID]) -> set[UUID]:
    """Mark rows as on their way; only those that come back may go out, the lease on the others was lost."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            UPDATE {TABLE} SET handed_over_at = now(), lease_until = now() + %s::interval
            WHERE {_OURS} AND lease_until > now() RETURNING item
            """,
            [_lease(), *_ours(claim, items)],
        )
        return {row[0] for row in cursor.fetchall()}


def finish(claim: Claim, items: Sequence[UUID]) -> None:
    """Take rows off the ledger: their work is done, or only a person can take it further."""
    if not items:
        return
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {TABLE} WHERE {_OURS}", _ours(claim, items))
    claim.open.difference_update(items)


def postpone(claim: Claim, items: Sequence[UUID], due_at: Sequence[datetime | None]) -> None:
    """Give rows back, each due at its time (None: at once)."""
    if not items:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            UPDATE {TABLE} AS ledger
            SET due_at = coalesce(later.due_at, now()), lease_until = NULL, token = NULL, handed_over_at = NULL,
                deaths = 0
            FROM unnest(%s::uuid[], %s::timestamptz[]) AS later (item, due_at)
            WHERE ledger.item = later.item AND tenant_id = %s AND kind = %s AND token = %s
            """,
            [list(items), list(due_at), claim.tenant_id, Kind.SEND, claim.token],
        )
    claim.open.difference_update(items)


def release(claim: Claim, items: Sequence[UUID]) -> None:
    """Give rows back as they were, for the next turn.

    One that was charged a death is not charged for what did not begin, and goes alone again: its token stays.
    """
    if not items:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            UPDATE {TABLE}
            SET lease_until = NULL, token = CASE WHEN deaths > 0 THEN token END, deaths = greatest(deaths - 1, 0)
            WHERE {_OURS}
            """,
            _ours(claim, items),
        )
    claim.open.difference_update(items)


def leave(claim: Claim, items: Sequence[UUID]) -> None:
    """Give suspects back that were not begun: they are suspects still."""
    if not items:
        return
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {TABLE} SET lease_until = NULL WHERE {_OURS}", _ours(claim, items))
    claim.open.difference_update(items)


def move(claim: Claim, items: Sequence[UUID], lane_id: int) -> None:
    """Give rows to another lane, due at once."""
    if not items:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            UPDATE {TABLE}
            SET lane_id = %s, due_at = now(), lease_until = NULL, token = NULL, handed_over_at = NULL, deaths = 0
            WHERE {_OURS}
            """,
            [lane_id, *_ours(claim, items)],
        )
    claim.open.difference_update(items)


def lock(item: UUID, *, tenant_id: int, kind: Kind = Kind.SEND) -> None:
    """Lock the row of an item, if there is one, until the transaction ends."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT 1 FROM {TABLE} WHERE item = %s AND tenant_id = %s AND kind = %s FOR UPDATE",
            [item, tenant_id, kind],
        )


def lock_unclaimed(item: UUID, *, tenant_id: int, kind: Kind = Kind.SEND) -> bool:
    """Lock the row of an item until the transaction ends; False when a worker has it, or there is none."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT 1 FROM {TABLE}
            WHERE item = %s AND tenant_id = %s AND kind = %s AND (lease_until IS NULL OR lease_until < now())
              AND handed_over_at IS NULL
            FOR UPDATE
            """,
            [item, tenant_id, kind],
        )
        return cursor.fetchone() is not None


def drop(item: UUID, *, tenant_id: int, kind: Kind = Kind.SEND) -> None:
    """Take an item off the ledger, whoever holds it."""
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {TABLE} WHERE item = %s AND tenant_id = %s AND kind = %s", [item, tenant_id, kind])
