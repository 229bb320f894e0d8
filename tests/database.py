"""Puts the database back after tests that commit, without Django's flush, which would empty what tenants stand on."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.db.backends.utils import CursorWrapper
from django.test.utils import CaptureQueriesContext

from tenants.cloning import clone_schema
from tenants.models import PUBLIC_SCHEMA, Tenant
from tenants.onboarding import TEMPLATE_SCHEMA

_KEPT = "test_snapshot"
_TABLES = """
SELECT nspname, relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
WHERE relkind = 'r' AND nspname = ANY(%s) ORDER BY 1, 2
"""
_WITH_TRIGGERS = """
SELECT DISTINCT nspname, relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
JOIN pg_trigger ON tgrelid = c.oid AND NOT tgisinternal WHERE nspname = ANY(%s)
"""

_FORWARD = """
SELECT setval(c.oid, 100000) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
WHERE relkind = 'S' AND nspname = %s
"""


def _tables(cursor: CursorWrapper, query: str, schemas: list[str]) -> list[str]:
    cursor.execute(query, [schemas])
    return [f'"{schema}"."{table}"' for schema, table in cursor.fetchall()]


class Snapshot:
    """The rows of public and of every tenant at the time it is made, to which `restore` goes back.

    Tables that held rows are put back as they were, the others emptied; schemas made since then are dropped, and
    dropped ones made again.
    """

    def __init__(self) -> None:
        """Copy all rows aside."""
        self._schemas = [PUBLIC_SCHEMA, *Tenant.objects.exclude(schema_name=PUBLIC_SCHEMA).values_list(
            "schema_name", flat=True)]  # fmt: skip
        with connection.cursor() as cursor:
            tables = _tables(cursor, _TABLES, self._schemas)
            cursor.execute(";".join([f"SELECT EXISTS (SELECT FROM {table})" for table in tables]))
            filled = [cursor.fetchone()[0]]
            while cursor.nextset():
                filled.append(cursor.fetchone()[0])
            self._copies = {
                table: f"{_KEPT}.c{number}"
                for number, (table, full) in enumerate(zip(tables, filled, strict=True))
                if full
            }
            cursor.execute(f"DROP SCHEMA IF EXISTS {_KEPT} CASCADE; CREATE SCHEMA {_KEPT}")
            for table, copy in self._copies.items():
                cursor.execute(f"CREATE TABLE {copy} AS SELECT * FROM {table}")

    def restore(self) -> None:
        """Go back, in one transaction.

        Our own triggers, such as the audit log's that refuses every change, sleep meanwhile, and foreign keys are
        looked at when all rows are back. A role that owns the tables may do both; no superuser is needed.
        """
        connection.set_schema_to_public()
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT nspname FROM pg_namespace WHERE nspname ~ '^t_' AND nspname <> ALL(%s)", [self._schemas]
            )
            for (schema,) in cursor.fetchall():
                cursor.execute(f'DROP SCHEMA "{schema}" CASCADE')
            cursor.execute("SELECT n FROM unnest(%s::text[]) AS n WHERE to_regnamespace(n) IS NULL", [self._schemas])
            for (schema,) in cursor.fetchall():
                clone_schema(TEMPLATE_SCHEMA, schema)
                # Its counters are the template's, below those of the rows that come back.
                cursor.execute(_FORWARD, [schema])
            tables = _tables(cursor, _TABLES, self._schemas)
            guarded = _tables(cursor, _WITH_TRIGGERS, self._schemas)
            statements = [
                "BEGIN",
                "SET CONSTRAINTS ALL DEFERRED",
                *(self._statement(table, guarded=table in guarded) for table in tables),
                # A table cannot be altered while keys to it are still to be looked at.
                "SET CONSTRAINTS ALL IMMEDIATE",
                *(f"ALTER TABLE {table} ENABLE TRIGGER USER" for table in guarded),
                "COMMIT",
            ]
            cursor.execute(";".join(statements))
        ContentType.objects.clear_cache()

    def _statement(self, table: str, *, guarded: bool) -> str:
        again = f"DELETE FROM {table};"
        if copy := self._copies.get(table):
            changed = f"EXISTS (TABLE {table} EXCEPT TABLE {copy}) OR EXISTS (TABLE {copy} EXCEPT TABLE {table})"
            again += f"INSERT INTO {table} SELECT * FROM {copy};"
        else:
            changed = f"EXISTS (TABLE {table})"
        if guarded:
            again = f"ALTER TABLE {table} DISABLE TRIGGER USER; {again}"
        return f"DO $$ BEGIN IF {changed} THEN {again} END IF; END $$"

    def drop(self) -> None:
        """Forget the copies."""
        with connection.cursor() as cursor:
            cursor.execute(f"DROP SCHEMA {_KEPT} CASCADE")


@contextmanager
def queries(number: int) -> Iterator[None]:
    """Expect so many queries, without the search path's, which django-tenants sets before each."""
    with CaptureQueriesContext(connection) as captured:
        yield
    sent = [query["sql"] for query in captured if not query["sql"].startswith("SET search_path")]
    assert len(sent) == number, sent


