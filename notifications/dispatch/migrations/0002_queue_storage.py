"""The ledger is a queue: rows are short-lived, so room is left for updates in place and vacuum runs early."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("dispatch", "0001_initial")]

    operations = [
        migrations.RunSQL(
            """
            ALTER TABLE dispatch_ledgerrow SET (
                fillfactor = 60,
                autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
                autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000,
                autovacuum_vacuum_cost_delay = 0
            );
            ALTER TABLE dispatch_lane SET (
                fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500
            );
            """,
            migrations.RunSQL.noop,
        )
    ]
