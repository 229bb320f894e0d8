"""Migrate every schema: public first, then the template of new tenants, then each tenant that is behind."""

import time
from collections.abc import Iterable
from typing import Any

from django.core.management import call_command
from django.core.management.base import CommandError, CommandParser
from django.core.management.commands.migrate import Command as DjangoMigrate
from django.db.models import QuerySet

from tenants import locks, migrations_state, onboarding, owners, parallel
from tenants.connection import connection
from tenants.models import PUBLIC_SCHEMA, Status, Tenant
from tenants.onboarding import TEMPLATE_SCHEMA

_DJANGO_OPTIONS = ("interactive", "fake", "fake_initial", "plan", "run_syncdb", "prune", "no_color")


class Command(DjangoMigrate):
    """Django's `migrate`, once for each schema that needs it."""

    help = (
        "Migrates public, then the template of new tenants, then every tenant that is behind. "
        "May be killed and started again: it goes on where it was."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("-s", "--schema", help="Migrate this schema only.")
        parser.add_argument("--parallel", type=int, default=1, metavar="N", help="Migrate N tenants at a time.")

    def handle(self, *_: Any, **options: Any) -> None:
        """Do it, and fail at the end if a tenant failed."""
        connection.set_schema_to_public()
        if options["check_unapplied"]:
            self._check(options["schema"])
            return
        with locks.migrating(lambda: self._say(options, "another migration job is running: waiting for its end")):
            self._migrate_all(options)

    def _migrate_all(self, options: dict[str, Any]) -> None:
        only, label = options["schema"], options["app_label"]
        if only in {None, PUBLIC_SCHEMA} and (not label or label in migrations_state.app_labels(shared=True)):
            self._migrate_public(options)
        in_tenants = not label or label in migrations_state.app_labels(shared=False)
        if only == PUBLIC_SCHEMA or not in_tenants or not _has_tenants_table():
            return
        if only in {None, TEMPLATE_SCHEMA}:
            self._migrate_template(options)
        if only != TEMPLATE_SCHEMA:
            # An explicit app or schema is migrated whatever the recorded state says.
            self._migrate_tenants(_schemas(only) if only or label else schemas_behind(), options)

    def _migrate_public(self, options: dict[str, Any]) -> None:
        if options["schema"] or options["app_label"] or migrations_state.missing(PUBLIC_SCHEMA, shared=True):
            migrate_public(options)
            self._say(options, "public migrated")
        else:
            onboarding.ensure_public_tenant()
            migrations_state.record_migrations(PUBLIC_SCHEMA)

    def _migrate_template(self, options: dict[str, Any]) -> None:
        if not options["app_label"] and not migrations_state.missing(TEMPLATE_SCHEMA, shared=False):
            return
        with locks.template_exclusive():
            with connection.cursor() as cursor:
                cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {TEMPLATE_SCHEMA}")
            migrate_schema(TEMPLATE_SCHEMA, options)
        self._say(options, f"{TEMPLATE_SCHEMA} migrated")

    def _migrate_tenants(self, names: list[str], options: dict[str, Any]) -> None:
        failed: dict[str, str] = {}
        started = time.monotonic()
        for done, (name, error) in enumerate(_outcomes(names, options), start=1):
            if error:
                failed[name] = error
                self.stderr.write(f"[{done}/{len(names)}] {name} failed: {error}")
            else:
                self._say(options, f"[{done}/{len(names)}] {name} migrated")
        seconds = time.monotonic() - started
        self._say(options, f"{len(names) - len(failed)} tenants migrated in {seconds:.1f} s, {len(failed)} failed")
        if failed:
            raise CommandError(f"{len(failed)} of {len(names)} tenants failed: {', '.join(sorted(failed))}")

    def _check(self, only: str | None) -> None:
        behind = schemas_behind() if _has_tenants_table() else []
        if migrations_state.missing(TEMPLATE_SCHEMA, shared=False):
            behind.insert(0, TEMPLATE_SCHEMA)
        if migrations_state.missing(PUBLIC_SCHEMA, shared=True):
            behind.insert(0, PUBLIC_SCHEMA)
        behind = [name for name in behind if only in {None, name}]
        for name in behind:
            self.stdout.write(f"{name} is behind")
        if behind:
            raise SystemExit(1)

    def _say(self, options: dict[str, Any], line: str) -> None:
        if options["verbosity"] >= 1:
            self.stdout.write(line)
            self.stdout.flush()


def migrate_public(options: dict[str, Any]) -> None:
    """Migrate public, make sure that the platform's own row is there, and record what public then has."""
    _run_django(PUBLIC_SCHEMA, options)
    if _has_tenants_table():
        onboarding.ensure_public_tenant()
        owners.ensure_owners_group()
        migrations_state.record_migrations(PUBLIC_SCHEMA)


def migrate_schema(name: str, options: dict[str, Any]) -> None:
    """Migrate one existing tenant's schema, or the template, and record what it then has.

    Raises:
        CommandError: there is no such schema, or Django's `migrate` refuses.
    """
    if not onboarding.schema_exists(name):
        # Migrations would run in public instead.
        raise CommandError(f"the schema {name} does not exist")
    try:
        _run_django(name, options)
    except Exception:
        migrations_state.record_migrations(name)
        raise
    if not (options["plan"] or options["migration_name"]):
        connection.set_schema(name)
        try:
            owners.ensure_owners_group()
        finally:
            connection.set_schema_to_public()
    # Last, so that a job killed before does all of it again.
    migrations_state.record_migrations(name)


def _run_django(name: str, options: dict[str, Any]) -> None:
    connection.set_schema(name)
    try:
        targets = [options[key] for key in ("app_label", "migration_name") if options.get(key)]
        passed = {key: options[key] for key in _DJANGO_OPTIONS if key in options}
        # One line a schema is enough unless every step is wanted.
        passed["verbosity"] = max(options["verbosity"] - 1, 1 if options.get("plan") else 0)
        call_command(DjangoMigrate(), *targets, database=connection.alias, **passed)
    finally:
        connection.set_schema_to_public()


def _outcomes(names: list[str], options: dict[str, Any]) -> Iterable[tuple[str, str | None]]:
    if options["parallel"] > 1 and len(names) > 1:
        return parallel.outcomes(names, options, options["parallel"])
    return ((name, parallel.attempt(name, options)) for name in names)


def _schemas(only: str | None) -> list[str]:
    names = list(_open_tenants().values_list("schema_name", flat=True))
    if only and only not in names:
        raise CommandError(f"no open tenant has the schema {only}")
    return [only] if only else names


def schemas_behind() -> list[str]:
    """Schemas of the open tenants that lack a migration: one query, whatever their number."""
    behind = _open_tenants().exclude(migrations__contains=migrations_state.required(shared=False))
    return list(behind.values_list("schema_name", flat=True))


def _open_tenants() -> QuerySet[Tenant]:
    return Tenant.objects.exclude(schema_name=PUBLIC_SCHEMA).exclude(status=Status.CLOSED).order_by("schema_name")


def _has_tenants_table() -> bool:
    return Tenant._meta.db_table in connection.introspection.table_names()
