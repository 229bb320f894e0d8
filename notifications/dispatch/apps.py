from django.apps import AppConfig


class DispatchConfig(AppConfig):
    name = "notifications.dispatch"
    label = "dispatch"
    verbose_name = "Dispatch"
