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
NOTE = "CPU time of all that takes part: the sweep, the scheduler or a worker, PostgreSQL and Valkey."


def idle(stage: Stage) -> Iterator[Row]:
    """A sweep, and the processes that wait, with few tenants and with many."""
    few, many = stage.size.tenants
    with stage.scene() as scene:
        model = scene.tenant(scene.sink())
        fewer = _measured(stage, scene, model, few)
        more = _measured(stage, scene, model, many)
        Tenant.objects.filter(name__startswith="Idle ").delete()
    for name, unit in (
        ("sweep, nothing due", "ms"),
        (f"sweep, work in {BUSY} lanes", "ms"),
        ("idle processes", "ms/s"),
    ):
        yield Row(
            name=f"{name}, {many} tenants",
            unit=unit,
            runs=more[name],
            peer=f"{few} tenants",
            peer_runs=fewer[name],
            target=Target("≤", 1.2, of_ratio=True),
            note=NOTE,
        )


def _measured(stage: Stage, scene: Scene, model: Tenant, tenants: int) -> dict[str, list[float]]:
    _make_tenants(model, tenants)
    say(f"sweeping {tenants} tenants")
    runs = range(stage.size.runs)
    nothing = [_sweeps(stage, expected=0) for _ in runs]
    _give_work(BUSY)
    work = [_sweeps(stage, expected=BUSY) for _ in runs]
    LedgerRow.objects.all().delete()
    queues.redis().flushall()
    say(f"watching idle processes with {tenants} tenants")
    processes = [*scene.workers("default"), scene.scheduler()]
    time.sleep(3)
    idle = [_waiting(stage, processes) for _ in runs]
    scene.end_processes()
    return {"sweep, nothing due": nothing, f"sweep, work in {BUSY} lanes": work, "idle processes": idle}


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
    expected = min(expected, stage.size.tenants[0])
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
