"""Which migrations the code needs, and which ones a schema has."""

from functools import cache

from django.apps import apps
from django.conf import settings
from django.db import connection
from django.db.migrations.loader import MigrationLoader


def app_labels(*, shared: bool) -> frozenset[str]:
    """Labels of the apps whose tables are in public (`shared`), or in each tenant's schema."""
    names = set(settings.SHARED_APPS if shared else settings.TENANT_APPS)
    return frozenset(
        config.label
        for config in apps.get_app_configs()
        if config.name in names or f"{type(config).__module__}.{type(config).__qualname__}" in names
    )


@cache
def required(*, shared: bool) -> list[str]:
    """The last migration of each app, as "app.name", that this code stands on; read from disk once a process."""
    labels = app_labels(shared=shared)
    leaves = MigrationLoader(None, ignore_no_migrations=True).graph.leaf_nodes()
    return sorted(f"{label}.{name}" for label, name in leaves if label in labels)


def applied(schema_name: str) -> set[str]:
    """Migrations that a schema has, as "app.name"; none where the schema or its record of them is missing."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(format('%%I.django_migrations', %s::text))", [schema_name])
        if cursor.fetchone() == (None,):
            return set()
        table = f"{connection.ops.quote_name(schema_name)}.django_migrations"
        cursor.execute(f"SELECT app || '.' || name FROM {table}")  # noqa: S608 (a quoted name)
        return {name for (name,) in cursor.fetchall()}


def missing(schema_name: str, *, shared: bool) -> set[str]:
    """Migrations that the code needs and the schema lacks."""
    return set(required(shared=shared)) - applied(schema_name)


def record_migrations(schema_name: str) -> None:
    """Write on the tenant's row which migrations its schema has."""
    from tenants.models import Tenant

    Tenant.objects.filter(schema_name=schema_name).update(migrations=sorted(applied(schema_name)))
