"""Migrating several tenants at a time, a process each: the work is Python's, so threads would not help.

A new process imports this module before Django is set up, hence the imports inside functions.
"""

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any


def outcomes(schema_names: Iterable[str], options: dict[str, Any], processes: int) -> Iterable[tuple[str, str | None]]:
    """Migrate these schemas in so many processes; each name comes back with its error, or None."""
    from django.db import connection

    plain = {key: value for key, value in options.items() if isinstance(value, str | int | bool | None)}
    with ProcessPoolExecutor(
        processes,
        mp_context=get_context("spawn"),
        initializer=_start,
        initargs=(connection.settings_dict["NAME"],),
    ) as pool:
        running = {pool.submit(attempt, name, plain): name for name in schema_names}
        for future in as_completed(running):
            error = future.exception()
            yield running[future], f"its process ended: {error}" if error else future.result()


def attempt(schema_name: str, options: dict[str, Any]) -> str | None:
    """Migrate one schema; the error's text if it failed."""
    from tenants.management.commands import migrate_schemas

    try:
        migrate_schemas.migrate_schema(schema_name, options)
    except Exception as error:  # noqa: BLE001 (one tenant's failure must not stop the others; it is reported)
        return f"{type(error).__name__}: {error}".strip().replace("\n", " ")
    return None


def _start(database_name: str) -> None:
    import django

    django.setup()
    from django.db import connection

    # Tests migrate another database than the one of the settings.
    connection.settings_dict["NAME"] = database_name