def catalog(schema: str) -> dict[str, list[tuple[object, ...]]]:
    """Every name and definition in a schema, with the schema's own name left out."""
    with connection.cursor() as cursor:
        found = {}
        for what, query in _CATALOG.items():
            cursor.execute(f'SET search_path = "{schema}"')
            cursor.execute(query, {"schema": schema})
            found[what] = cursor.fetchall()
    return found


_HERE = "%(schema)s::regnamespace"
_CATALOG = {
    "tables": f"""SELECT relname, relkind, relpersistence, reloptions, obj_description(c.oid), (SELECT reloptions
        FROM pg_class t WHERE t.oid = c.reltoastrelid) FROM pg_class c
        WHERE relnamespace = {_HERE} AND relkind NOT IN ('t', 'c') ORDER BY 1""",
    "columns": f"""SELECT relname, row_number() OVER (PARTITION BY relname ORDER BY attnum), attname,
        format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated, attstorage, attcompression,
        attcollation, pg_get_expr(adbin, adrelid), col_description(c.oid, attnum)
        FROM pg_class c JOIN pg_attribute ON attrelid = c.oid LEFT JOIN pg_attrdef ON adrelid = c.oid AND adnum = attnum
        WHERE relnamespace = {_HERE} AND relkind IN ('r', 'v') AND attnum > 0 AND NOT attisdropped ORDER BY 1, 2""",
    "constraints": f"""SELECT conrelid::regclass::text, conname, contype, condeferrable, condeferred, convalidated,
        pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = {_HERE} ORDER BY 1, 2""",
    "indexes": f"""SELECT i.relname, pg_get_indexdef(indexrelid, 0, true), indisunique, indisprimary,
        indnullsnotdistinct, i.reloptions FROM pg_index JOIN pg_class i ON i.oid = indexrelid
        JOIN pg_class t ON t.oid = indrelid WHERE t.relnamespace = {_HERE} AND t.relkind = 'r' ORDER BY 1""",
    "sequences": f"""SELECT c.relname, format_type(seqtypid, NULL), seqstart, seqincrement, seqmax, seqmin, seqcache,
        seqcycle, d.refobjid::regclass::text, d.refobjsubid > 0, d.deptype
        FROM pg_sequence JOIN pg_class c ON c.oid = seqrelid
        LEFT JOIN pg_depend d ON d.objid = c.oid AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
        WHERE relnamespace = {_HERE} ORDER BY 1""",
    "triggers": f"""SELECT pg_get_triggerdef(g.oid, true), tgenabled FROM pg_trigger g
        JOIN pg_class c ON c.oid = tgrelid WHERE relnamespace = {_HERE} AND NOT tgisinternal ORDER BY 1""",
    "statistics": f"""SELECT stxname, stxrelid::regclass::text, stxkind, pg_get_statisticsobjdef_columns(oid)
        FROM pg_statistic_ext WHERE stxnamespace = {_HERE} ORDER BY 1""",
    "views": f"""SELECT relname, pg_get_viewdef(oid) FROM pg_class WHERE relnamespace = {_HERE} AND relkind = 'v'
        ORDER BY 1""",
}
