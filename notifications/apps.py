"""Start-up: what is registered once in every process."""

from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class NotificationsConfig(AppConfig):
    """Everything that tenants and the platform keep of notifications."""

    name = "notifications"
    default_auto_field = "django.db.models.BigAutoField"
    verbose_name = "Notifications"

    def ready(self) -> None:
        """Log what people change; say what happens when a tenant ends, and after migrations."""
        from notifications import alerts, audit, closing, signals
        from tenants import hooks

        audit.register_all()
        signals.credentials_refused.connect(alerts.tell_of_refused_credentials, dispatch_uid="credentials_refused")
        hooks.on_close(closing.stop_work)
        hooks.on_drop(closing.stop_work)
        post_migrate.connect(prepare_platform, sender=self, dispatch_uid="prepare_platform")


def prepare_platform(**_: Any) -> None:
    """Give public its shared outboxes once its tables are there."""
    from notifications import routing
    from notifications.models import Outbox
    from tenants.connection import connection

    if connection.schema_name == "public" and Outbox._meta.db_table in connection.introspection.table_names():
        routing.ensure_platform_outboxes()
