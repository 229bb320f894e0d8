"""The benchmark, with numbers too small to mean anything: that it measures, compares and tells what it could not."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import takewhile
from pathlib import Path

import psutil
import pytest

from notifications.channels.fake import Fake
from tenants.models import Tenant
from tests.benchmarks.limits import most_within, pace
from tests.benchmarks.results import NotMeasured, Report, Row, Target, percentile
from tests.benchmarks.stage import require_sent
from tests.factories import accepted, turn

ROOT = Path(__file__).parents[2]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks", "--size", "tiny", *arguments]


def environment(**changed: str) -> dict[str, str]:
    return {**os.environ, "PEERS": "/absent", **changed}


def test_a_run_prints_progress_and_a_table_and_stores_each_figure(tmp_path: Path) -> None:
    stored = tmp_path / "made" / "bench.json"
    done = subprocess.run(
        command("--only", "delivery,accept", "--output", str(stored)),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "peers: the peers' folder is absent: set PEERS to it" in done.stderr
    assert "delivering 60 with 2 worker(s)" in done.stderr
    rows = json.loads(stored.read_text(encoding="utf-8"))
    assert [row["name"] for row in rows] == [
        *["delivery, 1 worker"] * 2,
        *["delivery, 1 worker, with start-up"] * 2,
        "delivery, 2 workers",
        "accept, a call each",
        *["accept, 50 in a call"] * 2,
    ]
    for row in rows:
        assert row["unit"] == "msg/s"
        assert row["runs"] == [row["ours"]]
        assert row["ours"] > 0
    *beside_peers, beside_inserts = rows
    assert {(row["peer_value"], row["ratio"], tuple(row["peer_runs"])) for row in beside_peers} == {(None, None, ())}
    assert beside_inserts["ratio"] == pytest.approx(beside_inserts["ours"] / beside_inserts["peer_value"], rel=1e-4)
    assert "not measured" in done.stdout
    assert done.stdout.startswith(stored.read_text(encoding="utf-8"))


def test_an_unknown_name_is_refused_before_anything_starts() -> None:
    done = subprocess.run(
        command(),
        cwd=ROOT,
        env=environment(ONLY="delivery,speed"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "ONLY=speed is none of delivery, latency," in done.stderr
    assert "starting" not in done.stderr


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_behind(way: signal.Signals, tmp_path: Path) -> None:
    arguments = command("--only", "delivery", "--output", str(tmp_path / "bench.json"))
    with subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            assert running.stderr
            progress = list(takewhile(lambda line: "delivering" not in line, running.stderr))
            [folder] = [Path(line.split()[-1]) for line in progress if "data and logs" in line]
            database = int((folder / "postgres" / "postmaster.pid").read_text(encoding="utf-8").split()[0])
            deadline = time.monotonic() + 60
            while len(began := started_by(running.pid)) < 3:
                # Valkey, a mail server and a worker.
                assert time.monotonic() < deadline, began
                time.sleep(0.01)
            running.send_signal(way)
            progress += running.stderr
            assert running.wait(60) == 1
        finally:
            running.terminate()
    assert any("interrupted: everything is ended" in line for line in progress)
    assert not folder.exists()
    while left := [number for number in [database, *began] if psutil.pid_exists(number)]:
        # The system may take a moment to forget what ended.
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def started_by(parent: int) -> list[int]:
    return [process.pid for process in psutil.Process(parent).children(recursive=True)]


def test_a_figure_counts_only_when_every_message_was_sent(acme_sends: Fake, in_acme: Tenant) -> None:
    accepted()
    with pytest.raises(NotMeasured, match="0 of 1 messages are sent, and 1 were to be"):
        require_sent(in_acme, 1)
    turn()
    require_sent(in_acme, 1)
    with pytest.raises(NotMeasured, match="1 of 1 messages are sent, and 2 were to be"):
        require_sent(in_acme, 2)


def row(**changed: object) -> Row:
    return Row(**{"name": "delivery", "unit": "msg/s", "runs": [90, 100, 300], "peer": "rq", **changed})


def test_figures_are_medians_with_their_spread() -> None:
    measured = row(peer_runs=[20, 10, 30], target=Target("≥", 5, of_ratio=True))
    assert (measured.ours, measured.peer_value, measured.ratio, measured.met) == (100, 20, 5, True)
    report = Report(Path(os.devnull))
    report.rows.append(measured)
    assert "100 (90–300)" in report.as_table()
    assert "20 (10–30)" in report.as_table()


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target("≥", 101), False),
        (Target("≥", 100), True),
        (Target("≤", 100), True),
        (Target("≤", 99), False),
        (Target("≥", 6, of_ratio=True), False),
        (Target("≤", 5, of_ratio=True), True),
        (None, None),
    ],
)
def test_a_target_is_held_against_the_figure_or_the_ratio(target: Target | None, met: bool | None) -> None:
    assert row(peer_runs=[20], target=target).met is met


def test_what_was_not_measured_meets_no_target() -> None:
    assert row(target=Target("≥", 5, of_ratio=True)).met is None
    assert row(runs=[], target=Target("≤", 5)).met is None


def test_a_percentile_is_a_value_that_was_seen() -> None:
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([7], 0.99) == 7
    with pytest.raises(NotMeasured):
        percentile([], 0.5)


def test_the_most_in_a_window_counts_its_beginning_and_not_its_end() -> None:
    assert most_within([0, 1, 9.9, 10, 10.5], 10) == 4
    assert most_within([0, 10, 20], 10) == 1


def test_a_pace_is_measured_from_windowful_to_windowful() -> None:
    assert pace([0, 0.1, 11, 11.1, 22, 22.1], 2) == pytest.approx(4 / 22)
    assert pace([0, 5, 10, 15, 20], 2) == pytest.approx(4 / 20)
