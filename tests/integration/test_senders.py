"""Accounts and outboxes: what may be set up, and what the platform brings."""

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError
from django.db.models import ProtectedError

from notifications import adapters, routing
from notifications.channels import Rejected
from notifications.exceptions import CommunicationError
from notifications.models import Account, CommunicationSettings, Outbox
from notifications.services import get_adapter
from tenants.context import public_context, tenant_context
from tests import factories


@pytest.mark.parametrize(
    ("account", "name"),
    [
        ({"kind": "email", "provider": "smtp"}, "smtp"),
        ({"kind": "email", "settings": {"smtp": {"host": "smtp.example.com"}}}, "smtp"),
        ({"kind": "sms", "settings": {"sms_provider": {"provider": "twilio"}}}, "twilio"),
        ({"kind": "email"}, "django"),
        ({"kind": "sms"}, "console"),
    ],
)
def test_an_accounts_provider_is_named_or_read_from_its_settings(db, account, name):
    assert Account(**account).provider_name == name


@pytest.mark.parametrize(
    ("kind", "address"),
    [
        ("email", "not an address"),
        ("email", "Acme <hello@acme.test>"),
        ("email", "a@acme.test\r\nBcc: v@z.io"),
        ("email", "a@acme.test, b@acme.test"),
        ("sms", "hello@acme.test"),
        ("sms", "a name that is too long"),
    ],
)
def test_an_outbox_has_an_address_that_its_channel_can_send_from(in_acme, kind, address):
    with pytest.raises(ValidationError) as raised:
        factories.Outbox(account__kind=kind, address=address)
    assert "address" in raised.value.message_dict
    assert not Outbox.objects.exists()


@pytest.mark.parametrize("wrong", [{"name": "Acme\r\nBcc: v@z.io"}, {"reply_to": "a@b.example\r\nBcc: v@z.io"}])
def test_what_recipients_see_of_an_outbox_is_one_line(in_acme, wrong):
    with pytest.raises(ValidationError) as raised:
        factories.Outbox(**wrong)
    assert set(raised.value.message_dict) == set(wrong)


def test_a_handler_that_is_not_registered_is_refused(in_acme, settings):
    settings.NOTIFY_HANDLER_ALLOWLIST = ["billing.handler"]
    with pytest.raises(ValidationError, match="not registered"):
        factories.Outbox(handler="os.system")
    factories.Outbox(handler="billing.handler")


@pytest.mark.parametrize(
    ("wrong", "constraint"),
    [
        ({"rate_limit": 0}, "outbox_rate_limit_positive"),
        ({"address": "hello@acme.test"}, "outbox_address_once_an_account"),
    ],
)
def test_the_database_refuses_what_no_outbox_can_be(in_acme, wrong, constraint):
    first = factories.Outbox()
    with pytest.raises(IntegrityError, match=constraint):
        factories.Outbox(account=first.account, **{"address": "other@acme.test", **wrong})


def test_an_account_that_is_used_is_not_deleted(in_acme):
    with pytest.raises(ProtectedError):
        factories.Outbox().account.delete()


def test_a_tenants_settings_are_one_row_that_always_exists(in_acme):
    found = CommunicationSettings.objects.get()
    with pytest.raises(ValidationError):
        found.delete()
    with pytest.raises(IntegrityError, match="communication_settings_one_row"):
        CommunicationSettings.objects.create(id=2)


def test_the_platform_has_an_outbox_for_email_and_sms_from_the_start(db):
    with public_context():
        assert sorted(Account.objects.values_list("kind", "provider")) == [("email", "django"), ("sms", "console")]
        before = list(Outbox.objects.values_list("pk", "address"))
        routing.ensure_platform_outboxes()
        assert list(Outbox.objects.values_list("pk", "address")) == before


def test_what_an_operator_switched_off_does_not_come_back(db):
    with public_context():
        Account.objects.update(is_active=False)
        routing.ensure_platform_outboxes()
        assert not Account.objects.filter(is_active=True).exists()


def test_an_adapter_stays_warm_until_its_account_changes(acme, globex, mail):
    with tenant_context(acme):
        account = factories.Account(provider="smtp", settings=mail.settings())
        first = adapters.adapter_for(account)
        assert adapters.adapter_for(Account.objects.get()) is first
        account.settings["smtp"]["timeout"] = 5
        account.save()
        assert adapters.adapter_for(Account.objects.get()) is not first
    with tenant_context(globex):
        Account.objects.bulk_create([Account(id=account.pk, kind="email", provider="smtp", settings=mail.settings())])
        same_key = Account.objects.get()
        Account.objects.update(updated_at=account.updated_at)
        assert (
            adapters.adapter_for(Account.objects.get())
            is not adapters._adapters._kept[acme.schema_name, same_key.pk][1]
        )


def test_the_adapter_of_a_channel_is_its_senders(acme_sends, globex):
    assert get_adapter("email") is acme_sends
    assert get_adapter("email", factories.Account()) is acme_sends
    with pytest.raises(CommunicationError, match="push"):
        get_adapter("push")


def test_the_platforms_adapter_may_be_asked_for_inside_a_tenant(in_acme, mail):
    with public_context():
        account = factories.Account(provider="smtp", settings=mail.settings(username="u", password="p-1"))
        factories.Outbox(account=account, priority=1)
    assert get_adapter("email").provider == "smtp"


def test_the_platforms_own_provider_is_not_for_tenants(in_acme):
    with pytest.raises(Rejected, match="the platform's own"):
        get_adapter("email", factories.Account(provider="django"))
    with public_context():
        assert get_adapter("email", Account.objects.get(kind="email")).provider == "django"


def test_the_platforms_sender_may_be_given_with_a_name(db, settings):
    Outbox.objects.all().delete()
    Account.objects.all().delete()
    settings.NOTIFY_EMAIL_FROM_DEFAULT = "Carillon <no-reply@example.com>"
    routing.ensure_platform_outboxes()
    outbox = Outbox.objects.get(account__kind="email")
    assert (outbox.name, outbox.address) == ("Carillon", "no-reply@example.com")


def test_without_a_provider_nobody_shares_a_sender(db, settings):
    Outbox.objects.all().delete()
    Account.objects.all().delete()
    settings.NOTIFY_SMS_PROVIDER = ""
    routing.ensure_platform_outboxes()
    assert not Account.objects.filter(kind="sms").exists()


def test_an_account_that_names_no_provider_takes_the_tenants_default(in_acme):
    account = factories.Account(provider="", settings={})
    assert account.provider_name == "django"
    CommunicationSettings.objects.update(email_provider="console")
    assert account.provider_name == "console"


def test_the_platforms_account_does_not_follow_a_tenants_choice(acme):
    with public_context():
        account = factories.Account(provider="", settings={})
        account = Account.objects.get(pk=account.pk)
    with tenant_context(acme):
        CommunicationSettings.objects.update(email_provider="console")
        assert account.provider_name == "django"
