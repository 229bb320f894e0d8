"""A new schema as an exact copy of another one: every name, every definition, every row.

django-tenants' own clone names composite unique constraints anew, so that a later migration which drops one by
its name works on migrated schemas and fails on cloned ones. Here PostgreSQL itself writes every definition, read
with a search path of the source alone, so that names inside the schema come unqualified and all others qualified.
"""

from django.db import connection

# What this module does not copy; the template's migrations are ours, so an answer is a mistake in one of them.
_UNSUPPORTED = """
SELECT 'function ' || proname FROM pg_proc WHERE pronamespace = %(schema)s::regnamespace
UNION ALL
SELECT 'type ' || typname FROM pg_type
WHERE typnamespace = %(schema)s::regnamespace AND typtype IN ('e', 'd', 'r', 'm')
UNION ALL
SELECT 'relation ' || relname FROM pg_class
WHERE relnamespace = %(schema)s::regnamespace
  AND (relkind NOT IN ('r', 'i', 'S', 'v', 't', 'c') OR relispartition OR relrowsecurity OR relhassubclass)
"""

# One statement a row, or NULL where there is nothing to say. Phases keep the order: tables, sequences; rows; then
# all that checks the rows.
_STATEMENTS = """
WITH tables AS (
    SELECT oid, relname, reloptions, relpersistence FROM pg_class
    WHERE relnamespace = %(schema)s::regnamespace AND relkind = 'r'
), sequences AS (
    SELECT c.oid, c.relname, s.*, format_type(s.seqtypid, NULL) AS type, d.deptype,
           d.refobjid::regclass AS owner, a.attname, a.attidentity
    FROM pg_class c JOIN pg_sequence s ON s.seqrelid = c.oid
    LEFT JOIN pg_depend d ON d.objid = c.oid AND d.classid = 'pg_class'::regclass AND d.refobjsubid > 0
        AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
    LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    WHERE c.relnamespace = %(schema)s::regnamespace
), options AS (
    SELECT oid, format('START WITH %%s INCREMENT BY %%s MINVALUE %%s MAXVALUE %%s CACHE %%s %%s', seqstart,
        seqincrement, seqmin, seqmax, seqcache, CASE WHEN seqcycle THEN 'CYCLE' ELSE 'NO CYCLE' END) AS text
    FROM sequences
)
SELECT 10 AS phase, oid, format('CREATE %%s TABLE %%I (LIKE %%I.%%I INCLUDING DEFAULTS INCLUDING GENERATED '
        'INCLUDING STORAGE INCLUDING COMPRESSION INCLUDING COMMENTS INCLUDING CONSTRAINTS) %%s',
        CASE relpersistence WHEN 'u' THEN 'UNLOGGED' ELSE '' END, relname, %(schema)s, relname,
        CASE WHEN reloptions IS NOT NULL THEN format('WITH (%%s)', array_to_string(reloptions, ', ')) END) AS statement
FROM tables
UNION ALL
SELECT 11, t.oid, 'ALTER TABLE ' || quote_ident(t.relname) || ' SET ('
        || (SELECT string_agg('toast.' || o, ', ') FROM unnest(c.reloptions) AS o) || ')'
FROM pg_class c JOIN pg_class t ON t.reltoastrelid = c.oid WHERE t.oid IN (SELECT oid FROM tables)
UNION ALL
SELECT 11, oid, format('CREATE SEQUENCE %%I AS %%s %%s', relname, type, text)
FROM sequences JOIN options USING (oid) WHERE deptype IS DISTINCT FROM 'i'
UNION ALL
SELECT 12, oid, format('ALTER SEQUENCE %%I OWNED BY %%s.%%I', relname, owner, attname)
FROM sequences WHERE deptype = 'a'
UNION ALL
-- A copied default still draws from the source's sequence.
SELECT 13, d.oid, format('ALTER TABLE %%I ALTER COLUMN %%I SET DEFAULT %%s', relname, attname,
        pg_get_expr(adbin, adrelid))
FROM pg_attrdef d JOIN tables t ON t.oid = adrelid JOIN pg_attribute a ON attrelid = adrelid AND attnum = adnum
WHERE attgenerated = '' AND EXISTS (SELECT FROM pg_depend p JOIN sequences s ON s.oid = p.refobjid
    WHERE p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid)
UNION ALL
SELECT 20, oid, format('INSERT INTO %%1$I (%%2$s) SELECT %%2$s FROM %%3$I.%%1$I', relname, columns, %(schema)s)
FROM tables, LATERAL (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) AS columns FROM pg_attribute
    WHERE attrelid = tables.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = '') AS a
WHERE columns IS NOT NULL
UNION ALL
SELECT 30, oid, format('ALTER TABLE %%s ALTER COLUMN %%I ADD GENERATED %%s AS IDENTITY (SEQUENCE NAME %%I.%%I %%s)',
        owner, attname, CASE attidentity WHEN 'a' THEN 'ALWAYS' ELSE 'BY DEFAULT' END, %(target)s, relname, text)
FROM sequences JOIN options USING (oid) WHERE deptype = 'i'
UNION ALL
SELECT 31, oid, format('SELECT setval(%%L, last_value, is_called) FROM %%I.%%I', quote_ident(relname), %(schema)s,
        relname)
FROM sequences
UNION ALL
SELECT CASE contype WHEN 'f' THEN 70 ELSE 40 END, c.oid, format('ALTER TABLE %%I ADD CONSTRAINT %%I %%s', relname,
        conname, pg_get_constraintdef(c.oid, true))
FROM pg_constraint c JOIN tables t ON t.oid = conrelid WHERE contype IN ('p', 'u', 'x', 'f')
UNION ALL
SELECT 41, indexrelid, CASE WHEN EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid
            AND contype IN ('p', 'u', 'x'))
        THEN 'ALTER INDEX ' || quote_ident(i.relname) || ' SET (' || array_to_string(i.reloptions, ', ') || ')'
        ELSE pg_get_indexdef(indexrelid, 0, true) END
FROM pg_index JOIN tables t ON t.oid = indrelid JOIN pg_class i ON i.oid = indexrelid
UNION ALL
SELECT 50, s.oid, replace(pg_get_statisticsobjdef(s.oid), format('CREATE STATISTICS %%I.', %(schema)s),
        'CREATE STATISTICS ')
FROM pg_statistic_ext s JOIN tables t ON t.oid = stxrelid
UNION ALL
SELECT 60, c.oid, format('CREATE VIEW %%I %%s AS %%s', relname,
        CASE WHEN reloptions IS NOT NULL THEN format('WITH (%%s)', array_to_string(reloptions, ', ')) END,
        rtrim(pg_get_viewdef(c.oid, true), ';'))
FROM pg_class c WHERE relnamespace = %(schema)s::regnamespace AND relkind = 'v'
UNION ALL
SELECT 80, g.oid, pg_get_triggerdef(g.oid, true)
FROM pg_trigger g JOIN pg_class c ON c.oid = tgrelid
WHERE relnamespace = %(schema)s::regnamespace AND NOT tgisinternal
UNION ALL
SELECT 81, g.oid, format('ALTER TABLE %%I %%s TRIGGER %%I', relname,
        CASE tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END, tgname)
FROM pg_trigger g JOIN tables t ON t.oid = tgrelid WHERE NOT tgisinternal AND tgenabled <> 'O'
UNION ALL
SELECT 90, c.oid, format('COMMENT ON %%s %%I IS %%L', CASE relkind WHEN 'r' THEN 'TABLE' WHEN 'i' THEN 'INDEX'
        WHEN 'S' THEN 'SEQUENCE' ELSE 'VIEW' END, relname, description)
FROM pg_description JOIN pg_class c ON c.oid = objoid AND classoid = 'pg_class'::regclass AND objsubid = 0
WHERE relnamespace = %(schema)s::regnamespace AND relkind IN ('r', 'i', 'S', 'v')
ORDER BY phase, oid
"""


