"""Whose schema the database connection is in, and the only ways to change it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

from django.db import transaction

from tenants.connection import connection
from tenants.models import PUBLIC_SCHEMA, Tenant


class UnknownTenant(Exception):
    """No tenant has this schema name."""


class MissingSchema(Exception):
    """A tenant's schema does not exist; everything read there would come from public instead."""


def current_schema() -> str:
    """The schema this thread works in; `public` outside every tenant. No query."""
    return str(connection.schema_name)


def is_public() -> bool:
    """Whether this thread works in the public schema."""
    return current_schema() == PUBLIC_SCHEMA


def current_tenant_id() -> int:
    """The key of the tenant, or of the platform, in whose schema this thread works.

    Raises:
        UnknownTenant: no tenant has this schema.
    """
    key = getattr(connection.tenant, "pk", None)
    if key is None:
        key = Tenant.objects.filter(schema_name=connection.schema_name).values_list("pk", flat=True).first()
    if key is None:
        raise UnknownTenant(f"no tenant has the schema {connection.schema_name!r}")
    return int(key)


@contextmanager
def tenant_context(tenant: Tenant | str) -> Iterator[Tenant]:
    """Work in a tenant's schema, then go back to where the thread was before.

    A name costs a query to find its tenant. Entering costs one that asks the server where it truly is: with a
    schema that does not exist, the search path would fall through to public without an error.

    Raises:
        UnknownTenant: no tenant has this schema name.
        MissingSchema: the tenant's schema does not exist.
    """
    if isinstance(tenant, str):
        found = Tenant.objects.filter(schema_name=tenant).first()
        if found is None:
            raise UnknownTenant(f"no tenant has the schema {tenant!r}")
        tenant = found
    with _schema(tenant):
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_schema()")
            (actual,) = cursor.fetchone()
        if actual != tenant.schema_name:
            raise MissingSchema(f"the schema {tenant.schema_name} of {tenant.name!r} does not exist")
        yield tenant


@contextmanager
def public_context() -> Iterator[None]:
    """Work in the public schema, then go back to where the thread was before."""
    previous = connection.tenant
    connection.set_schema_to_public()
    try:
        yield
    finally:
        connection.set_tenant(previous)


@contextmanager
def _schema(tenant: Tenant) -> Iterator[None]:
    previous = connection.tenant
    connection.set_tenant(tenant)
    try:
        yield
    finally:
        connection.set_tenant(previous)


def on_commit[**P](function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a function once the transaction has committed, in the schema of the caller.

    Django calls such functions wherever the thread happens to be by then. What the function raises is logged and
    never reaches the caller, whose work is already stored.
    """
    tenant = connection.tenant

    @wraps(function)
    def run() -> None:
        previous = connection.tenant
        connection.set_tenant(tenant)
        try:
            function(*args, **kwargs)
        finally:
            connection.set_tenant(previous)

    transaction.on_commit(run, robust=True)
