"""What the database itself keeps true of messages, and the settings row that every schema has."""

from django.db import migrations

MOVES = {
    "scheduled": ["pending", "sending", "failed", "cancelled", "suppressed"],
    "pending": ["scheduled", "sending", "failed", "cancelled", "suppressed"],
    "sending": ["scheduled", "uncertain", "sent", "delivered", "bounced", "failed"],
    "uncertain": ["pending", "sending", "sent", "delivered", "bounced", "failed"],
    "sent": ["delivered", "bounced", "failed"],
    "delivered": ["bounced"],
    "bounced": ["pending"],
    "failed": ["pending", "sent", "delivered"],
    "suppressed": ["pending"],
}
PAIRS = ", ".join(f"'{before}>{after}'" for before, following in MOVES.items() for after in following)

# The condition stands in WHEN, so that allowed moves cost no function call. The function lives in public, where
# the triggers of every schema find it.
TRIGGER = f"""
SELECT pg_advisory_xact_lock(hashtextextended('notifications.0002_message_life', 0));CREATE OR REPLACE FUNCTION public.refuse_status_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a message may not move from % to %', OLD.status, NEW.status USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER message_status_moves BEFORE UPDATE OF status ON notifications FOR EACH ROW
WHEN (OLD.status <> NEW.status AND (OLD.status || '>' || NEW.status) <> ALL (ARRAY[{PAIRS}]))
EXECUTE FUNCTION public.refuse_status_move();
"""

STORAGE = """
ALTER TABLE notifications SET (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
"""


class Migration(migrations.Migration):
    dependencies = [("notifications", "0001_initial")]

    operations = [
        migrations.RunSQL(TRIGGER, "DROP TRIGGER message_status_moves ON notifications"),
        migrations.RunSQL(STORAGE, migrations.RunSQL.noop),
        migrations.RunSQL(
            """
            INSERT INTO notifications_communicationsettings
                (id, default_channel, default_language, time_zone, phone_region, email_provider, sms_provider,
                 email_from_address, email_from_name, updated_at)
            VALUES (1, 'email', 'en', 'UTC', '', '', '', '', '', now())
            """,
            "DELETE FROM notifications_communicationsettings",
        ),
    ]
