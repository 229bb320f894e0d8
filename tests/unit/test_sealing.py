"""Secrets at rest: sealed for one place, under a list of keys, split from what may be seen."""

import base64

import pytest
from cryptography.fernet import Fernet

from notifications import vault
from notifications.vault import SealBroken, seal, unseal


def key(letter: str) -> str:
    return base64.urlsafe_b64encode(letter.encode() * 32).decode()


@pytest.fixture(autouse=True)
def keys(settings):
    settings.FIELD_ENCRYPTION_KEYS = [key("a")]


def test_what_was_sealed_opens_for_the_same_place_and_no_other():
    sealed = seal({"password": "hunter-2 ü"}, purpose="t_1/account/7/settings")
    assert unseal(sealed, purpose="t_1/account/7/settings") == {"password": "hunter-2 ü"}
    assert "hunter" not in sealed
    for other in ("t_2/account/7/settings", "t_1/account/8/settings", "t_1/account/7/other", ""):
        with pytest.raises(SealBroken, match="another place"):
            unseal(sealed, purpose=other)


def test_the_same_secret_never_looks_the_same():
    assert seal("x", purpose="p") != seal("x", purpose="p")


@pytest.mark.parametrize("spoil", [lambda s: s[:-5] + "AAAAA", lambda s: "", lambda s: s[:30], lambda s: "hunter-2"])
def test_what_was_changed_does_not_open(spoil):
    with pytest.raises(SealBroken):
        unseal(spoil(seal("hunter-2", purpose="p")), purpose="p")


def test_a_new_key_seals_and_the_old_one_still_opens(settings):
    old = seal("x", purpose="p")
    settings.FIELD_ENCRYPTION_KEYS = [key("b"), key("a")]
    new = seal("x", purpose="p")
    rotated = vault.rotate(old)
    assert {unseal(sealed, purpose="p") for sealed in (old, new, rotated)} == {"x"}
    settings.FIELD_ENCRYPTION_KEYS = [key("b")]
    assert {unseal(sealed, purpose="p") for sealed in (new, rotated)} == {"x"}
    for broken in (lambda: unseal(old, purpose="p"), lambda: vault.rotate(old)):
        with pytest.raises(SealBroken, match="FIELD_ENCRYPTION_KEYS"):
            broken()


def test_a_rotated_secret_stays_bound_to_its_place(settings):
    settings.FIELD_ENCRYPTION_KEYS = [key("b"), key("a")]
    rotated = vault.rotate(seal("x", purpose="p"))
    with pytest.raises(SealBroken):
        unseal(rotated, purpose="q")


def test_an_error_does_not_quote_the_secret():
    sealed = seal("hunter-2", purpose="p")
    with pytest.raises(SealBroken) as raised:
        unseal(sealed, purpose="q")
    assert "hunter" not in f"{raised.value!r} {raised.value}"
    assert sealed not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *[(name, True) for name in (
            "password", "PASSWORD", "smtp_password", "passwd", "secret", "client_secret", "token", "auth_token",
            "api_key", "private_key", "signing_key", "access_key", "secret_access_key", "aws_secret_access_key",
            "apikey", "apiKey", "APIKey", "X-Api-Key", "authToken", "authtoken", "clientSecret", "pass", "smtpPass",
            "pwd", "passphrase", "service_account", "serviceAccount", "service_account_json", "credentials",
            "Authorization", "server key",
        )],
        *[(name, False) for name in (
            "host", "username", "key_id", "passwords_changed", "tokens", "domain", "", "bypass", "accessKeyId", "key",
            "account_sid", "spin", "connections", "monkey", "use_tls", "region", "compass", "secret_name",
        )],
    ],
)  # fmt: skip
def test_which_settings_are_secrets(name, secret):
    assert vault.is_secret(name) is secret


def test_secrets_are_split_off_at_every_depth_and_joined_again():
    value = {"smtp": {"host": "h", "password": "p", "deep": {"token": "t"}}, "api_key": "k", "list": [1]}
    public, secret = vault.split(value)
    assert public == {"smtp": {"host": "h", "deep": {}}, "list": [1]}
    assert secret == {"smtp": {"password": "p", "deep": {"token": "t"}}, "api_key": "k"}
    assert vault.join(public, secret) == value


def test_secrets_inside_lists_are_found_too():
    value = {"servers": [{"host": "h", "password": "hunter-2"}], "ports": [{"smtp": 25}]}
    public, secret = vault.split(value)
    assert public == {"ports": [{"smtp": 25}]}
    assert vault.join(public, secret) == value


def test_a_name_may_be_secret_for_a_provider_alone():
    value = {"smtp": {"host": "h", "webhook": "w"}, "servers": [{"webhook": "w"}]}
    assert vault.split(value) == (value, {})
    assert vault.split(value, {"webhook"}) == (
        {"smtp": {"host": "h"}},
        {"smtp": {"webhook": "w"}, "servers": [{"webhook": "w"}]},
    )


def test_a_secret_dict_is_replaced_as_a_whole():
    assert vault.join({"service_account": {"id": 1, "old": 2}}, {"service_account": {"id": 3}}) == {
        "service_account": {"id": 3}
    }


@pytest.mark.parametrize(
    ("secret", "public", "placed"),
    [
        ({"smtp": {"password": "p"}}, {"smtp": {}}, {"smtp": {"password": "p"}}),
        ({"smtp": {"password": "p"}}, {}, {}),
        ({"smtp": {"password": "p"}}, {"smtp": "none"}, {}),
        (
            {"smtp": {"password": "p"}, "fcm": {"key": {"token": "t"}}},
            {"fcm": {"key": {}}},
            {"fcm": {"key": {"token": "t"}}},
        ),
        ({"api_key": "k", "servers": [{"token": "t"}]}, {}, {"api_key": "k", "servers": [{"token": "t"}]}),
        ({"service_account": {"id": 1}, "odd": {"id": 1}}, {}, {"service_account": {"id": 1}}),
    ],
)
def test_a_secret_stays_while_its_place_does(secret, public, placed):
    assert vault.still_placed(secret, public) == placed


def test_an_emptied_secret_is_a_removed_one():
    assert vault.without_empty({"a": "", "b": {"c": None, "d": "x"}, "e": {"f": ""}}) == {"b": {"d": "x"}}


def test_a_key_from_the_library_fits(settings):
    settings.FIELD_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    assert unseal(seal([1], purpose="p"), purpose="p") == [1]
