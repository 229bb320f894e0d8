"""`make faults`, or `python -m tests.faults`: break things, count messages, write `build/faults.json`.

`ONLY=01,flushall,crash` selects by a part of the name, `QUICK=1` does less of each, `SEED=7` repeats a run, `SOAK=60`
runs for so many minutes under load with a random fault every twenty seconds. Cases that wait do so side by side: three
processes share them (`JOBS=1`: one after the other), each on servers of its own. Exits with 1 when something was lost,
came twice without reason, came late, or was not what was accepted.
"""

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tests.benchmarks.processes import Process, say
from tests.faults.results import Result

if TYPE_CHECKING:
    from tests.faults.stage import Scene, Stage

ROOT = Path(__file__).parents[2]
PART_SECONDS = 1800.0
COLUMNS = "{:<34} {:>8} {:>11} {:>5} {:>10} {:>9} {:>9} {:>5} {:>7}  {}"


def main() -> int:
    """Run what was asked for."""
    options = read_options()
    signal.signal(signal.SIGTERM, _interrupted)
    results: list[Result] = []
    others: list[Process] = []
    try:
        with ExitStack() as stack:
            stage = prepare(stack, options)
            from tests.faults.cases import CASES, LEFT_OUT
            from tests.faults.soak import soak

            chosen: dict[str, Callable[[Scene], None]] = dict(select(CASES, options.only))
            if options.soak:
                chosen = {"soak": lambda scene: soak(scene, minutes=options.soak)}
            parts = min(options.jobs, len(chosen))
            if not options.part:
                others += [start_part(stack, options, stage.folder, part, parts) for part in range(1, parts)]
            mine = dict(list(chosen.items())[options.part :: parts])
            for number, (name, case) in enumerate(mine.items(), 1):
                say(f"== {name} ({number} of {len(mine)})")
                results.append(run(stage, name, case))
            for other in others:
                results += finished_part(other)
            results.sort(key=lambda result: list(chosen).index(result.case))
            if options.keep:
                say(f"data and logs are kept: {stage.folder}")
    except KeyboardInterrupt:
        say("interrupted: everything is ended")
        return 1
    finally:
        options.output.parent.mkdir(exist_ok=True)
        options.output.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n", encoding="utf-8")
    report(results, LEFT_OUT if not (options.only or options.soak) else {})
    print(f"\nSeed {options.seed}. Written to {options.output}")
    return 1 if any(result.problems for result in results) else 0


