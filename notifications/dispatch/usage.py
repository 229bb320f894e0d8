"""How much a tenant used in the current day or minute, counted in the transaction that uses it.

A count is spread over rows: each transaction takes one that no other holds, and makes one when there is none.
So nobody ever waits for another's transaction, however long it is; what others have not committed is not seen
yet, and the sum may for that moment be too low. Periods are those of the database's clock, in UTC.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from tenants.connection import connection

TABLE = "public.dispatch_usage"


@dataclass(frozen=True, slots=True)
class Measure:
    """What is counted, and the period over which it is."""

    name: str
    unit: Literal["day", "minute"]


_PERIOD = "date_trunc(%(unit)s, statement_timestamp(), 'UTC')"
_CURRENT = f"tenant_id = %(tenant)s AND measure = %(measure)s AND period = {_PERIOD}"


def used(measure: Measure, *, tenant_id: int) -> int:
    """How much the tenant used in the current period."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT coalesce(sum(used), 0) FROM {TABLE} WHERE {_CURRENT}", _values(measure, tenant_id))
        return int(cursor.fetchone()[0])


def add(measure: Measure, number: int, *, tenant_id: int) -> None:
    """Count so much more; undone with the transaction."""
    values = _values(measure, tenant_id) | {"number": number}
    with connection.cursor() as cursor:
        # By its key: another version of the row than the one that was seen would not be found by its place.
        cursor.execute(
            f"""
            UPDATE {TABLE} SET used = used + %(number)s
            WHERE id = (SELECT id FROM {TABLE} WHERE {_CURRENT} ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
            """,
            values,
        )
        if cursor.rowcount:
            return
        cursor.execute(
            f"""
            INSERT INTO {TABLE} (tenant_id, measure, period, used)
            VALUES (%(tenant)s, %(measure)s, {_PERIOD}, %(number)s)
            """,
            values,
        )
        # A new row is rare, and mostly a new period's first: the time to forget those that are over.
        cursor.execute(
            f"""
            DELETE FROM {TABLE} WHERE id IN (
                SELECT id FROM {TABLE} WHERE tenant_id = %(tenant)s AND measure = %(measure)s AND period < {_PERIOD}
                FOR UPDATE SKIP LOCKED)
            """,
            values,
        )


def once(measure: Measure, *, tenant_id: int) -> bool:
    """Whether the caller is the first in this period to ask; the others are told no, at once.

    While the first one's transaction is open, nobody else is the first either.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_try_advisory_xact_lock(hashtextextended(%s, %s))", [f"usage.{measure.name}", tenant_id]
        )
        (free,) = cursor.fetchone()
    if not free or used(measure, tenant_id=tenant_id):
        return False
    add(measure, 1, tenant_id=tenant_id)
    return True


def next_period(measure: Measure) -> datetime:
    """When the next period begins."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {_PERIOD} + ('1 ' || %(unit)s)::interval", {"unit": measure.unit})
        found: datetime = cursor.fetchone()[0]
        return found


def _values(measure: Measure, tenant_id: int) -> dict[str, int | str]:
    return {"tenant": tenant_id, "measure": measure.name, "unit": measure.unit}
