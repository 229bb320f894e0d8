"""Locks between processes, held by the database."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tenants.connection import connection

# Two numbers that nothing else in this database uses as advisory locks.
_MIGRATING, _TEMPLATE = 0x0CA21110_0001, 0x0CA21110_0002


@contextmanager
def migrating(when_waiting: Callable[[], object]) -> Iterator[None]:
    """Be the only migration job of this database; `when_waiting` is called once if another one must end first."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [_MIGRATING])
        (at_once,) = cursor.fetchone()
    if not at_once:
        when_waiting()
        _run("SELECT pg_advisory_lock(%s)", _MIGRATING)
    try:
        yield
    finally:
        _unlock(_MIGRATING)


@contextmanager
def template_exclusive() -> Iterator[None]:
    """Change the template schema while nothing is cloned from it."""
    _run("SELECT pg_advisory_lock(%s)", _TEMPLATE)
    try:
        yield
    finally:
        _unlock(_TEMPLATE)


def template_shared() -> None:
    """Keep the template schema as it is until the caller's transaction ends; waits while it is being changed."""
    _run("SELECT pg_advisory_xact_lock_shared(%s)", _TEMPLATE)


def name_exclusive(name: str) -> None:
    """Let one transaction at a time work on what has this name."""
    _run("SELECT pg_advisory_xact_lock(hashtextextended(%s, %s))", name, _TEMPLATE)


def _run(statement: str, *args: str | int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, args)


def _unlock(key: int) -> None:
    # A connection that broke has lost its locks already.
    if connection.connection is not None and connection.is_usable():
        _run("SELECT pg_advisory_unlock(%s)", key)
