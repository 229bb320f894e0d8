"""Accounts that had better be left alone for a while, so that a provider in trouble gets no more to refuse.

An account's lanes wait until the time that its provider named (429 and Retry-After), until somebody may have mended
its credentials, or, after failures in a row, until its circuit half-opens
(https://martinfowler.com/bliki/CircuitBreaker.html): then one worker tries with one message, and the answer closes
the circuit or opens it for twice as long. An account that is well has no row. All times are the database's.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from notifications.dispatch import lanes
from tenants.connection import connection

FAILURES = 5
"""Hand-overs in a row that the provider could not take before the circuit opens."""
PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(minutes=15)
THROTTLED_PAUSE = timedelta(minutes=1)
"""For a provider that says "too much" and not until when."""
AUTH_PAUSE = timedelta(minutes=15)
PROBE = timedelta(minutes=3)
"""For how long the one that tries keeps the others waiting, at most: longer than any hand-over takes."""

TABLE = "public.dispatch_accounthold"


@dataclass(frozen=True, slots=True)
class Who:
    """An account: `owner` is its tenant's key, or the platform's (`limiter.PLATFORM`)."""

    owner: int
    account: UUID
    outboxes: tuple[UUID, ...]
    """All of its senders: their lanes wait with it."""


@dataclass(frozen=True, slots=True)
class State:
    """How an account is: `until` when it is to be left alone, None when it may be used or tried."""

    until: datetime | None = None
    half_open: bool = False
    failures: int = 0
    reason: str = ""

    @property
    def well(self) -> bool:
        """Whether nothing is held against it."""
        return self == WELL


WELL = State()


def state_of(owner: int, account: UUID) -> State:
    """How an account is now."""
    return states_of(owner, [account])[account]


def states_of(owner: int, accounts: Collection[UUID]) -> dict[UUID, State]:
    """How accounts of one owner are now."""
    states = dict.fromkeys(accounts, WELL)
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT account, CASE WHEN not_before > clock_timestamp() THEN not_before END, not_before IS NOT NULL,
                failures, reason
            FROM {TABLE} WHERE owner = %s AND account = ANY(%s)
            """,
            [owner, list(states)],
        )
        for account, until, held, failures, reason in cursor.fetchall():
            states[account] = State(until, held and until is None, failures, reason)
    return states


def probe(who: Who) -> bool:
    """Win the right to try a half-open account, for one message; False when another worker tries it already."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            UPDATE {TABLE} SET not_before = clock_timestamp() + %s::interval
            WHERE owner = %s AND account = %s AND not_before <= clock_timestamp()
            """,
            [_interval(PROBE), who.owner, who.account],
        )
        return bool(cursor.rowcount)


def leave(who: Who) -> None:
    """Give up the right to try an account: there was nothing to try it with."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE {TABLE} SET not_before = clock_timestamp() WHERE owner = %s AND account = %s",
            [who.owner, who.account],
        )


def pause(who: Who, *, wait: timedelta, reason: str) -> datetime:
    """Leave an account alone for so long, unless it is for longer already; returns until when its lanes wait."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            INSERT INTO {TABLE} AS kept (owner, account, failures, opened, not_before, reason)
            VALUES (%s, %s, 0, 1, clock_timestamp() + %s::interval, %s)
            ON CONFLICT (owner, account) DO UPDATE
            SET not_before = greatest(kept.not_before, excluded.not_before), reason = excluded.reason,
                opened = greatest(kept.opened, 1)
            RETURNING not_before
            """,
            [who.owner, who.account, _interval(wait), reason[:200]],
        )
        until: datetime = cursor.fetchone()[0]
    lanes.hold_outboxes(who.outboxes, until)
    return until


def failed(who: Who, *, times: int, reason: str) -> datetime | None:
    """Count hand-overs that the provider could not take; until when the circuit is open, None while it is closed.

    A failed try of a half-open circuit opens it for twice as long as before.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            INSERT INTO {TABLE} AS kept (owner, account, failures, opened, reason) VALUES (%s, %s, %s, 0, %s)
            ON CONFLICT (owner, account) DO UPDATE
            SET failures = kept.failures + excluded.failures, reason = excluded.reason
            RETURNING failures, opened
            """,
            [who.owner, who.account, times, reason[:200]],
        )
        failures, opened = cursor.fetchone()
        if failures < FAILURES and not opened:
            return None
        cursor.execute(
            f"""
            UPDATE {TABLE} SET failures = 0, opened = opened + 1, not_before = clock_timestamp() + %s::interval
            WHERE owner = %s AND account = %s RETURNING not_before
            """,
            [_interval(min(PAUSE * 2 ** min(opened, 10), LONGEST_PAUSE)), who.owner, who.account],
        )
        until: datetime = cursor.fetchone()[0]
    lanes.hold_outboxes(who.outboxes, until)
    return until


def well(who: Who) -> Sequence[tuple[int, str]]:
    """The account works again: forget what was held against it, and let its lanes go.

    Returns:
        tenant and queue of the lanes that waited.
    """
    with connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {TABLE} WHERE owner = %s AND account = %s", [who.owner, who.account])
    return lanes.let_go(who.outboxes)


def _interval(wait: timedelta) -> str:
    return f"{wait.total_seconds()} seconds"
