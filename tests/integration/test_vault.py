"""An account's secrets: written once, used by the adapter, and seen nowhere else."""

import json
import logging
import traceback

import pytest
from django.db import connection, transaction

from notifications import adapters
from notifications.channels import Rejected
from notifications.channels.registry import ADAPTERS
from notifications.models import Account, MessageStatus
from notifications.vault import SealBroken
from tenants.context import public_context, tenant_context
from tests import factories
from tests.factories import accepted, fresh, turn
from tests.smtp_server import SMTPServer

PASSWORD = "correct-horse-7"
KEYS = ["b25seS1mb3ItdGVzdHMtMDAwMDAwMDAwMDAwMDAwMDA=", "YW5vdGhlci1rZXktZm9yLXRlc3RzLTAwMDAwMDAwMDA="]


def smtp(**values):
    return {"smtp": {"host": "smtp.example.com", "username": "acme", "password": PASSWORD, **values}}


@pytest.fixture
def account(in_acme):
    return factories.Account(provider="smtp", settings=smtp())


def row(account) -> str:
    """Everything that the database holds of the account."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT row_to_json(a)::text FROM notifications_account AS a WHERE id = %s", [account.pk])
        return cursor.fetchone()[0]


def again(account) -> Account:
    return Account.objects.get(pk=account.pk)


# At rest


def test_the_database_never_holds_a_password(account):
    assert PASSWORD not in row(account)
    assert again(account).settings == {"smtp": {"host": "smtp.example.com", "username": "acme"}}
    assert json.loads(row(account))["sealed"]


def test_the_adapter_gets_settings_and_secrets_together(account):
    assert again(account).get_setting("smtp") == smtp()["smtp"]
    assert again(account).adapter_settings() == smtp()["smtp"]


def test_saving_other_settings_keeps_the_secrets_and_a_new_one_replaces_its_own(account):
    found = again(account)
    found.settings["smtp"]["host"] = "other.example.com"
    found.save()
    assert again(account).get_setting("smtp") == smtp(host="other.example.com")["smtp"]
    found.settings["smtp"]["password"] = "another-horse-8"
    found.save(update_fields=["settings"])
    assert again(account).get_setting("smtp") == smtp(host="other.example.com", password="another-horse-8")["smtp"]
    assert "horse" not in row(account)


def test_an_emptied_secret_is_removed(account):
    found = again(account)
    found.settings["smtp"]["password"] = ""
    found.save()
    assert "password" not in again(account).get_setting("smtp")
    assert again(account).sealed == ""


def test_a_secret_without_its_entry_is_dropped_and_messages_leave(account):
    factories.Outbox(account=account)
    found = again(account)
    found.provider, found.settings = "console", {}
    found.save()
    assert again(account).sealed == ""
    accepted()
    assert turn().sent == 1


@pytest.mark.parametrize("written", [None, ["settings"]])
def test_settings_without_their_entry_lose_its_secret_alone(in_acme, written):
    account = factories.Account(provider="smtp", settings=smtp() | {"other": {"token": "t"}, "api_key": "k"})
    found = again(account)
    del found.settings["other"]
    found.save(update_fields=written)
    assert again(account).all_settings() == smtp() | {"api_key": "k"}


def test_another_provider_is_given_the_secrets_of_its_own_entry_alone(in_acme):
    account = factories.Account(settings=smtp() | {"other": {"token": "t"}, "api_key": "k"})
    found = again(account)
    found.provider = "other"
    found.save(update_fields=["provider"])
    assert again(account).all_settings() == {
        "smtp": {"host": "smtp.example.com", "username": "acme"},
        "other": {"token": "t"},
    }


def test_a_provider_named_inside_the_settings_is_another_too(in_acme):
    account = factories.Account(provider="", settings={"email_provider": {"provider": "one", "token": "t"}})
    found = again(account)
    found.settings["email_provider"]["provider"] = "two"
    found.save()
    assert again(account).adapter_settings() == {"provider": "two"}


def test_what_has_nothing_to_do_with_secrets_does_not_touch_them(account):
    found = again(account)
    before = found.sealed
    found.name = "Renamed"
    found.settings["smtp"]["host"] = "other.example.com"
    found.save()
    found.settings["smtp"]["password"] = PASSWORD
    found.save()
    assert again(account).sealed == before


def test_an_account_whose_key_is_gone_can_still_be_changed(account, settings):
    settings.FIELD_ENCRYPTION_KEYS = [KEYS[1]]
    found = again(account)
    found.is_active, found.settings = False, {}
    found.save()
    assert not again(account).is_active
    found.settings = smtp()
    with pytest.raises(SealBroken):
        found.save()


def test_what_a_providers_adapter_calls_secret_is_one(in_acme, provider, monkeypatch):
    monkeypatch.setattr(ADAPTERS["email", "fake"], "secret_settings", frozenset({"hook"}))
    account = factories.Account(settings={"fake": {"hook": PASSWORD, "odd": 1}})
    assert PASSWORD not in row(account)
    assert again(account).adapter_settings() == {"hook": PASSWORD, "odd": 1}
    with pytest.raises(ValueError, match="secret"):
        Account.objects.update(settings={"fake": {"hook": PASSWORD}})


@pytest.mark.parametrize(
    "write",
    [
        lambda account: Account.objects.update(settings=smtp()),
        lambda account: Account.objects.bulk_create([Account(kind="email", settings=smtp())]),
        lambda account: Account.objects.bulk_update([_with_secret(account)], ["settings"]),
        lambda account: Account.objects.filter(settings=smtp()).count(),
    ],
    ids=["update", "bulk_create", "bulk_update", "look-up"],
)
def test_no_other_way_writes_a_secret_in_clear(account, write):
    with pytest.raises(ValueError, match="secret"), transaction.atomic():
        write(account)
    assert PASSWORD not in row(account)


def _with_secret(account):
    account.settings = smtp()
    return account


# Bound to its place


def test_a_sealed_secret_opens_in_no_other_row(account):
    other = factories.Account(provider="smtp", settings=smtp(password="other"))
    Account.objects.filter(pk=other.pk).update(sealed=account.sealed)
    with pytest.raises(SealBroken, match="another place"):
        again(other).get_setting("smtp")


def test_a_sealed_secret_opens_for_no_other_tenant(acme, globex, provider):
    with tenant_context(acme):
        theirs = factories.Account(provider="smtp", settings=smtp())
    with tenant_context(globex):
        Account.objects.bulk_create([Account(id=theirs.pk, kind="email", provider="smtp", sealed=theirs.sealed)])
        stolen = Account.objects.get()
        with pytest.raises(SealBroken, match="another place"):
            stolen.get_setting("smtp")
        factories.Outbox(account=stolen, address="hello@globex.test")
        message = accepted()
        turn()
        assert fresh(message).status == MessageStatus.SCHEDULED
        assert "sealed for another place" in fresh(message).deferral_reason


def test_the_platforms_secrets_open_from_inside_a_tenant(acme, mail):
    with public_context():
        account = factories.Account(provider="smtp", settings=mail.settings(username="p", password=PASSWORD))
        factories.Outbox(account=account, address="shared@platform.test", priority=1)
    with tenant_context(acme):
        accepted()
        assert turn().sent == 1
    assert [caught.login for caught in mail.mails] == [f"p:{PASSWORD}"]


# Keys


def test_a_secret_outlives_a_change_of_keys(account, settings):
    settings.FIELD_ENCRYPTION_KEYS = list(reversed(KEYS))
    assert again(account).get_setting("smtp") == smtp()["smtp"]
    found = again(account)
    found.settings["smtp"]["password"] = "another-horse-8"
    found.save()
    settings.FIELD_ENCRYPTION_KEYS = [KEYS[1]]
    assert again(account).get_setting("smtp")["password"] == "another-horse-8"


def test_without_its_key_a_message_waits_with_the_reason_and_the_secret_stays(account, provider, settings):
    factories.Outbox(account=account)
    settings.FIELD_ENCRYPTION_KEYS = [KEYS[1]]
    before = row(account)
    message = accepted()
    turn()
    assert fresh(message).status == MessageStatus.SCHEDULED
    assert "FIELD_ENCRYPTION_KEYS" in fresh(message).deferral_reason
    assert row(account) == before


# In sight


def test_nothing_that_is_printed_shows_a_password(account, caplog):
    caplog.set_level(logging.DEBUG)
    unsaved = Account(kind="email", provider="smtp", settings=smtp())
    adapter = adapters.build(again(account), connection.schema_name)
    shown = [repr(account), str(account), repr(unsaved), str(unsaved), f"{again(account).__dict__}", repr(adapter)]
    logging.getLogger("notifications.test").warning("account %s %r", account, account)
    assert PASSWORD not in " ".join(shown) + caplog.text


@pytest.mark.parametrize("wrong", [{"port": "no number"}, {"odd": 1}, {"host": ""}, {"password": PASSWORD + "ü"}])
def test_an_error_in_the_settings_does_not_quote_the_password(in_acme, wrong):
    broken = factories.Account(provider="smtp", settings=smtp(**wrong))
    with pytest.raises(Rejected) as raised:
        adapters.adapter_for(broken)
    assert PASSWORD not in "".join(traceback.format_exception(raised.value))


def test_a_refused_log_in_shows_the_password_nowhere(in_acme, caplog):
    caplog.set_level(logging.DEBUG)
    with SMTPServer(features=["AUTH PLAIN LOGIN"]) as server:
        server.always("auth", f"535 5.7.8 no, {PASSWORD} is wrong")
        account = factories.Account(provider="smtp", settings=smtp(host="127.0.0.1", port=server.port, use_tls=False))
        factories.Outbox(account=account)
        message = accepted()
        turn()
        adapters.close_all()
    stored = fresh(message)
    assert stored.status == MessageStatus.SCHEDULED
    attempt = stored.attempts.get()
    assert PASSWORD not in f"{stored.error_message} {stored.error_log} {attempt.response} {caplog.text}"


def test_the_audit_log_never_holds_a_password(account):
    found = again(account)
    found.settings["smtp"]["password"] = "another-horse-8"
    found.save()
    with connection.cursor() as cursor:
        cursor.execute("SELECT coalesce(string_agg(row_to_json(e)::text, ''), '') FROM auditlog_logentry AS e")
        (written,) = cursor.fetchone()
    assert "horse" not in written
    assert found.sealed not in written
