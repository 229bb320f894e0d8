"""A short selection of the faults, as a caller would run it; all of them are `make faults`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import ledger
from tests.faults.__main__ import select
from tests.faults.cases import CASES

ROOT = Path(__file__).parents[2]
SELECTED = ("16-crash-in-accept", "crash:after_provider:email")


def faults(*arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
    """Run the faults to their end."""
    return subprocess.run(
        [sys.executable, "-m", "tests.faults", *arguments],
        cwd=ROOT,
        env={**os.environ, "SEED": "7", "QUICK": "1", "SOAK": "", "KEEP": "", **changed},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_processes_die_and_every_message_is_accounted_for(tmp_path: Path) -> None:
    stored = tmp_path / "made" / "faults.json"
    done = faults("--output", str(stored), ONLY=",".join(SELECTED))
    assert done.returncode == 0, done.stdout + done.stderr
    found = {row["case"]: row for row in json.loads(stored.read_text(encoding="utf-8"))}
    assert tuple(found) == SELECTED
    for row in found.values():
        assert (row["seed"], row["lost"], row["late"], row["problems"]) == (7, 0, 0, [])
        assert row["accepted"] == row["handed_over"] > 0
        assert row["duplicated"] <= row["in_flight_at_kill"]
    assert found["16-crash-in-accept"]["duplicated"] == 0
    # It died with a message that the provider had and the ledger did not know of: the second copy is the proof.
    assert found["crash:after_provider:email"]["duplicated"] > 0
    assert "Seed 7. Written to" in done.stdout


def test_an_unknown_case_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert select(CASES, ["flushall", "crash:after_claim"]).keys() == {
        "06-flushall",
        "crash:after_claim:email",
        "crash:after_claim:webhook",
    }
    with pytest.raises(SystemExit):
        select(CASES, ["meteorite"])
    assert "ONLY=meteorite is in none of 01-kill-worker, " in capsys.readouterr().err


def test_a_line_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "receipts.jsonl"
    path.write_text('{"seq": 1}\n{"se', encoding="utf-8")
    assert ledger.read_lines(path) == [{"seq": 1}]
