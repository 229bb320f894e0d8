"""The audit log is append-only, and a chain of hashes over its entries shows what was done to it all the same."""

from django.db import migrations

# Functions live in public, where the triggers of every schema find them; schemas migrated at the same time make
# them one after the other.
FUNCTIONS = """
SELECT pg_advisory_xact_lock(hashtextextended('notifications.0003_audit_log', 0));

CREATE OR REPLACE FUNCTION public.refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- When a user is deleted, their entries lose the reference to them and nothing else; the chain keeps the number.
    IF TG_OP = 'UPDATE' AND TG_TABLE_NAME = 'auditlog_logentry' THEN
        IF NEW.actor_id IS NULL AND to_jsonb(NEW) - 'actor_id' = to_jsonb(OLD) - 'actor_id' THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'the audit log is append-only' USING ERRCODE = 'restrict_violation';
END $$;

-- Columns without a value are left out, so that a column added later does not change what older entries hash to.
CREATE OR REPLACE FUNCTION public.chain_audit_entry() RETURNS trigger LANGUAGE plpgsql SET TimeZone = 'UTC' AS $$
DECLARE
    chain text := format('%I.notifications_auditchain', TG_TABLE_SCHEMA);
    last_position bigint;
    last_hash bytea;
    content jsonb := (SELECT jsonb_object_agg(key, value) FROM jsonb_each(to_jsonb(NEW) - 'actor_id')
                      WHERE value <> 'null');
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(chain, 0));
    EXECUTE format('SELECT position, hash FROM %s ORDER BY position DESC LIMIT 1', chain) INTO last_position, last_hash;
    last_position := coalesce(last_position, 0) + 1;
    EXECUTE format('INSERT INTO %s (position, entry_id, actor_id, hash) VALUES ($1, $2, $3, $4)', chain)
    USING last_position, NEW.id, NEW.actor_id, sha256(
        coalesce(last_hash, '') || convert_to(jsonb_build_array(last_position, NEW.actor_id, content)::text, 'UTF8'));
    RETURN NULL;
END $$;
"""

# The chain is appended to when the transaction commits: writers wait for one another for that moment only. The
# entry's number has no foreign key, because an entry removed by force must leave its link behind.
TABLE = """
CREATE TABLE notifications_auditchain (
    position bigint PRIMARY KEY,
    entry_id bigint NOT NULL UNIQUE,
    actor_id bigint,
    hash bytea NOT NULL CHECK (octet_length(hash) = 32)
);
CREATE CONSTRAINT TRIGGER audit_entry_chained AFTER INSERT ON auditlog_logentry
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.chain_audit_entry();
CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE ON auditlog_logentry
FOR EACH ROW EXECUTE FUNCTION public.refuse_audit_change();
CREATE TRIGGER audit_log_not_truncated BEFORE TRUNCATE ON auditlog_logentry
FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_audit_change();
CREATE TRIGGER audit_chain_append_only BEFORE UPDATE OR DELETE ON notifications_auditchain
FOR EACH ROW EXECUTE FUNCTION public.refuse_audit_change();
CREATE TRIGGER audit_chain_not_truncated BEFORE TRUNCATE ON notifications_auditchain
FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_audit_change();
"""

DROP = """
DROP TRIGGER audit_entry_chained ON auditlog_logentry;
DROP TRIGGER audit_log_append_only ON auditlog_logentry;
DROP TRIGGER audit_log_not_truncated ON auditlog_logentry;
DROP TABLE notifications_auditchain;
"""


class Migration(migrations.Migration):
    dependencies = [("notifications", "0002_message_life"), ("auditlog", "0017_add_actor_email")]

    operations = [
        migrations.RunSQL(FUNCTIONS, migrations.RunSQL.noop),
        migrations.RunSQL(TABLE, DROP),
    ]
