"""Processes as operators start them: what is missing is said in one line, what runs stops when told to."""

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start(*arguments: str, cwd: Path = ROOT, **changed: str | None) -> subprocess.CompletedProcess[str]:
    """Run a module of ours with some settings changed, or taken away (None)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **{k: v for k, v in changed.items() if v is not None}}
    for name, value in changed.items():
        if value is None:
            environment.pop(name, None)
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    "process",
    [
        ["manage.py", "check"],
        ["-m", "services.web"],
        ["-m", "services.worker", "default"],
        ["-m", "services.scheduler"],
    ],
)
def test_a_missing_secret_key_is_one_line(process: list[str]) -> None:
    done = start(*process, SECRET_KEY=None)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "carillon: SECRET_KEY is not set: set it, or name a file that holds it in SECRET_KEY_FILE"
    ]


@pytest.mark.parametrize("process", [["services.web"], ["services.worker", "default"], ["services.scheduler"]])
def test_a_database_that_does_not_answer_is_one_line(process: list[str], tmp_path: Path) -> None:
    done = start("-m", *process, DATABASE_URL=f"postgresql://postgres@/carillon?host={tmp_path}")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "the database does not answer" in done.stderr
    assert "DATABASE_URL" in done.stderr


def test_a_pool_that_is_too_small_for_a_worker_is_one_line() -> None:
    done = start("-m", "services.worker", "default", DATABASE_POOL_SIZE="3")
    assert done.returncode == 2
    assert done.stderr == "carillon: DATABASE_POOL_SIZE must be 0 (no pool) or at least 4, not 3\n"


def test_what_lands_late_is_written_down_with_the_smallest_pool_too() -> None:
    """On servers of its own: a second run of tests would take down this one's database."""
    late = "tests/integration/test_slow_providers.py::test_what_lands_after_its_turn_is_written_down"
    own = {"DATABASE_URL": None, "REDIS_URL": None, "DATABASE_POOL_SIZE": "4"}
    done = start("-m", "pytest", "-q", "-p", "no:cacheprovider", late, **own)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("process", [["services.worker", "default"], ["services.scheduler"]])
def test_a_redis_that_does_not_answer_is_one_line(process: list[str], tmp_path: Path) -> None:
    done = start("-m", *process, REDIS_URL=f"unix://{tmp_path}/absent.sock")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "Redis does not answer" in done.stderr


@pytest.mark.parametrize("name", ["DEMO_WEB_PORT", "DEMO_SMTP_PORT"])
def test_a_busy_port_is_one_line(busy_port: int, name: str, tmp_path: Path) -> None:
    free = {"DEMO_WEB_PORT": "0", "DEMO_SMTP_PORT": "0", name: str(busy_port)}
    done = start("-m", "services.demo", "--once", cwd=tmp_path, **free)
    assert done.returncode == 2
    assert done.stderr == f"carillon: port {busy_port} is busy: stop what listens there, or set {name} to another\n"


def test_a_worker_serves_one_known_queue() -> None:
    done = start("-m", "services.worker", "everything")
    assert done.returncode == 2
    assert "invalid choice: 'everything'" in done.stderr


def test_an_upload_without_credentials_is_one_line() -> None:
    done = start("-m", "services.upload", TWINE_USERNAME=None, TWINE_PASSWORD=None)
    assert done.returncode == 2
    assert done.stderr == "carillon: TWINE_USERNAME and TWINE_PASSWORD must be set to upload\n"


@pytest.mark.parametrize(
    "asked", [[], ["notifications"], ["tenants.tests", "--noinput"], ["tests/integration/test_processes.py"]]
)
def test_djangos_usual_command_runs_the_suite(asked: list[str]) -> None:
    done = start("manage.py", "test", *asked, "-k", "a_missing_secret_key", "--collect-only", "-q", SECRET_KEY=None)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_processes.py::test_a_missing_secret_key_is_one_line[process0]" in done.stdout


def test_a_failing_test_is_a_failing_command() -> None:
    assert start("manage.py", "test", "tests/absent.py").returncode != 0


def test_the_suite_without_its_tools_is_one_line() -> None:
    absent = "import sys; sys.modules['pytest_django'] = None; from services import testing; testing.run([])"
    done = start("-c", absent)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "carillon: the tests need tools that are not installed (pytest_django): `make test` installs them"
    ]


@pytest.mark.parametrize("model", ["auth.User", "auth.Group"])
def test_another_model_of_users_needs_no_migration(model: str) -> None:
    done = start("manage.py", "makemigrations", "--check", "--dry-run", "--skip-checks", NOTIFY_USER_MODEL=model)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("option", ["--once", "--clean"])
def test_a_running_demo_is_not_disturbed_by_another(option: str, tmp_path: Path) -> None:
    (tmp_path / ".demo").mkdir()
    with (tmp_path / ".demo" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = start("-m", "services.demo", option, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "carillon: a demo is running in this folder: stop it with Ctrl-C first\n"


def test_a_port_that_is_no_number_is_one_line(tmp_path: Path) -> None:
    done = start("-m", "services.demo", "--once", cwd=tmp_path, DEMO_WEB_PORT="abc")
    assert done.stderr == "carillon: DEMO_WEB_PORT must be a whole number, not 'abc'\n"


def test_a_command_without_its_database_is_one_line(tmp_path: Path) -> None:
    done = start("manage.py", "migrate_schemas", "--check", DATABASE_URL=f"postgresql://postgres@/x?host={tmp_path}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("carillon: the database does not answer")


def test_an_empty_secret_counts_as_none() -> None:
    done = start("-m", "services.web", SECRET_KEY="")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
