"""Whether a sender's limit holds at the provider's end, and how much of it is used, with four workers at full speed."""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from notifications import queues
from tests.benchmarks.backlog import accept_many
from tests.benchmarks.processes import say, wait_until
from tests.benchmarks.results import Row, Target
from tests.benchmarks.stage import Stage

WORKERS = 4
"""Of each run."""
QUEUES = ("default", "high", "bulk")
"""Each run has one, so that runs that are made at once have workers of their own."""
MESSAGES = "msg/s"


def limits(stage: Stage) -> Iterator[Row]:
    """As it is; with slow hand-overs; with Valkey wiped."""
    slow = ("--slow-every", "5", "--slow-ms", "3000")
    yield from _limited(stage, "limit", (), _let_be)
    yield from _limited(stage, "limit, a fifth of the hand-overs taking 3 s", slow, _let_be)
    yield from _limited(stage, "limit, Valkey wiped half-way", (), _wipe)


def _limited(stage: Stage, name: str, options: Sequence[str], meanwhile: Callable[[float], None]) -> Iterator[Row]:
    """All runs at once: at such a pace they do not disturb each other, and one wiping serves them all."""
    size = stage.size
    window, seconds = size.limit_window, size.limit_window * size.limit_windows
    allowed = size.limit * size.limit_windows
    say(f"{name}: {size.limit} in {window} s, for {seconds} s: {size.runs} run(s) at once")
    runs = _at_once(stage, options, meanwhile)
    most = [most_within(arrived, window) for arrived in runs]
    yield Row(
        name=f"{name}: most in any {window} s",
        unit="messages",
        runs=most,
        value=max(most),
        peer="the limit",
        peer_runs=[size.limit],
        target=Target("≤", 1, of_ratio=True),
        note=f"The highest of the runs, as stamped by the mail server at each mail's end; {WORKERS} workers each.",
    )
    yield Row(
        name=f"{name}: used in {seconds} s",
        unit="messages",
        runs=[bisect_left(arrived, arrived[0] + seconds) for arrived in runs],
        peer="allowed",
        peer_runs=[allowed],
        target=Target("≥", 0.95, of_ratio=True),
    )
    yield Row(
        name=f"{name}: pace",
        unit=MESSAGES,
        runs=[pace(arrived, size.limit) for arrived in runs if len(arrived) > size.limit],
        peer="the limit",
        peer_runs=[size.limit / window],
        note="From the first of one windowful to the first of the last one; counts in whole windows hide delays.",
    )


def _at_once(stage: Stage, options: Sequence[str], meanwhile: Callable[[float], None]) -> list[list[float]]:
    """When each run's mails arrived: a tenant, a mail server, a queue and its workers a run, and one scheduler."""
    size = stage.size
    seconds = size.limit_window * size.limit_windows
    books = {queue: stage.folder / f"stamps-{queue}" for queue in QUEUES[: size.runs]}
    environment = {"NOTIFICATION_RATE_LIMIT_WINDOW": str(size.limit_window)}
    with stage.scene() as scene:
        tenants = {
            queue: scene.tenant(scene.sink("--stamps", str(book), *options), rate_limit=size.limit)
            for queue, book in books.items()
        }
        scene.scheduler(**environment)
        started = {queue: scene.start_workers(queue, WORKERS, **environment) for queue in books}
        for queue, workers in started.items():
            scene.wait_for_workers(queue, workers)
        for queue, tenant in tenants.items():
            accept_many(tenant, 2 * size.limit * size.limit_windows, priority=queue)

        def begun() -> bool:
            scene.require_alive()
            return all(_read(book) for book in books.values())

        wait_until(begun, what="the first messages are handed over", seconds=60)
        meanwhile(seconds)
        last = max(_read(book)[0] for book in books.values())
        time.sleep(max(last + seconds - time.monotonic(), 0))
        arrived = [_read(book) for book in books.values()]
        scene.require_alive()
    return arrived


def most_within(arrived: Sequence[float], window: float) -> int:
    """The most arrivals (sorted, in seconds) in any window of so many seconds that holds its beginning, not its end."""
    return max(bisect_left(arrived, first + window) - position for position, first in enumerate(arrived))


def pace(arrived: Sequence[float], limit: int) -> float:
    """Arrivals a second, by the beginnings of the first and the last windowful, of `limit` each."""
    whole = (len(arrived) - 1) // limit * limit
    return whole / (arrived[whole] - arrived[0])


def _read(stamps: Path) -> list[float]:
    """When mails arrived, in monotonic seconds; a line that is being written is left out."""
    if not stamps.exists():
        return []
    return sorted(
        float(line) for line in stamps.read_text(encoding="ascii").splitlines(keepends=True) if line[-1] == "\n"
    )


def _let_be(_: float) -> None:
    pass


def _wipe(seconds: float) -> None:
    time.sleep(seconds / 2)
    say("  wiping Valkey")
    queues.redis().flushall()
