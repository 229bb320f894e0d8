"""Guessing passwords is slow: by account and by address, on each host by itself."""

import pytest
from django.core.cache import cache
from django.test import Client

from tenants.models import Tenant

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def empty_cache() -> None:
    cache.clear()


def attempt(client: Client, host: str, username: str, **headers: str) -> int:
    credentials = {"username": username, "password": "wrong"}
    return client.post("/admin/login/", credentials, headers={"host": f"{host}.carillon.test"}, **headers).status_code


def test_the_eleventh_try_for_an_account_has_to_wait(client: Client, acme: Tenant) -> None:
    answers = [attempt(client, "acme", "owner@acme.example", REMOTE_ADDR=f"192.0.2.{n}") for n in range(11)]
    assert answers == [200] * 10 + [429]


def test_the_account_of_the_same_name_at_another_tenant_is_not_held_up(
    client: Client, acme: Tenant, globex: Tenant
) -> None:
    for n in range(11):
        attempt(client, "acme", "owner@example.com", REMOTE_ADDR=f"192.0.2.{n}")
    assert attempt(client, "globex", "owner@example.com") == 200


def test_many_accounts_from_one_address_have_to_wait_too(client: Client, acme: Tenant) -> None:
    answers = [attempt(client, "acme", f"user{n}@acme.example") for n in range(31)]
    assert answers == [200] * 30 + [429]


def test_an_address_is_believed_only_from_our_own_proxy(client: Client, acme: Tenant, settings: object) -> None:
    forged = [{"HTTP_X_FORWARDED_FOR": f"198.51.100.{n}"} for n in range(31)]
    answers = [attempt(client, "acme", f"user{n}@acme.example", **forged[n]) for n in range(31)]
    assert answers[-1] == 429


def test_without_redis_nobody_signs_in(client: Client, acme: Tenant, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr("tenants.sign_in.is_ratelimited", refuse)
    assert attempt(client, "acme", "owner@acme.example") == 503
