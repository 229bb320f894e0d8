"""How long messages wait: urgent ones behind a burst, scheduled ones for their time, one tenant's beside another's."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial

from django.utils import timezone

from notifications.dispatch.models import LedgerRow
from notifications.models import MessageStatus, OutboxMessage
from notifications.services import send
from tenants.context import tenant_context
from tenants.models import Tenant
from tests.benchmarks.backlog import accept_many
from tests.benchmarks.processes import say, wait_until
from tests.benchmarks.results import NotMeasured, Row, Target, percentile
from tests.benchmarks.stage import CODE, EVENT, Scene, Stage, address, booking, sender

QUEUES = ("default", "bulk")
PATIENCE = 60.0
WAITING = (MessageStatus.PENDING, MessageStatus.SCHEDULED, MessageStatus.SENDING)
OUTBOXES = 20
STEP = 0.6
"""Seconds: a hundred a minute."""


def urgent(stage: Stage) -> Iterator[Row]:
    """Sign-in codes of one tenant while another has a hundred thousand due."""
    size = stage.size
    middle, late = [], []
    for number in range(1, size.runs + 1):
        say(f"urgent behind {size.backlog}: run {number} of {size.runs}")
        with stage.scene() as scene:
            port = scene.sink()
            large, small = scene.tenant(port), scene.tenant(port)
            for queue in QUEUES:
                accept_many(large, size.backlog // len(QUEUES), priority=queue)
            _start(scene, ("urgent", *QUEUES))
            _require_moving(scene, large)
            before = _left(large)
            _paced(int(size.urgent_seconds * 5), 0.2, partial(_send, small, CODE))
            _require_left(large, before)
            waits = _waits(scene, small, since="created_at")
        middle.append(percentile(waits, 0.5))
        late.append(percentile(waits, 0.99))
    name = f"urgent while another tenant has {size.backlog} due, accept to hand-over"
    yield Row(name=f"{name}: half within", unit="s", runs=middle)
    yield Row(name=f"{name}: 99 % within", unit="s", runs=late, target=Target("≤", 1))


def due(stage: Stage) -> Iterator[Row]:
    """Scheduled messages, each a little later than the one before."""
    size = stage.size
    late = []
    for number in range(1, size.runs + 1):
        say(f"{size.due} scheduled over {size.due_seconds:g} s: run {number} of {size.runs}")
        with stage.scene() as scene:
            tenant = scene.tenant(scene.sink())
            scene.workers("default")
            scene.scheduler()
            time.sleep(min(2, size.due_seconds))
            first = timezone.now() + timedelta(seconds=min(3, 1 + size.due_seconds))
            step = timedelta(seconds=size.due_seconds / size.due)
            for position in range(size.due):
                _send(tenant, EVENT, position, scheduled_at=first + position * step)
            late.append(percentile(_waits(scene, tenant, since="scheduled_at", more=size.due_seconds + 5), 0.99))
    yield Row(
        name="due time to hand-over: 99 % within",
        unit="s",
        runs=late,
        target=Target("≤", 2),
        note="rq-scheduler by itself looks once in 60 s.",
    )


def fairness(stage: Stage) -> Iterator[Row]:
    """A small tenant beside a large one that has filled twenty outboxes, one of which leads to a dead server."""
    size = stage.size
    late = []
    for number in range(1, size.runs + 1):
        say(f"another tenant has {size.backlog} each in {' and '.join(QUEUES)}, in {OUTBOXES} outboxes")
        say(f"one message each {STEP:g} s for {size.fairness_seconds:g} s: run {number} of {size.runs}")
        with stage.scene() as scene:
            port = scene.sink()
            large = scene.tenant(*[port] * (OUTBOXES - 1), scene.sink("--stall"))
            small = scene.tenant(port)
            for queue in QUEUES:
                for position in range(OUTBOXES):
                    share = size.backlog // OUTBOXES
                    accept_many(large, share, first=position * share, priority=queue, from_address=sender(position))
            scene.scheduler()
            _start(scene, QUEUES)
            _require_moving(scene, large)
            before = _left(large)
            _paced(int(size.fairness_seconds / STEP), STEP, partial(_send, small, EVENT))
            _require_left(large, before)
            late.append(percentile(_waits(scene, small, since="created_at"), 0.99))
    yield Row(
        name=f"one tenant beside {2 * size.backlog} of another's in {OUTBOXES} outboxes, one stalled: 99 % within",
        unit="s",
        runs=late,
        target=Target("≤", 2),
        note=f"One message each {STEP:g} s for {size.fairness_seconds:g} s.",
    )


def _start(scene: Scene, queues: Sequence[str]) -> None:
    """One worker a queue, all listening when this returns."""
    started = {queue: scene.start_workers(queue) for queue in queues}
    for queue, workers in started.items():
        scene.wait_for_workers(queue, workers)


def _send(tenant: Tenant, event_key: str, number: int, *, scheduled_at: datetime | None = None) -> None:
    send(
        to=address(number),
        template_key=event_key,
        channel="email",
        context=booking(number),
        tenant=tenant,
        scheduled_at=scheduled_at,
    )


def _paced(count: int, every: float, call: Callable[[int], None]) -> None:
    """Call at fixed times, however long each call takes."""
    began = time.monotonic()
    for number in range(count):
        time.sleep(max(began + number * every - time.monotonic(), 0))
        call(number)


def _left(tenant: Tenant) -> int:
    return LedgerRow.objects.filter(tenant_id=tenant.pk).count()


def _require_moving(scene: Scene, tenant: Tenant) -> None:
    """Wait until workers have taken up the tenant's backlog."""
    whole = _left(tenant)

    def moving() -> bool:
        scene.require_alive()
        return _left(tenant) < whole

    wait_until(moving, what="the backlog begins to shrink", seconds=PATIENCE, every=0.2)


def _require_left(tenant: Tenant, before: int) -> None:
    """Raise NotMeasured unless a backlog lasted, and was worked at, through the measurement."""
    left = _left(tenant)
    say(f"  the other tenant's work went from {before} to {left}")
    if not 0 < left < before:
        raise NotMeasured(f"the other tenant's work went from {before} to {left}: it was to shrink, and to last")


def _waits(scene: Scene, tenant: Tenant, *, since: str, more: float = 0) -> list[float]:
    """How many seconds each message waited for its hand-over, in the order of acceptance.

    What is not handed over when patience ends counts with what it has waited until then.

    Raises:
        NotMeasured: a message came to another end than being sent.
    """
    with suppress(NotMeasured):
        wait_until(lambda: not scene.waiting(tenant), what="all are handed over", seconds=PATIENCE + more, every=0.1)
    scene.require_alive()
    with tenant_context(tenant):
        rows = list(OutboxMessage.objects.order_by("id").values_list("status", since, "sent_at"))
    now = timezone.now()
    statuses = Counter(status for status, _, _ in rows)
    say(f"  {', '.join(f'{number} {status}' for status, number in statuses.items())}")
    if ended := [status for status, _, sent_at in rows if sent_at is None and status not in WAITING]:
        raise NotMeasured(f"{len(ended)} messages are {' and '.join(set(ended))}")
    return [((sent_at or now) - begun).total_seconds() for _, begun, sent_at in rows]
