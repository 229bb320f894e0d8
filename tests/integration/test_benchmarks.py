"""The benchmark, with numbers too small to mean anything: that it measures, compares and tells what it could not."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from notifications.channels.fake import Fake
from tenants.models import Tenant
from tests.benchmarks import __main__ as bench
from tests.benchmarks import idle
from tests.benchmarks.limits import most_within, pace
from tests.benchmarks.peers import Peers, Run
from tests.benchmarks.results import NotMeasured, Report, Row, Target, percentile
from tests.benchmarks.stage import require_sent
from tests.factories import accepted, turn

ROOT = Path(__file__).parents[2]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks", "--size", "tiny", *arguments]


def environment(**changed: str) -> dict[str, str]:
    return {**os.environ, "PEERS": "/absent", **changed}


def stand_in(folder: Path, script: str) -> Path:
    """A folder like the peers', whose peers do nothing but answer."""
    folder.mkdir()
    (folder / "run.sh").write_text(script, encoding="utf-8")
    return folder


def test_every_benchmark_measures_stands_beside_its_peers_and_is_stored(tmp_path: Path) -> None:
    peers = stand_in(
        tmp_path / "peers",
        """[ "$1" != rq ] || { echo "it does not start" >&2; exit 2; }
        echo "a line before" >&2
        echo '{"peer": "'"$1"'", "sent": '"$2"', "deliver_per_s": 50.0, "e2e_per_s": 40.0}'""",
    )
    stored = tmp_path / "made" / "bench.json"
    done = subprocess.run(
        command("--output", str(stored)),
        cwd=ROOT,
        env=environment(PEERS=str(peers)),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in bench.BENCHMARKS:
        assert f"== {name}\n" in done.stderr
    assert "delivering 60 with 2 worker(s)" in done.stderr
    assert "peer rq was not measured: it does not start" in done.stderr
    rows = json.loads(stored.read_text(encoding="utf-8"))
    slow = "delivery at 100 ms, 64 connections"
    assert [(row["name"], row["peer"]) for row in rows if row["name"].startswith("delivery")] == [
        ("delivery, 1 worker", "post_office"),
        ("delivery, 1 worker", "raw smtplib"),
        ("delivery, 1 worker, with start-up", "celery"),
        ("delivery, 1 worker, with start-up", "rq"),
        ("delivery, 2 workers", "post_office, 2 processes"),
        (f"{slow}, 1 worker", ""),
        (f"{slow}, 1 worker", "post_office, 5 threads"),
        (f"{slow}, 1 worker", "post_office, 64 threads"),
        (f"{slow}, 1 worker, with start-up", "celery, 2 processes"),
        (f"{slow}, 2 workers", "post_office, 2 processes of 5 threads"),
        (f"{slow}, 2 workers", "post_office, 2 processes of 64 threads"),
    ]
    for row in rows:
        assert row["unit"], row
        assert row["runs"] == [row["ours"]], row
        assert row["ours"] > 0, row
        if row["peer"] == "rq":
            assert (row["peer_value"], row["ratio"], row["peer_runs"], row["met"]) == (None, None, [], None)
        elif row["peer"]:
            assert row["peer_runs"] == [row["peer_value"]], row
            assert row["ratio"] == pytest.approx(row["ours"] / row["peer_value"], rel=1e-4), row
            assert (row["met"] is None) == (row["target"] == ""), row
    assert {row["peer_value"] for row in rows if row["peer"].startswith(("post_office,", "celery", "raw"))} == {50}
    assert {row["peer_value"] for row in rows if row["peer"] == "post_office send_many"} == {200}
    [line] = [line for line in done.stdout.splitlines() if "  rq  " in line]
    assert "not measured" in line
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


def test_absent_peers_leave_their_columns_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERS", "/absent")
    peers = Peers(tmp_path, 3)
    assert peers.absent == "the peers' folder is absent: set PEERS to it"
    assert peers.measure("raw", 5) == []


def test_a_peer_runs_as_often_as_we_do_and_once_for_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """echo "$@" "$LATENCY_MS" "$POST_OFFICE_THREADS" >> "$(dirname "$0")/asked"
    echo '{"sent": 5, "deliver_per_s": 50, "e2e_per_s": 40}'"""
    monkeypatch.setenv("PEERS", str(stand_in(tmp_path / "peers", script)))
    peers = Peers(tmp_path, 3)
    for _ in range(2):
        assert peers.measure("raw", 5, processes=2, latency_ms=100, threads=64) == [Run(5, 50, 40)] * 3
    assert (tmp_path / "peers" / "asked").read_text(encoding="utf-8") == "raw 5 2 100 64\n" * 3


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Traceback",
        "[]",
        '{"sent": 4, "deliver_per_s": 50, "e2e_per_s": 40}',
        '{"sent": 5, "deliver_per_s": 50}',
        '{"sent": 5, "deliver_per_s": 0, "e2e_per_s": 0}',
        '{"sent": 5, "deliver_per_s": NaN, "e2e_per_s": 40}',
        '{"sent": 5, "deliver_per_s": null, "e2e_per_s": 40}',
    ],
)
def test_a_peer_that_did_not_do_its_work_is_not_measured(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PEERS", str(stand_in(tmp_path / "peers", f"echo '{answer}'")))
    assert Peers(tmp_path, 1).measure("raw", 5) == []
    assert f"peer raw was not measured: {answer or 'no answer'}" in capsys.readouterr().err


def test_accepting_is_what_the_end_to_end_takes_longer_than_the_delivery() -> None:
    assert Run(100, 50, 40).accept_per_s == pytest.approx(200)
    assert Run(100, 50, 50).accept_per_s is None


def breaks(_: object) -> Iterator[Row]:
    yield row()
    raise NotMeasured("the worker ended")


@pytest.mark.parametrize(
    ("benchmark", "code"),
    [
        (lambda _: iter([row(peer_runs=[20], target=Target("≥", 1000, of_ratio=True))]), 0),  # a missed target
        (lambda _: iter([row(peer_runs=[])]), 0),
        (lambda _: iter([row(runs=[], peer_runs=[20])]), 1),
        (breaks, 1),
    ],
)
def test_only_a_missing_figure_of_ours_is_an_error(
    benchmark: object, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(idle, "idle", benchmark)
    monkeypatch.setattr(bench, "prepare", lambda *_: SimpleNamespace(folder=tmp_path))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["bench", "--only", "idle", "--output", str(tmp_path / "bench.json")])
    assert bench.main() == code
    printed = capsys.readouterr()
    assert ("not measured: " in printed.err) == (code == 1)
    assert ("MISSED" in printed.out) != ("not measured" in printed.out)


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
