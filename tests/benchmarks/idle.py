"""What tenants cost that have nothing to do."""

import time
from collections.abc import Iterator, Sequence
from uuid import uuid4

from django.db import connection
from django.utils import timezone

from notifications import queues
from notifications.dispatch.models import Kind, Lane, LedgerRow
from notifications.dispatch.sweep import sweep
from notifications.models import Scope
from tenants.models import Tenant
from tests.benchmarks.processes import Process, cpu_seconds, say
from tests.benchmarks.results import NotMeasured, Row, Target
from tests.benchmarks.stage import Scene, Stage

BUSY = 10
"""Lanes with work, at most."""
SETTLING = 3.0
NOTE = (
    "CPU time of all that takes part: the sweep, or the scheduler and a worker, and PostgreSQL and Valkey. A tenant is "
    "a row and two lanes, as none of them looks into its schema; the retry job of the queue maintenance, which does, "
    "is left out."
)


def idle(stage: Stage) -> Iterator[Row]:
    """A sweep, and the processes that wait, with few tenants and with many."""
    few, many = stage.size.tenants
    with stage.scene() as scene:
        model = scene.tenant(scene.sink())
        # As much work with many tenants as with few.
        busy = min(BUSY, few)
        fewer = _measured(stage, scene, model, few, busy)
        more = _measured(stage, scene, model, many, busy)
        Tenant.objects.filter(name__startswith="Idle ").delete()
    what = (("sweep, nothing due", "ms"), (f"sweep, work in {busy} lanes", "ms"), ("idle processes", "ms/s"))
    for (name, unit), ours, theirs in zip(what, more, fewer, strict=True):
        yield Row(
            name=f"{name}, {many} tenants",
            unit=unit,
            runs=ours,
            peer=f"{few} tenants",
            peer_runs=theirs,
            target=Target("≤", 1.2, of_ratio=True),
            note=NOTE,
        )


def _measured(stage: Stage, scene: Scene, model: Tenant, tenants: int, busy: int) -> tuple[list[float], ...]:
    """The runs of sweeps with nothing due, of sweeps with work in so many lanes, and of idle processes."""
    _make_tenants(model, tenants)
    say(f"sweeping {tenants} tenants")
    runs = range(stage.size.runs)
    nothing = [_sweeps(stage, expected=0) for _ in runs]
    _give_work(busy)
    work = [_sweeps(stage, expected=busy) for _ in runs]
    LedgerRow.objects.all().delete()
    queues.redis().flushall()
    say(f"watching idle processes with {tenants} tenants")
    processes = [*scene.workers("default"), scene.scheduler()]
    time.sleep(min(SETTLING, stage.size.idle_seconds))
    idle = [_waiting(stage, processes) for _ in runs]
    scene.end_processes()
    return nothing, work, idle


def _make_tenants(model: Tenant, wanted: int) -> None:
    """Bring the number of tenants to so many: rows alone, as idle ones have no more that anybody would look at."""
    there = Tenant.objects.filter(name__startswith="Idle ").count()
    made = Tenant.objects.bulk_create(
        Tenant(name=f"Idle {number}", migrations=model.migrations) for number in range(there, wanted)
    )
    Lane.objects.bulk_create(
        Lane(tenant=tenant, queue=queue, outbox_scope=Scope.TENANT, outbox_uuid=uuid4())
        for tenant in made
        for queue in ("default", "bulk")
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


def _give_work(lanes: int) -> None:
    found = list(Lane.objects.filter(tenant__name__startswith="Idle ", queue="default")[:lanes])
    LedgerRow.objects.bulk_create(
        LedgerRow(item=uuid4(), tenant_id=lane.tenant_id, kind=Kind.SEND, lane=lane, due_at=timezone.now())
        for lane in found
    )


def _sweeps(stage: Stage, *, expected: int) -> float:
    """The CPU milliseconds of one sweep."""
    before = time.process_time() + cpu_seconds(stage.server_processes)
    for _ in range(stage.size.sweeps):
        if (rung := sweep()) != expected:
            raise NotMeasured(f"the sweep found work in {rung} lanes, and there is in {expected}")
    return (time.process_time() + cpu_seconds(stage.server_processes) - before) * 1000 / stage.size.sweeps


def _waiting(stage: Stage, processes: Sequence[Process]) -> float:
    """The CPU milliseconds a second of processes that have nothing to do."""
    watched = [process.pid for process in processes] + stage.server_processes
    before = cpu_seconds(watched)
    time.sleep(stage.size.idle_seconds)
    for process in processes:
        process.require_alive()
    return (cpu_seconds(watched) - before) * 1000 / stage.size.idle_seconds
