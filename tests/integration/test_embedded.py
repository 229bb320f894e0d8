"""The embedded PostgreSQL: it keeps its data, ends what an earlier start left behind, and leaves strangers alone."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from services.embedded import Postgres

type Start = Callable[[], Postgres]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Data of its own, where PostgreSQL's user reaches it: the tests' folder is closed to others."""
    made = Path(tempfile.mkdtemp(prefix="carillon-embedded-"))
    made.chmod(0o711)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts a server on that data, each with a socket of its own, as every run of the demo does."""
    with ExitStack() as stack:

        def started() -> Postgres:
            sockets = Path(tempfile.mkdtemp(prefix="carillon-"))
            stack.callback(shutil.rmtree, sockets, ignore_errors=True)
            postgres = Postgres(folder, sockets, durable=False)
            stack.callback(postgres.stop)
            return postgres

        yield started


def ask(postgres: Postgres, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        cursor = connection.execute(query)
        return cursor.fetchall() if cursor.description else []


def server_of(postgres: Postgres) -> psutil.Process:
    return psutil.Process(int((postgres.data / "postmaster.pid").read_text().split()[0]))


def test_a_second_start_keeps_the_data(start: Start) -> None:
    first = start()
    ask(first, "CREATE TABLE kept AS SELECT 7 AS seven")
    first.stop()
    assert not (first.data / "postmaster.pid").exists()
    assert ask(start(), "TABLE kept") == [(7,)]


def test_a_server_that_an_earlier_start_left_behind_is_ended_first(start: Start) -> None:
    left = start()
    ask(left, "CREATE TABLE left_behind AS SELECT 8 AS eight")
    process = server_of(left)
    assert ask(start(), "TABLE left_behind") == [(8,)]
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def stranger() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that PostgreSQL's user could signal."""
    process = subprocess.Popen(["sleep", "60"], user="nobody" if os.geteuid() == 0 else None)
    yield process
    process.kill()
    process.wait()


def test_a_process_that_got_the_number_of_a_dead_server_is_left_alone(
    start: Start, stranger: "subprocess.Popen[bytes]"
) -> None:
    postgres = start()
    pid_file = postgres.data / "postmaster.pid"
    _, _, rest = pid_file.read_text().partition("\n")
    postgres.stop()
    pid_file.write_text(f"{stranger.pid}\n{rest}")
    postgres.stop()
    assert ask(start(), "SELECT 1") == [(1,)]
    assert stranger.poll() is None


def test_a_server_that_died_is_no_hindrance(start: Start) -> None:
    postgres = start()
    process = server_of(postgres)
    every = [process, *process.children()]
    for one in every:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(every, timeout=5)
    assert ask(start(), "SELECT 1") == [(1,)]
