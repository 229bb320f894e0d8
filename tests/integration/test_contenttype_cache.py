import random
from threading import Thread

import pytest
from django.contrib.contenttypes.models import ContentType
from django.contrib.sessions.models import Session
from django.core import checks
from django.db import connection

from tenants.context import public_context, tenant_context
from tests.database import queries


@pytest.fixture
def different_ids(acme, globex, transactional_db):
    """The id of Session's content type in each tenant, made to differ."""
    with tenant_context(globex):
        ContentType.objects.get_for_model(Session).delete()
        ContentType.objects.clear_cache()
    ids = {}
    for tenant in (acme, globex):
        with tenant_context(tenant):
            ids[tenant] = ContentType.objects.get_for_model(Session).pk
    assert len(set(ids.values())) == 2
    return ids


def test_threads_in_different_tenants_never_see_each_others_ids(different_ids):
    wrong, tenants = [], list(different_ids)

    def look(number: int) -> None:
        choose = random.Random(number)
        try:
            for _ in range(250):
                tenant = choose.choice(tenants)
                with tenant_context(tenant):
                    found = ContentType.objects.get_for_model(Session)
                    Session.objects.exists()  # lets the other threads run
                    again = ContentType.objects.get_by_natural_key("sessions", "session")
                    by_id = ContentType.objects.get_for_id(different_ids[tenant])
                    if {found.pk, again.pk, by_id.pk} != {different_ids[tenant]}:
                        wrong.append((tenant.name, found.pk, again.pk, by_id.pk))
        except Exception as error:  # noqa: BLE001
            wrong.append(error)
        finally:
            connection.close()

    threads = [Thread(target=look, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_change_of_tenant_keeps_what_is_cached(acme, globex):
    with tenant_context(acme):
        ContentType.objects.get_for_model(Session)
    with tenant_context(globex):
        ContentType.objects.get_for_model(Session)
    with public_context(), queries(1), tenant_context(acme):  # the one asks the server where it is
        ContentType.objects.get_for_model(Session)


def test_clearing_forgets_this_schema_only(acme, globex):
    for tenant in (acme, globex):
        with tenant_context(tenant):
            ContentType.objects.get_for_model(Session)
    with tenant_context(acme):
        ContentType.objects.clear_cache()
        with queries(1):
            ContentType.objects.get_for_model(Session)
    with tenant_context(globex), queries(0):
        ContentType.objects.get_for_model(Session)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("TENANT_LIMIT_SET_CALLS", True, "tenants.E001"),
        ("CACHES", {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}, "tenants.E003"),
        ("DATABASE_ROUTERS", ["django_tenants.routers.TenantSyncRouter"], "tenants.E004"),
        ("USE_X_FORWARDED_HOST", True, "tenants.E006"),
    ],
)
def test_settings_that_open_the_walls_are_refused(settings, name, value, expected):
    assert not [error for error in checks.run_checks(tags=TAGS) if error.id.startswith("tenants")]
    setattr(settings, name, value)
    assert expected in {error.id for error in checks.run_checks(tags=TAGS)}


TAGS = [checks.Tags.compatibility, checks.Tags.caches, checks.Tags.models, checks.Tags.security]
