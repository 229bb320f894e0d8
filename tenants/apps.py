from django.apps import AppConfig


class TenantsConfig(AppConfig):
    name = "tenants"
    default_auto_field = "django.db.models.BigAutoField"
    verbose_name = "Tenants"

    def ready(self) -> None:
        """Make content types safe to cache, and register the checks of what isolation stands on."""
        from tenants import checks, contenttypes

        checks.register_all()
        contenttypes.install()
