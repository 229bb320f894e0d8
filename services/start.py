"""How every process begins: settings read, what is missing said in one line."""

import os
import sys
from typing import NoReturn

from services.env import SettingsError

OLDEST_POSTGRESQL = 16


def fail(message: str) -> NoReturn:
    """End the process with one line on standard error and exit code 2."""
    print(f"carillon: {message}", file=sys.stderr)
    raise SystemExit(2)


def configure() -> None:
    """Read the settings; a missing or unreadable one ends the process with one clear line."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "services.settings")
    try:
        import services.settings  # noqa: F401 (read now, so that an error is said now)
    except SettingsError as error:
        fail(str(error))


def require_servers(*, redis: bool = True) -> None:
    """End the process with one clear line unless the database, and Redis where needed, answer.

    Call it after `django.setup()`.
    """
    from django.db import OperationalError, connection

    try:
        connection.ensure_connection()
    except OperationalError as error:
        reason = str(error).strip().splitlines()[0]
        host = connection.settings_dict["HOST"] or "localhost"
        fail(f"the database does not answer at {host}: {reason} (DATABASE_URL)")
    if (version := connection.pg_version) < OLDEST_POSTGRESQL * 10_000:  # type: ignore[attr-defined]
        fail(f"PostgreSQL {OLDEST_POSTGRESQL} or newer is needed, and this is {version // 10_000} (DATABASE_URL)")
    if not redis:
        return
    from redis import RedisError

    from notifications import queues

    try:
        queues.redis().ping()
    except (RedisError, OSError) as error:
        fail(f"Redis does not answer: {error} (REDIS_URL)")
