"""Django's database connection, typed as what django-tenants makes of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from django.db import connection as _connection
from django.db.backends.base.base import BaseDatabaseWrapper

if TYPE_CHECKING:

    class TenantConnection(BaseDatabaseWrapper):
        """A connection that is in one schema at a time."""

        tenant: Any
        schema_name: str

        def set_tenant(self, tenant: Any, include_public: bool = True) -> None: ...
        def set_schema(self, schema_name: str, include_public: bool = True) -> None: ...
        def set_schema_to_public(self) -> None: ...


connection = cast("TenantConnection", _connection)
"""The calling thread's connection."""


@contextmanager
def one_trip() -> Iterator[None]:
    """Send statements without waiting for each one's answer; they are awaited at the end, or where one is read.

    (https://www.psycopg.org/psycopg3/docs/advanced/pipeline.html) What went wrong is raised at the latest at the end.
    For use inside `transaction.atomic`: after an error the transaction is lost as a whole.

    Raises:
        DatabaseError: as for any statement; what psycopg finds at the end is no exception of Django's by itself.
    """
    connection.ensure_connection()
    with connection.wrap_database_errors, connection.connection.pipeline():
        yield