class CloneError(Exception):
    """A schema cannot be copied; the message says what stands in the way."""


def clone_schema(source: str, target: str) -> None:
    """Create the schema `target` as a copy of `source`, in the caller's transaction.

    Two reads and one round trip for all that is made, whatever the number of tables. The source must not
    change meanwhile: hold `locks.template_shared()` when it is the template.

    Raises:
        CloneError: there is no such source, or it holds something that this module does not copy.
    """
    name = connection.ops.quote_name
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regnamespace(quote_ident(%s)), current_setting('search_path')", [source])
        found, search_path = cursor.fetchone()
        if found is None:
            raise CloneError(f"there is no schema {source} to copy")
        cursor.execute(f"SET search_path = {name(source)}")
        cursor.execute(_UNSUPPORTED, {"schema": source})
        if refused := [what for (what,) in cursor.fetchall()]:
            raise CloneError(f"{source} holds what cannot be copied: {', '.join(sorted(refused))}")
        cursor.execute(_STATEMENTS, {"schema": source, "target": target})
        statements = [statement for _, _, statement in cursor.fetchall() if statement]
        cursor.execute(
            ";\n".join(
                [
                    f"CREATE SCHEMA {name(target)}",
                    f"SET search_path = {name(target)}",
                    *statements,
                    f"SET search_path = {search_path}",
                ]
            )
        )