def read_options() -> argparse.Namespace:
    """The command line, with the environment's wishes as defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wish = os.environ.get
    parser.add_argument("--only", default=wish("ONLY", ""), help="parts of the cases' names, with commas between")
    parser.add_argument("--quick", action="store_true", default=wish("QUICK", "0") not in ("", "0"))
    parser.add_argument("--seed", type=int, default=int(wish("SEED") or time.time() % 100_000))
    parser.add_argument("--soak", type=float, default=float(wish("SOAK") or 0), help="minutes")
    parser.add_argument(
        "--jobs", type=int, default=int(wish("JOBS") or 3), help="cases at once, on servers of their own"
    )
    parser.add_argument("--part", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", default=bool(wish("KEEP")), help="keep the data and logs")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "faults.json")
    options = parser.parse_args()
    options.only = [part.strip() for part in options.only.split(",") if part.strip()]
    return options


def select[T](cases: dict[str, T], parts: Sequence[str]) -> dict[str, T]:
    """The cases that one of the parts is in; all for none.

    Raises:
        SystemExit: a part is in no name.
    """
    for part in parts:
        if not any(part in name for name in cases):
            print(f"carillon: ONLY={part} is in none of {', '.join(cases)}", file=sys.stderr)
            raise SystemExit(2)
    return {name: case for name, case in cases.items() if not parts or any(part in name for part in parts)}


def start_part(stack: ExitStack, options: argparse.Namespace, folder: Path, part: int, parts: int) -> Process:
    """Start another process of this kind, for its share of the cases."""
    output = folder / f"part-{part}.json"
    process = Process(
        [sys.executable, "-m", "tests.faults", f"--part={part}", f"--jobs={parts}", f"--output={output}"],
        output.with_suffix(".log"),
        ONLY=",".join(options.only),
        QUICK="1" if options.quick else "",
        SEED=str(options.seed),
        KEEP="1" if options.keep else "",
        DATABASE_URL=None,
        REDIS_URL=None,
    )
    stack.callback(process.end, seconds=90)
    say(f"part {part} of the cases: {process.log}")
    return process


def finished_part(process: Process) -> list[Result]:
    """What another process found, once it has ended."""
    process.wait(PART_SECONDS)
    rows = json.loads(process.log.with_suffix(".json").read_text(encoding="utf-8"))
    say(f"{process.log.stem}:\n{process.log.read_text(encoding='utf-8', errors='replace')}")
    return [Result(**row) for row in rows]


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def prepare(stack: ExitStack, options: argparse.Namespace) -> "Stage":
    """Servers, settings, migrated schemas."""
    folder = Path(tempfile.mkdtemp(prefix="carillon-faults-"))
    folder.chmod(0o711)
    from services.embedded import Servers, data_folders

    for kept in data_folders(folder):
        if not options.keep:
            stack.callback(shutil.rmtree, kept, ignore_errors=True)
    say(f"seed {options.seed}; data and logs until the end: {folder}")
    say("starting PostgreSQL and Valkey")
    # Durable: a commit that was answered must survive what is done to PostgreSQL here.
    servers = Servers(folder)
    stack.callback(servers.stop)
    os.environ.update(servers.environment)
    os.environ["DJANGO_SETTINGS_MODULE"] = "services.settings"
    # All other settings are those of the tests, which are the product's own but for hosts and keys.
    import django
    from django.core.management import call_command

    import tests.stack  # noqa: F401

    django.setup()
    logging.getLogger("tenants").setLevel(logging.ERROR)
    say("migrating")
    call_command("migrate_schemas", verbosity=0)
    from django.db import connection

    from tests.faults.stage import Stage

    stack.callback(connection.close)
    return Stage(servers, folder, quick=options.quick, seed=options.seed)


def run(stage: "Stage", name: str, case: Callable[["Scene"], None]) -> Result:
    """Run a case, and say what came of it."""
    began = time.monotonic()
    result = Result(name, seed=stage.seed)
    try:
        with stage.scene(name) as scene:
            result = scene.result
            try:
                case(scene)
            except Exception as error:  # noqa: BLE001 (a case that breaks must not take the others' answers)
                traceback.print_exc()
                scene.expect(False, f"{type(error).__name__}: {error}")
            if result.problems:
                tail(scene.folder)
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        result.problems.append(f"could not be cleared away: {error}")
    result.took_s = round(time.monotonic() - began, 1)
    say(f"  {line(result)}")
    return result


def tail(folder: Path) -> None:
    """Show the end of each log that has something to say."""
    for log in sorted(folder.glob("*.log")):
        for text in log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]:
            say(f"  {log.stem}: {text[-600:]}")


def line(result: Result) -> str:
    """A row of the table."""
    end = "; ".join(result.problems[:2]) or "ok"
    return COLUMNS.format(
        result.case,
        result.accepted,
        result.handed_over,
        result.lost,
        result.duplicated,
        result.in_flight_at_kill,
        "–" if result.resumed_s is None else f"{result.resumed_s:.1f} s",
        result.late,
        f"{result.took_s:.0f} s",
        end if len(result.problems) < 3 else f"{end}; and {len(result.problems) - 2} more",
    )


def report(results: Sequence[Result], left_out: dict[str, str]) -> None:
    """Print the table."""
    print(
        COLUMNS.format(
            "case", "accepted", "handed over", "lost", "duplicated", "in flight", "resumed", "late", "took", ""
        )
    )
    for result in results:
        print(line(result))
        for note in result.notes:
            print(f"    {note}")
    for name, why in left_out.items():
        print(f"{name:<34} left out: {why}")


if __name__ == "__main__":
    raise SystemExit(main())
