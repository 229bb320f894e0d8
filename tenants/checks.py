"""System checks of what the walls between tenants stand on."""

from collections.abc import Iterable
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, register

from tenants.scoping import TenantModel, TenantQuerySet

_ENGINE = "django_tenants.postgresql_backend"
_ROUTER = "tenants.scoping.SameTenantRouter"
_KEY_FUNCTIONS = {
    "KEY_FUNCTION": "django_tenants.cache.make_key",
    "REVERSE_KEY_FUNCTION": "django_tenants.cache.reverse_key",
}


def search_path_is_set_for_every_cursor(**_: Any) -> Iterable[CheckMessage]:
    """A skipped `SET search_path` trusts that nobody else changed the session's: measured, it reads other tenants."""
    if getattr(settings, "TENANT_LIMIT_SET_CALLS", False):
        yield Error("TENANT_LIMIT_SET_CALLS must be False.", id="tenants.E001")
    for alias, database in settings.DATABASES.items():
        if database["ENGINE"] != _ENGINE:
            yield Error(f"DATABASES[{alias!r}] must use the engine {_ENGINE}.", id="tenants.E002")


def caches_are_keyed_by_schema(**_: Any) -> Iterable[CheckMessage]:
    """The same key means another thing in each tenant."""
    for alias, cache in settings.CACHES.items():
        for name, function in _KEY_FUNCTIONS.items():
            if cache.get(name) != function:
                yield Error(f"CACHES[{alias!r}][{name!r}] must be {function!r}.", id="tenants.E003")


def relations_stay_in_a_schema(**_: Any) -> Iterable[CheckMessage]:
    """Related objects are fetched through managers: all of them must know their schema."""
    if _ROUTER not in settings.DATABASE_ROUTERS:
        yield Error(f"DATABASE_ROUTERS must contain {_ROUTER!r}.", id="tenants.E004")
    for model in apps.get_models():
        if not issubclass(model, TenantModel):
            continue
        for manager in {model._base_manager, *model._meta.managers}:
            if not isinstance(manager.get_queryset(), TenantQuerySet):
                yield Error(f"The manager {manager} must be built on TenantQuerySet.", obj=model, id="tenants.E005")


def hosts_come_from_the_request_itself(**_: Any) -> Iterable[CheckMessage]:
    """A forwarded host would let a caller choose another tenant."""
    if settings.USE_X_FORWARDED_HOST:
        yield Error("USE_X_FORWARDED_HOST must be False.", id="tenants.E006")


def register_all() -> None:
    """Register them; the migration job runs them, as servers start without."""
    register(search_path_is_set_for_every_cursor, Tags.compatibility)
    register(caches_are_keyed_by_schema, Tags.caches)
    register(relations_stay_in_a_schema, Tags.models)
    register(hosts_come_from_the_request_itself, Tags.security)
