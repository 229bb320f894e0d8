"""How fast messages are delivered: claimed, decided about, rendered, limited, handed over and recorded."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache

from notifications import queues
from notifications.models import OutboxMessage
from tenants.context import tenant_context
from tests.benchmarks.backlog import accept_many
from tests.benchmarks.peers import Run
from tests.benchmarks.processes import Process, say
from tests.benchmarks.results import NotMeasured, Row, Target
from tests.benchmarks.stage import Stage

CONNECTIONS = 64
SLOW_MS = 100
MESSAGES = "msg/s"
WARM = "Ours and theirs from warm processes that have begun; e-mails accepted before."
STARTED = "Ours and theirs from starting the processes, which run for about equally long; e-mails accepted before."


@dataclass(slots=True)
class Drain:
    """One run: so many messages of one tenant, delivered by worker processes."""

    count: int
    seconds: float
    """From the bell, with the workers idle, to the last message's record."""
    start_up: float
    """From starting the workers until all listen."""
    memory: list[tuple[float, float]] = field(default_factory=list)
    """A worker's resident megabytes at each time (Unix)."""
    sent_at: list[float] = field(default_factory=list)
    """When messages were handed over (Unix), sorted."""

    @property
    def warm(self) -> float:
        """Messages a second, the workers running already."""
        return self.count / self.seconds

    @property
    def started(self) -> float:
        """Messages a second, the workers' start-up included."""
        return self.count / (self.seconds + self.start_up)

    def megabytes_after(self, messages: int) -> float:
        """The worker's memory once it had handed over so many messages."""
        at = self.sent_at[messages - 1]
        return min(self.memory, key=lambda sample: abs(sample[0] - at))[1]


def drain(stage: Stage, count: int, *, workers: int = 1, latency_ms: int = 0, connections: int | None = None) -> Drain:
    """Accept, start workers, ring, wait until all is recorded."""
    with stage.scene() as scene:
        tenant = scene.tenant(scene.sink(latency_ms=latency_ms), connections=connections)
        accept_many(tenant, count)
        # Its bell would be answered by the first worker before the others run.
        queues.redis().flushall()
        started = scene.start_workers("default", workers)
        listening = scene.wait_for_workers("default", started)
        with _watched(started[0]) as memory:
            seconds = scene.drained(tenant, count, seconds=60 + count / 50)
        with tenant_context(tenant):
            times = OutboxMessage.objects.order_by("sent_at").values_list("sent_at", flat=True)
            sent_at = [moment.timestamp() for moment in times if isinstance(moment, datetime)]
        return Drain(count, seconds, listening - started[0].began, memory, sent_at)


@contextmanager
def _watched(worker: Process) -> Iterator[list[tuple[float, float]]]:
    """The worker's memory, looked at four times a second."""
    samples: list[tuple[float, float]] = []
    ended = threading.Event()

    def watch() -> None:
        while True:
            samples.append((time.time(), worker.megabytes()))
            if ended.wait(0.25):
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def drains(
    stage: Stage, count: int, *, workers: int = 1, latency_ms: int = 0, connections: int | None = None
) -> list[Drain]:
    """As many runs as there are to be."""
    made = []
    for number in range(1, stage.size.runs + 1):
        say(f"delivering {count} with {workers} worker(s), {latency_ms} ms: run {number} of {stage.size.runs}")
        made.append(drain(stage, count, workers=workers, latency_ms=latency_ms, connections=connections))
    return made


def delivery(stage: Stage) -> Iterator[Row]:
    """At once, beside everything else."""
    size, peers = stage.size, stage.peers
    name = "delivery, 1 worker"
    ours = drains(stage, size.delivery)
    warm, started = [run.warm for run in ours], [run.started for run in ours]
    yield _beside(name, warm, "post_office", peers.measure("post_office", size.post_office), WARM, 5)
    yield _beside(name, warm, "raw smtplib", peers.measure("raw", size.raw), WARM, 0.8)
    name += ", with start-up"
    yield _beside(name, started, "celery", peers.measure("celery", size.celery), STARTED, 25)
    yield _beside(name, started, "rq", peers.measure("rq", size.rq), STARTED, 100)
    both = [run.warm for run in drains(stage, size.delivery, workers=2)]
    theirs = peers.measure("post_office", size.post_office, processes=2)
    yield _beside("delivery, 2 workers", both, "post_office, 2 processes", theirs, WARM)


