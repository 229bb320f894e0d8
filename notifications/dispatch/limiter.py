"""How much a sender may hand over: at most `limit` in any sliding window, as the provider counts them.

A permit counts from its grant until a window after its hand-over ended, because the provider saw it at some time
between the two. Permits are kept as counts by the bucket in which they end, a hundredth of the window each, so a
million an hour take as little room as ten, and at most a hundredth is left unused. A permit in use stands in the
bucket of its lease's end; when its hand-over ends it moves to the bucket of that moment. Those of a worker that
died are never moved, and so count as used.

The row is locked for as long as one grant takes. All times are the database's.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import floor
from uuid import UUID

from tenants.connection import connection

BUCKETS = 100
PLATFORM = 0
"""The owner of the shared outboxes, which tenants take turns on."""

TABLE = "public.dispatch_outboxwindow"


@dataclass(frozen=True, slots=True)
class Limit:
    """An outbox's limit: so many hand-overs in any so many seconds. `owner` is its tenant's key, or PLATFORM."""

    owner: int
    outbox: UUID
    most: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Grant:
    """Permits to hand over: `bucket` is where they stand, `retry_at` when more will be free, if they were too few."""

    limit: Limit
    permits: int
    bucket: int
    retry_at: datetime | None


def bucket_at(moment: float, seconds: float) -> int:
    """The number of the bucket that a moment (seconds since 1970) falls into."""
    return floor(moment * BUCKETS / seconds)


def frees_at(bucket: int, seconds: float) -> float:
    """When the permits that end in a bucket no longer count: a window after the bucket's own end."""
    return (bucket + 1) * seconds / BUCKETS + seconds


def counting(ends: Mapping[int, int], now: float, seconds: float) -> dict[int, int]:
    """The buckets whose permits still count."""
    return {bucket: permits for bucket, permits in ends.items() if permits and frees_at(bucket, seconds) > now}


def recounted(ends: Mapping[int, int], was: float, seconds: float) -> dict[int, int]:
    """The same permits in the buckets of another window, each until no sooner than before; `was` 0: of none yet."""
    if was in {0, seconds}:
        return dict(ends)
    moved: dict[int, int] = {}
    for bucket, permits in ends.items():
        end = bucket_at((bucket + 1) * was / BUCKETS, seconds)
        moved[end] = moved.get(end, 0) + permits
    return moved


def grant(
    ends: Mapping[int, int], limit: Limit, *, wanted: int, now: float, lease: float
) -> tuple[dict[int, int], Grant]:
    """Take as many of the wanted permits as are free; the buckets as they are then, and the grant."""
    ends = counting(ends, now, limit.seconds)
    free = max(limit.most - sum(ends.values()), 0)
    taken = min(wanted, free)
    bucket = bucket_at(now + lease, limit.seconds)
    retry_at = None
    if taken < wanted:
        # Those in use may end at any moment: they are waited for as if that were now.
        earliest = min(min(ends, default=bucket), bucket_at(now, limit.seconds))
        retry_at = datetime.fromtimestamp(frees_at(earliest, limit.seconds), UTC)
    if taken:
        ends[bucket] = ends.get(bucket, 0) + taken
    return ends, Grant(limit, taken, bucket, retry_at)


def settle(
    ends: Mapping[int, int], limit: Limit, *, bucket: int, ended: Sequence[float], unused: int, now: float
) -> dict[int, int]:
    """Move permits from their lease's bucket to where their hand-overs ended, and give the unused back."""
    moved = dict(ends)
    standing = moved.get(bucket, 0)
    moved[bucket] = max(standing - len(ended) - unused, 0)
    for moment in ended[: standing or None] if standing else ():
        end = bucket_at(moment, limit.seconds)
        moved[end] = moved.get(end, 0) + 1
    return counting(moved, now, limit.seconds)


def take(limit: Limit, *, wanted: int, lease: float) -> Grant:
    """Take permits, immediately before the hand-over that they are for and in the transaction that marks it.

    Args:
        limit: the outbox's.
        wanted: how many hand-overs are to begin.
        lease: the seconds after which the permits count as used, unless they are settled.
    """
    ends, now = _locked(limit)
    ends, granted = grant(ends, limit, wanted=wanted, now=now, lease=lease)
    if granted.permits:
        _store(limit, ends)
    return granted


def give_back(granted: Grant, *, ended_ago: Sequence[float] = (), unused: int = 0) -> None:
    """Settle permits of a grant, in any number of parts: hand-overs that ended so many seconds ago, and unused ones."""
    limit = granted.limit
    ends, now = _locked(limit)
    ended = [now - ago for ago in ended_ago]
    _store(limit, settle(ends, limit, bucket=granted.bucket, ended=ended, unused=unused, now=now))


def free_now(limit: Limit) -> int:
    """How many permits are free; only looks."""
    return max(limit.most - used([limit])[limit.outbox], 0)


def used(limits: Sequence[Limit]) -> dict[UUID, int]:
    """How many permits count now, by outbox; only looks."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT owner, outbox, ends, seconds, extract(epoch FROM clock_timestamp())::float8
            FROM {TABLE} WHERE owner = ANY(%s) AND outbox = ANY(%s)
            """,
            [[limit.owner for limit in limits], [limit.outbox for limit in limits]],
        )
        windows = {(row[0], row[1]): (_read(row[2]), row[3], row[4]) for row in cursor.fetchall()}
    counts = {}
    for limit in limits:
        ends, was, now = windows.get((limit.owner, limit.outbox), ({}, 0.0, 0.0))
        counts[limit.outbox] = sum(counting(recounted(ends, was, limit.seconds), now, limit.seconds).values())
    return counts


def _locked(limit: Limit) -> tuple[dict[int, int], float]:
    """The buckets, locked until the transaction ends, and the time after the lock was had."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            INSERT INTO {TABLE} AS kept (owner, outbox, ends) VALUES (%s, %s, '{{}}')
            ON CONFLICT (owner, outbox) DO UPDATE SET ends = kept.ends
            RETURNING ends, seconds, extract(epoch FROM clock_timestamp())::float8
            """,
            [limit.owner, limit.outbox],
        )
        ends, was, now = cursor.fetchone()
    return recounted(_read(ends), was, limit.seconds), now


def _store(limit: Limit, ends: Mapping[int, int]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE {TABLE} SET ends = %s, seconds = %s WHERE owner = %s AND outbox = %s",
            [json.dumps(ends), limit.seconds, limit.owner, limit.outbox],
        )


def _read(ends: str | Mapping[str, int]) -> dict[int, int]:
    found = json.loads(ends) if isinstance(ends, str) else ends
    return {int(bucket): permits for bucket, permits in found.items()}
