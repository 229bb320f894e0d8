"""How fast messages are accepted: one a call, ten thousand in a call, a hundred thousand in a call."""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

from django.db import DatabaseError, connection

from notifications.dispatch.models import LedgerRow
from notifications.models import OutboxMessage
from notifications.services import send
from tenants.context import tenant_context
from tenants.models import Tenant
from tests.benchmarks.backlog import accept_many
from tests.benchmarks.processes import say
from tests.benchmarks.results import NotMeasured, Row, Target
from tests.benchmarks.stage import EVENT, Stage, address, booking

MESSAGES = "msg/s"


def accept(stage: Stage) -> Iterator[Row]:
    """Calls of one and of many, beside post_office's bulk call and the database's own speed."""
    size = stage.size
    measured = stage.peers.measure("post_office", size.post_office)
    theirs = [run.accept_per_s for run in measured if run.accept_per_s is not None]
    singles, bulks, bare = [], [], []
    for number in range(1, size.runs + 1):
        say(f"accepting {size.single} singly and {size.bulk} in a call: run {number} of {size.runs}")
        with stage.scene() as scene:
            tenant = scene.tenant(scene.sink())
            singles.append(size.single / _one_by_one(tenant, size.single))
            began = time.perf_counter()
            accept_many(tenant, size.bulk)
            bulks.append(size.bulk / (time.perf_counter() - began))
            _require_accepted(tenant, size.single + size.bulk + 1)
            try:
                bare.append(size.bulk / _bare_inserts(tenant, size.bulk))
            except (NotMeasured, DatabaseError) as error:
                say(f"bare set inserts were not measured: {error}")
    peer = "post_office send_many"
    yield Row(
        name="accept, a call each",
        unit=MESSAGES,
        runs=singles,
        peer=peer,
        peer_runs=theirs,
        note="Each of ours is rendered, stored and committed before the call returns; theirs is one call for all.",
    )
    name = f"accept, {size.bulk} in a call"
    yield Row(name=name, unit=MESSAGES, runs=bulks, peer=peer, peer_runs=theirs, target=Target("≥", 10_000))
    yield Row(
        name=name,
        unit=MESSAGES,
        runs=bulks,
        peer="bare set inserts",
        peer_runs=bare,
        note="Bare: the same rows of both tables, prepared before, by INSERT … SELECT unnest(…), and no more.",
    )


def _one_by_one(tenant: Tenant, count: int) -> float:
    with tenant_context(tenant):
        # Connections and caches are a platform's warm ones.
        send(to=address(0), template_key=EVENT, channel="email", context=booking(0))
        began = time.perf_counter()
        for number in range(count):
            send(to=address(number), template_key=EVENT, channel="email", context=booking(number))
        return time.perf_counter() - began


def _require_accepted(tenant: Tenant, expected: int) -> None:
    with tenant_context(tenant):
        stored = OutboxMessage.objects.count()
    due = LedgerRow.objects.filter(tenant_id=tenant.pk).count()
    if not stored == due == expected:
        raise NotMeasured(f"{stored} messages and {due} ledger rows stored, and {expected} were accepted")


def _bare_inserts(tenant: Tenant, count: int) -> float:
    """The seconds that the last `count` messages and ledger rows take into copies of their tables."""
    with tenant_context(tenant), connection.cursor() as cursor:
        return sum(
            _bare_insert(cursor, table, key, count)
            for table, key in (("notifications", "id"), ("public.dispatch_ledgerrow", "item"))
        )


def _bare_insert(cursor: Any, table: str, key: str, count: int) -> float:
    cursor.execute(f"CREATE TABLE bare (LIKE {table} INCLUDING ALL)")
    cursor.execute(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
        "WHERE attrelid = 'bare'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
    )
    kinds = dict(cursor.fetchall())
    listed = ", ".join(f"array_agg({name}::text)" for name in kinds)
    cursor.execute(f"SELECT {listed} FROM (SELECT * FROM {table} ORDER BY {key} DESC LIMIT %s) AS kept", [count])
    columns = dict(zip(kinds, cursor.fetchone(), strict=True))
    # What all rows have in common is given once.
    own = {name: values for name, values in columns.items() if len(set(values)) > 1}
    shown = ", ".join(f"{name if name in own else '%s'}::{kind}" for name, kind in kinds.items())
    common = [values[0] for name, values in columns.items() if name not in own]
    arrays = ", ".join("%s::text[]" for _ in own)
    began = time.perf_counter()
    cursor.execute(
        f"INSERT INTO bare SELECT {shown} FROM unnest({arrays}) AS given ({', '.join(own)})", [*common, *own.values()]
    )
    seconds = time.perf_counter() - began
    if cursor.rowcount != count:
        raise NotMeasured(f"{cursor.rowcount} of {count} bare rows inserted")
    cursor.execute("DROP TABLE bare")
    return seconds


def fanout(stage: Stage) -> Iterator[Row]:
    """One call for a hundred thousand, in a process of its own: its time, and how much it grows."""
    count = stage.size.fan_out
    seconds, megabytes, before = [], [], []
    for number in range(1, stage.size.runs + 1):
        say(f"accepting {count} in one call: run {number} of {stage.size.runs}")
        with stage.scene() as scene:
            tenant = scene.tenant(scene.sink())
            process = scene.start("fanout", sys.executable, "-m", "tests.benchmarks.fanout", tenant.name, str(count))
            code = process.wait(300)
            answer = process.log.read_text(encoding="utf-8").strip().splitlines()[-1:]
            if code:
                raise NotMeasured(f"the call failed: {' '.join(answer)[-300:]}")
            _require_accepted(tenant, count + 1)
            told = json.loads(answer[0])
        seconds.append(told["seconds"])
        megabytes.append(told["peak_mb"])
        before.append(told["before_mb"])
    yield Row(name=f"fan-out, {count} in a call", unit="s", runs=seconds)
    yield Row(
        name=f"fan-out, {count} in a call: most memory",
        unit="MB",
        runs=megabytes,
        peer="the same process before",
        peer_runs=before,
    )
