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
MESSAGES = "msg/s"


def limits(stage: Stage) -> Iterator[Row]:
    """As it is; with slow hand-overs; with Valkey wiped."""
    slow = ("--slow-every", "5", "--slow-ms", "3000")
    yield from _limited(stage, "limit", (), _let_be)
    yield from _limited(stage, "limit, a fifth of the hand-overs taking 3 s", slow, _let_be)
    yield from _limited(stage, "limit, Valkey wiped half-way", (), _wipe)


def _limited(stage: Stage, name: str, options: Sequence[str], meanwhile: Callable[[float], None]) -> Iterator[Row]:
    size = stage.size
    window, seconds = size.limit_window, size.limit_window * size.limit_windows
    allowed = size.limit * size.limit_windows
    say(f"{name}: {size.limit} in {window} s, for {seconds} s")
    stamps = stage.folder / "stamps"
    with stage.scene() as scene:
        tenant = scene.tenant(scene.sink("--stamps", str(stamps), *options), rate_limit=size.limit)
        accept_many(tenant, 2 * allowed)
        environment = {"NOTIFICATION_RATE_LIMIT_WINDOW": str(window)}
        scene.start_workers("default", WORKERS, **environment)
        scene.scheduler(**environment)

        def begun() -> bool:
            scene.require_alive()
            return bool(_read(stamps))

        wait_until(begun, what="the first message is handed over", seconds=60)
        meanwhile(seconds)
        time.sleep(max(_read(stamps)[0] + seconds - time.monotonic(), 0))
        arrived = _read(stamps)
        scene.require_alive()
    most = most_within(arrived, window)
    within = bisect_left(arrived, arrived[0] + seconds)
    yield Row(
        name=f"{name}: most in any {window} s",
        unit="messages",
        runs=[most],
        peer="the limit",
        peer_runs=[size.limit],
        target=Target("≤", 1, of_ratio=True),
        note=f"As stamped by the mail server at each mail's end; {WORKERS} workers.",
    )
    yield Row(
        name=f"{name}: used in {seconds} s",
        unit="messages",
        runs=[within],
        peer="allowed",
        peer_runs=[allowed],
        target=Target("≥", 0.95, of_ratio=True),
    )
    yield Row(
        name=f"{name}: pace",
        unit=MESSAGES,
        runs=[pace(arrived, size.limit)] if len(arrived) > size.limit else [],
        peer="the limit",
        peer_runs=[size.limit / window],
        note="From the first of one windowful to the first of the last one; counts in whole windows hide delays.",
    )


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
