from types import SimpleNamespace

import pytest
from django.contrib.auth.models import Group, User
from django.core.cache import cache
from django.db import OperationalError, connection
from django.http import HttpResponse, StreamingHttpResponse
from django.test import Client
from django.urls import get_urlconf, path

from tenants import middleware
from tenants.context import tenant_context
from tenants.models import Domain, Tenant
from tenants.onboarding import close, suspend
from tests.conftest import OWNER_PASSWORD

SAFE = "tenants.middleware.TenantMiddleware"


def here(request):
    name = request.user.email if request.user.is_authenticated else "anonymous"
    owners = ",".join(User.objects.order_by("email").values_list("email", flat=True))
    return HttpResponse(f"{request.tenant.name} {connection.schema_name} {name} {owners}")


def crash(request):
    raise ZeroDivisionError


def stream(request):
    return StreamingHttpResponse(f"{connection.schema_name} {user.email};" for user in User.objects.all().iterator())


def database_gone(request):
    connection.close()
    raise OperationalError("server closed the connection unexpectedly")


def bad_query(request):
    raise OperationalError("canceling statement due to statement timeout")


urlpatterns = [
    path("here", here),
    path("crash", crash),
    path("stream", stream),
    path("gone", database_gone),
    path("bad", bad_query),
]


@pytest.fixture(autouse=True)
def small_site(settings):
    settings.ROOT_URLCONF = __name__
    settings.PUBLIC_SCHEMA_URLCONF = __name__ + "_public"
    settings.ALLOWED_HOSTS = [*settings.ALLOWED_HOSTS, "custom.example"]
    settings.MIDDLEWARE = [
        SAFE,
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ]


@pytest.fixture(autouse=True)
def public_site(monkeypatch):
    import sys

    public = SimpleNamespace(urlpatterns=[path("platform", lambda request: HttpResponse(request.tenant.schema_name))])
    monkeypatch.setitem(sys.modules, __name__ + "_public", public)


def get(host, url="/here", client=None, **headers):
    return (client or Client(raise_request_exception=False)).get(url, headers={"host": host, **headers})


@pytest.mark.parametrize(
    "host", ["acme.carillon.test", "ACME.Carillon.Test", "acme.carillon.test:8443", "acme.carillon.test."]
)
def test_a_host_is_its_tenants_however_it_is_written(acme, host):
    assert get(host).content.decode().startswith(f"acme {acme.schema_name} anonymous owner@acme.example")


def test_each_host_sees_its_own_rows(acme, globex):
    assert b"owner@globex.example" in get("globex.carillon.test").content
    assert b"owner@globex.example" not in get("acme.carillon.test").content


@pytest.mark.parametrize(
    "host",
    ["nobody.carillon.test", "www.acme.carillon.test", "acme", "acme.other.test", "127.0.0.1", "acme.carillon.test.ev",
     "acme_x.carillon.test", "a b", "", "*.carillon.test", "acme.carillon.test/x"],
)  # fmt: skip
def test_an_unknown_host_is_nobodys(acme, host):
    response = get(host)
    assert (response.status_code, response.content) == (404, b"Not found.\n")


def test_the_platforms_own_host_has_its_own_urls(db):
    assert get("carillon.test", "/platform").content == b"public"
    assert get("carillon.test", "/here").status_code == 404
    assert get("acme.carillon.test", "/platform").status_code == 404


def test_a_forwarded_host_chooses_nothing(acme, globex):
    response = get("acme.carillon.test", **{"x-forwarded-host": "globex.carillon.test"})
    assert b"owner@acme.example" in response.content


def test_a_domain_of_their_own_serves_the_same_tenant(acme):
    Domain.objects.create(domain="custom.example", tenant=acme, is_primary=False)
    assert get("custom.example").content.decode().startswith("acme ")


def test_a_session_means_nothing_on_another_tenants_host(acme, globex):
    client = Client(headers={"host": "acme.carillon.test"})
    with tenant_context(acme):
        assert client.login(username="owner@acme.example", password=OWNER_PASSWORD)
    assert b" owner@acme.example " in get("acme.carillon.test", client=client).content
    assert b" anonymous " in get("globex.carillon.test", client=client).content


def test_the_same_key_in_two_tenants_is_two_rows(acme, globex):
    for tenant in (acme, globex):
        with tenant_context(tenant):
            Group.objects.create(id=77, name=f"group of {tenant.name}")
    with tenant_context(acme):
        assert Group.objects.get(id=77).name == "group of acme"


def test_a_suspended_tenant_is_told_so(acme):
    suspend(acme, "unpaid", "operator")
    response = get("acme.carillon.test")
    assert (response.status_code, response.content) == (403, b"This account is suspended.\n")


def test_a_closed_tenant_is_unknown(acme):
    close(acme, "acme", "operator")
    assert get("acme.carillon.test").status_code == 404


@pytest.mark.parametrize("name", ["acme", "Platform"])
def test_a_tenant_that_waits_for_migrations_is_asked_to_come_back(acme, name):
    Tenant.objects.filter(name=name).update(migrations=[])
    response = get("acme.carillon.test" if name == "acme" else "carillon.test")
    assert response.status_code == 503
    assert int(response["Retry-After"]) > 0


def test_a_missing_schema_serves_nothing_from_public(acme):
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER SCHEMA {acme.schema_name} RENAME TO t_renamed00")
    assert get("acme.carillon.test").status_code == 503


def test_a_database_that_is_away_is_one_line(acme, monkeypatch):
    def away(host):
        raise OperationalError("connection refused")

    monkeypatch.setattr(middleware, "_domain", away)
    response = get("acme.carillon.test")
    assert (response.status_code, response.content.count(b"\n")) == (503, 1)
    assert response["Retry-After"]


def test_a_database_that_goes_away_during_a_request_is_one_line(acme, transactional_db):
    assert get("acme.carillon.test", "/gone").status_code == 503
    assert get("acme.carillon.test", "/bad").status_code == 500


@pytest.mark.parametrize("url", ["/here", "/crash", "/nowhere", "/stream"])
def test_the_connection_is_back_in_public_after_every_request(acme, url):
    get("acme.carillon.test", url)
    assert connection.schema_name == "public"
    assert get_urlconf() is None


def test_a_streamed_answer_is_read_from_its_own_tenant(acme, globex):
    response = get("acme.carillon.test", "/stream")
    assert connection.schema_name == "public"
    with tenant_context(acme):
        User.objects.create_user("second", email="second@acme.example")
    expected = [f"{acme.schema_name} {name}@acme.example;" for name in ("owner", "second")]
    assert sorted(part.decode() for part in response.streaming_content) == expected
    assert connection.schema_name == "public"


def test_finding_the_tenant_costs_one_query(acme, django_assert_max_num_queries):
    cache.clear()
    with django_assert_max_num_queries(4):  # the lookup and the view's own, each with its search path
        get("acme.carillon.test")
