"""`make bench`, or `python -m tests.benchmarks`: measure, print a table, write `build/bench.json`.

`ONLY=delivery,accept` selects, `QUICK=1` does less of each, `PEERS` names the folder of the peers' benchmark.
"""

import argparse
import logging
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tests.benchmarks.peers import ROOT, Peers
from tests.benchmarks.processes import say
from tests.benchmarks.results import NotMeasured, Report, Row
from tests.benchmarks.sizes import SIZES, Size

if TYPE_CHECKING:
    from tests.benchmarks.stage import Stage

BENCHMARKS = {
    "delivery": "delivering",
    "latency": "delivering",
    "flat": "delivering",
    "memory": "delivering",
    "render": "rendering",
    "accept": "accepting",
    "fanout": "accepting",
    "urgent": "waiting",
    "due": "waiting",
    "fairness": "waiting",
    "limits": "limits",
    "idle": "idle",
}
"""Each is a function of that name in that module: it takes the stage and yields rows."""


def main() -> int:
    """Run what was asked for; 1 when a figure of ours is missing (a peer's, or a missed target, is no error)."""
    options = read_options()
    signal.signal(signal.SIGTERM, _interrupted)
    report = Report(options.output)
    broken: list[str] = []
    try:
        with ExitStack() as stack:
            stage = prepare(stack, SIZES[options.size])
            for name in options.only:
                broken += run(name, stage, report)
    except KeyboardInterrupt:
        broken.append("interrupted")
        say("interrupted: everything is ended")
    print(report.as_json())
    print(f"\n{report.as_table()}\n\nWritten to {options.output}")
    for line in broken:
        print(f"not measured: {line}", file=sys.stderr)
    return 1 if broken else 0


def read_options() -> argparse.Namespace:
    """The command line, with the environment's wishes as defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    quick = "quick" if os.environ.get("QUICK", "0") not in ("", "0") else "full"
    parser.add_argument("--only", default=os.environ.get("ONLY", ""), help=", ".join(BENCHMARKS))
    parser.add_argument("--size", choices=SIZES, default=quick)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench.json")
    options = parser.parse_args()
    options.only = [name.strip() for name in options.only.split(",") if name.strip()] or list(BENCHMARKS)
    if unknown := [name for name in options.only if name not in BENCHMARKS]:
        parser.error(f"ONLY={','.join(unknown)} is none of {', '.join(BENCHMARKS)}")
    return options


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def prepare(stack: ExitStack, size: Size) -> "Stage":
    """Servers, settings, migrated schemas."""
    folder = Path(tempfile.mkdtemp(prefix="carillon-bench-"))
    folder.chmod(0o711)
    from services.embedded import Servers, data_folders

    for kept in data_folders(folder):
        stack.callback(shutil.rmtree, kept, ignore_errors=True)
    say(f"data and logs until the end: {folder}")
    peers = Peers(folder, size.peer_runs)
    say(f"peers: {peers.absent or peers.folder}")
    say("starting PostgreSQL and Valkey")
    servers = Servers(folder)
    stack.callback(servers.stop)
    os.environ.update(servers.environment)
    os.environ["DJANGO_SETTINGS_MODULE"] = "services.settings"
    # All other settings are those of the tests.
    import_module("tests.stack")
    import django
    from django.core.management import call_command

    django.setup()
    # Each scene closes and drops its tenants.
    logging.getLogger("tenants").setLevel(logging.ERROR)
    say("migrating")
    call_command("migrate_schemas", verbosity=0)
    from django.db import connection

    from tests.benchmarks.stage import Stage

    stack.callback(connection.close)
    stage = Stage(servers, peers, folder, size)
    say(f"mail server: {stage.smtp_sink or 'smtp-sink is not installed (Debian: postfix), a slower one serves'}")
    return stage


def run(name: str, stage: "Stage", report: Report) -> Iterator[str]:
    """Add a benchmark's rows to the report; yields what of ours could not be measured."""
    say(f"== {name}")
    benchmark: Callable[[object], Iterator[Row]] = getattr(import_module(f"tests.benchmarks.{BENCHMARKS[name]}"), name)
    try:
        for row in benchmark(stage):
            report.add(row)
            if row.ours is None:
                yield row.name
    except Exception as error:  # noqa: BLE001 (one benchmark that breaks must not take the others' figures)
        if not isinstance(error, NotMeasured):
            traceback.print_exc()
        reason = f"{name}: {error or type(error).__name__}"
        say(reason)
        for log in sorted(stage.folder.glob("*.log")):
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:]:
                say(f"  {log.stem}: {line[-700:]}")
        report.add(Row(name=name, unit="", runs=[], note=f"not measured: {error}"))
        yield reason


if __name__ == "__main__":
    raise SystemExit(main())
