"""Guessing passwords is slow: by account and by address, on each host by itself."""

from random import Random
from typing import Any

import pytest
from auditlog.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client

from tenants.context import tenant_context
from tenants.models import Tenant


@pytest.fixture
def stranger(settings: Any) -> Random:
    """Somebody new: what earlier tests counted does not count for them."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    return Random()


def somewhere(stranger: Random) -> str:
    return f"198.18.{stranger.randrange(256)}.{stranger.randrange(256)}"


def somebody(stranger: Random) -> str:
    return f"{stranger.randrange(2**64):x}@acme.example"


def attempt(client: Client, host: str, username: str, address: str, **headers: str) -> int:
    credentials = {"username": username, "password": "wrong"}
    headers["host"] = f"{host}.carillon.test"
    return client.post("/admin/login/", credentials, headers=headers, REMOTE_ADDR=address).status_code


def test_the_eleventh_try_for_an_account_has_to_wait(client: Client, acme: Tenant, stranger: Random) -> None:
    username = somebody(stranger)
    answers = [attempt(client, "acme", username, somewhere(stranger)) for _ in range(11)]
    assert answers == [200] * 10 + [429]


def test_the_account_of_the_same_name_at_another_tenant_is_not_held_up(
    client: Client, acme: Tenant, globex: Tenant, stranger: Random
) -> None:
    username = somebody(stranger)
    for _ in range(11):
        attempt(client, "acme", username, somewhere(stranger))
    assert attempt(client, "globex", username, somewhere(stranger)) == 200


def test_many_accounts_from_one_address_have_to_wait_too(client: Client, acme: Tenant, stranger: Random) -> None:
    address = somewhere(stranger)
    answers = [attempt(client, "acme", somebody(stranger), address) for _ in range(31)]
    assert answers == [200] * 30 + [429]


@pytest.mark.parametrize(("behind_proxy", "last"), [(False, 429), (True, 200)])
def test_an_address_is_believed_only_from_our_own_proxy(
    client: Client, acme: Tenant, stranger: Random, settings: Any, behind_proxy: bool, last: int
) -> None:
    settings.BEHIND_TLS_PROXY = behind_proxy
    address = somewhere(stranger)
    seen = [f"203.0.113.7, {somewhere(stranger)}" for _ in range(31)]
    answers = [attempt(client, "acme", somebody(stranger), address, **{"x-forwarded-for": by}) for by in seen]
    assert answers[-1] == last


def test_without_redis_nobody_signs_in(
    client: Client, acme: Tenant, stranger: Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr("tenants.sign_in.is_ratelimited", refuse)
    assert attempt(client, "acme", somebody(stranger), somewhere(stranger)) == 503


@pytest.mark.parametrize(("behind_proxy", "noted"), [(False, "198.18.0.1"), (True, "198.18.0.2")])
def test_the_audit_log_notes_an_address_that_cannot_be_made_up(
    client: Client, in_acme: Tenant, settings: Any, behind_proxy: bool, noted: str
) -> None:
    settings.BEHIND_TLS_PROXY = behind_proxy
    client.force_login(User.objects.get(username="owner@acme.example"))
    changed = {"default_channel": "email", "default_language": "de", "time_zone": "UTC"}
    client.post(
        "/admin/notifications/communicationsettings/1/change/",
        changed,
        headers={"host": "acme.carillon.test", "x-forwarded-for": "203.0.113.7, 198.18.0.2"},
        REMOTE_ADDR="198.18.0.1",
    )
    with tenant_context(in_acme):
        assert LogEntry.objects.latest("id").remote_addr == noted


@pytest.mark.parametrize(
    ("forwarded", "noted"),
    [
        ("203.0.113.7, 198.51.100.7:4711", "198.51.100.7"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        *[
            (odd, "198.18.0.1")
            for odd in ("203.0.113.7, unknown", "_hidden", "198.51.100.7:4711:1", "[]:443", "\t,", "1")
        ],
    ],
)
def test_what_a_proxy_forwards_becomes_an_address_or_the_proxys_own(
    client: Client, in_acme: Tenant, settings: Any, forwarded: str, noted: str
) -> None:
    settings.BEHIND_TLS_PROXY = True
    client.force_login(User.objects.get(username="owner@acme.example"))
    answer = client.post(
        "/admin/notifications/communicationsettings/1/change/",
        {"default_channel": "email", "default_language": "de", "time_zone": "UTC"},
        headers={"host": "acme.carillon.test", "x-forwarded-for": forwarded},
        REMOTE_ADDR="198.18.0.1",
    )
    assert answer.status_code == 302
    with tenant_context(in_acme):
        assert LogEntry.objects.latest("id").remote_addr == noted
