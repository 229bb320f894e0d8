"""The sweep: asks the ledger, and only the ledger, who has due work, and rings for them.

It finds the lanes with work by a loose index scan (https://wiki.postgresql.org/wiki/Loose_indexscan), so it
costs what lanes with work cost, never what tenants cost. Every loss in Redis is thereby a delay.
"""

from collections.abc import Collection

from notifications.dispatch import bells, lanes
from tenants.connection import connection
from tenants.models import Tenant

_WAITING = """
    WITH RECURSIVE busy (lane_id) AS (
        (SELECT lane_id FROM public.dispatch_ledgerrow ORDER BY lane_id LIMIT 1)
        UNION ALL
        SELECT (SELECT lane_id FROM public.dispatch_ledgerrow WHERE lane_id > busy.lane_id ORDER BY lane_id LIMIT 1)
        FROM busy WHERE busy.lane_id IS NOT NULL
    )
    SELECT DISTINCT lane.tenant_id, lane.queue
    -- OFFSET 0 keeps the look-ups by key: a hash of the lanes would cost what tenants cost.
    FROM busy CROSS JOIN LATERAL (SELECT * FROM public.dispatch_lane WHERE id = busy.lane_id OFFSET 0) AS lane
    WHERE lane.paused_reason = '' AND (lane.not_before IS NULL OR lane.not_before <= now())
      AND EXISTS (
        SELECT FROM public.dispatch_ledgerrow AS ledger
        WHERE ledger.lane_id = lane.id AND ledger.manual = ANY(%s) AND ledger.due_at <= now()
          AND (ledger.lease_until IS NULL OR ledger.lease_until < now()))
"""


def waiting(*, manual: bool = False) -> list[tuple[str, str]]:
    """Schema and queue of all that has due work, of tenants that are served, platform included.

    With `manual`, rows that only the commands take count too.
    """
    with connection.cursor() as cursor:
        cursor.execute(_WAITING, [[False, True] if manual else [False]])
        found = cursor.fetchall()
    return sorted(served(found), key=lambda row: (lanes.PRESSING.index(row[1]), row[0]))


def served(found: Collection[tuple[int, str]]) -> list[tuple[str, str]]:
    """Schema and queue instead of tenant and queue, in the same order, without the tenants that are not served now."""
    if not found:
        return []
    serving = dict(Tenant.objects.serving().filter(pk__in={row[0] for row in found}).values_list("pk", "schema_name"))
    return [(serving[tenant_id], queue) for tenant_id, queue in found if tenant_id in serving]


def sweep() -> int:
    """Ring for all due work; the number of bells that are rung or already hanging."""
    return sum(bells.ring(schema_name, queue) for schema_name, queue in waiting())


def wake() -> float | None:
    """Ring for lanes whose wait is over; the seconds until the next one's is, None when none waits.

    So a sender's limit is used up to the moment, and no wait depends on Redis.
    """
    woken, seconds = lanes.wake()
    for schema_name, queue in served(woken):
        bells.ring(schema_name, queue)
    return seconds
