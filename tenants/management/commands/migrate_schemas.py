"""Migrate every schema: public first, then the template of new tenants, then each tenant that is behind."""

import time
from argparse import ArgumentParser
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import django
from django.core.management import call_command
from django.core.management.base import CommandError
from django.core.management.commands.migrate import Command as DjangoMigrate
from django.db import connection, connections
from django.db.migrations.recorder import MigrationRecorder

from tenants import locks, migrations_state, onboarding, owners
from tenants.models import PUBLIC_SCHEMA, Status, Tenant
from tenants.onboarding import TEMPLATE_SCHEMA

_DJANGO_OPTIONS = ("interactive", "fake", "fake_initial", "plan", "run_syncdb", "prune", "no_color")


class Command(DjangoMigrate):
    """Django's `migrate`, once for each schema that needs it."""

    help = (
        "Migrates public, then the template of new tenants, then every tenant that is behind. "
        "May be killed and started again: it goes on where it was."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
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
        in_public = not label or label in migrations_state.app_labels(shared=True)
        in_tenants = not label or label in migrations_state.app_labels(shared=False)
        if in_public and only in {None, PUBLIC_SCHEMA}:
            if label or only or migrations_state.missing(PUBLIC_SCHEMA, shared=True):
                migrate_public(options)
                self._say(options, "public migrated")
            onboarding.ensure_public_tenant()
        if not in_tenants or only == PUBLIC_SCHEMA:
            return
        if only in {None, TEMPLATE_SCHEMA}:
            self._migrate_template(options)
        if only == TEMPLATE_SCHEMA:
            return
        # An explicit app or schema is migrated whatever the recorded state says.
        names = _schemas_behind() if not (only or label) else _schemas(only)
        self._migrate_tenants(names, options)

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
        for done, (name, error) in enumerate(self._outcomes(names, options), start=1):
            if error:
                failed[name] = error
                self.stderr.write(f"[{done}/{len(names)}] {name} failed: {error}")
            else:
                self._say(options, f"[{done}/{len(names)}] {name} migrated")
        seconds = time.monotonic() - started
        self._say(options, f"{len(names) - len(failed)} tenants migrated in {seconds:.1f} s, {len(failed)} failed")
        if failed:
            raise CommandError(f"{len(failed)} of {len(names)} tenants failed: {', '.join(sorted(failed))}")

    def _outcomes(self, names: list[str], options: dict[str, Any]) -> Iterable[tuple[str, str | None]]:
        if options["parallel"] <= 1 or len(names) <= 1:
            for name in names:
                yield name, _attempt(name, options)
            return
        plain = {key: value for key, value in options.items() if isinstance(value, str | int | bool | None)}
        with ProcessPoolExecutor(
            options["parallel"],
            mp_context=get_context("spawn"),
            initializer=_start_child,
            initargs=(connection.settings_dict["NAME"],),
        ) as pool:
            running = {pool.submit(_attempt, name, plain): name for name in names}
            for future in as_completed(running):
                error = future.exception()
                yield running[future], str(error) if error else future.result()

    def _check(self, only: str | None) -> None:
        behind = _schemas_behind()
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
        connection.set_schema(name)
        if not (options["plan"] or options["migration_name"]):
            owners.ensure_owners_group()
    finally:
        connection.set_schema_to_public()
        if name != TEMPLATE_SCHEMA:
            migrations_state.record_migrations(name)


def _run_django(name: str, options: dict[str, Any]) -> None:
    # Public must be out of reach while Django looks for its own table, or it takes public's.
    connection.set_schema(name, include_public=False)
    try:
        MigrationRecorder(connection).ensure_schema()
        connection.set_schema(name)
        targets = [options[key] for key in ("app_label", "migration_name") if options.get(key)]
        passed = {key: options[key] for key in _DJANGO_OPTIONS if key in options}
        # One line a schema is enough unless every step is wanted.
        passed["verbosity"] = max(options["verbosity"] - 1, 1 if options.get("plan") else 0)
        call_command(DjangoMigrate(), *targets, database=connection.alias, **passed)
    finally:
        connection.set_schema_to_public()


def _attempt(name: str, options: dict[str, Any]) -> str | None:
    try:
        migrate_schema(name, options)
    except Exception as error:  # noqa: BLE001 (one tenant's failure must not stop the others; it is reported)
        return f"{type(error).__name__}: {error}".strip().replace("\n", " ")
    return None


def _start_child(database_name: str) -> None:
    django.setup()
    for alias in connections:
        connections[alias].settings_dict["NAME"] = database_name


def _schemas(only: str | None) -> list[str]:
    tenants = Tenant.objects.exclude(schema_name=PUBLIC_SCHEMA).exclude(status=Status.CLOSED)
    if only:
        tenants = tenants.filter(schema_name=only)
        if not tenants:
            raise CommandError(f"no open tenant has the schema {only}")
    return list(tenants.order_by("schema_name").values_list("schema_name", flat=True))


def _schemas_behind() -> list[str]:
    if not _has_tenants_table():
        return []
    up_to_date = Tenant.objects.up_to_date().values("pk")
    tenants = Tenant.objects.exclude(schema_name=PUBLIC_SCHEMA).exclude(status=Status.CLOSED).exclude(pk__in=up_to_date)
    return list(tenants.order_by("schema_name").values_list("schema_name", flat=True))


def _has_tenants_table() -> bool:
    return Tenant._meta.db_table in connection.introspection.table_names()