def latency(stage: Stage) -> Iterator[Row]:
    """With a provider that takes 100 ms for each."""
    size, peers = stage.size, stage.peers
    slow = {"latency_ms": SLOW_MS}
    many = {**slow, "threads": CONNECTIONS}
    name = f"delivery at {SLOW_MS} ms, {CONNECTIONS} connections, 1 worker"
    ours = drains(stage, size.delivery_slow, connections=CONNECTIONS, **slow)
    warm, started = [run.warm for run in ours], [run.started for run in ours]
    yield Row(name=name, unit=MESSAGES, runs=warm, target=Target("≥", 500), note=WARM)
    yield _beside(
        name, warm, "post_office, 5 threads", peers.measure("post_office", size.post_office_slow, **slow), WARM, 15
    )
    theirs = peers.measure("post_office", size.post_office_threads, **many)
    yield _beside(name, warm, f"post_office, {CONNECTIONS} threads", theirs, WARM, 1.5)
    theirs = peers.measure("celery", size.celery_slow, processes=2, **slow)
    yield _beside(f"{name}, with start-up", started, "celery, 2 processes", theirs, STARTED)
    both = drains(stage, size.delivery_slow, workers=2, connections=CONNECTIONS, **slow)
    warm = [run.warm for run in both]
    name = f"delivery at {SLOW_MS} ms, {CONNECTIONS} connections, 2 workers"
    theirs = peers.measure("post_office", size.post_office_slow, processes=2, **slow)
    yield _beside(name, warm, "post_office, 2 processes of 5 threads", theirs, WARM)
    theirs = peers.measure("post_office", size.post_office_threads, processes=2, **many)
    yield _beside(name, warm, f"post_office, 2 processes of {CONNECTIONS} threads", theirs, WARM)


def _beside(
    name: str, ours: Sequence[float], peer: str, theirs: Sequence[Run], note: str, at_least: float | None = None
) -> Row:
    return Row(
        name=name,
        unit=MESSAGES,
        runs=ours,
        peer=peer,
        peer_runs=[run.deliver_per_s for run in theirs],
        target=None if at_least is None else Target("≥", at_least, of_ratio=True),
        note=note,
    )


def flat(stage: Stage) -> Iterator[Row]:
    """That a message costs the same, however many wait in its lane."""
    smallest, *larger = stage.size.flat
    say(f"a lane of {smallest}")
    base = [1000 / run.warm for run in drains(stage, smallest)]
    for count in larger:
        runs = _largest(stage) if count == larger[-1] else drains(stage, count)
        yield Row(
            name=f"cost of a message, {count} in one lane",
            unit="ms",
            runs=[1000 / run.warm for run in runs],
            peer=f"{smallest} in one lane",
            peer_runs=base,
            target=Target("≤", 1.2, of_ratio=True),
        )


def memory(stage: Stage) -> Iterator[Row]:
    """That a worker does not grow with what it has sent."""
    early, late = stage.size.memory
    runs = _largest(stage)
    if (largest := stage.size.flat[-1]) < late:
        raise NotMeasured(f"the largest lane has {largest} messages, and the worker is looked at after {late}")
    yield Row(
        name=f"a worker's memory after {late} messages",
        unit="MB",
        runs=[run.megabytes_after(late) for run in runs],
        peer=f"after {early}",
        peer_runs=[run.megabytes_after(early) for run in runs],
        note="The same runs as those of the largest lane.",
    )


@cache
def _largest(stage: Stage) -> list[Drain]:
    """The runs of the largest lane, made once for two benchmarks."""
    return drains(stage, stage.size.flat[-1])
