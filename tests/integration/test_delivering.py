"""What decides at hand-over whether a message goes, and what arrives."""

import pytest
from cryptography.fernet import Fernet
from django.db import connection

from notifications import delivery, wording
from notifications.channels import Accepted, Outgoing
from notifications.models import (
    Account,
    MessageStatus,
    NotificationPreference,
    Outbox,
    OutboxMessage,
    Suppression,
    TemplateVersion,
)
from notifications.services import send
from tenants.context import public_context, tenant_context
from tests import factories
from tests.factories import accepted, fresh, make_due, on_ledger, turn


def ended(message) -> tuple[str, str]:
    stored = fresh(message)
    assert not on_ledger(message).exists()
    return stored.status, stored.error_message


# What forbids a message


@pytest.fixture
def event(in_acme):
    """Sets what the event is, and sends it."""

    def make(**values):
        factories.Event(**values)
        factories.Template()
        return lambda: send(
            to="ada@example.com", template_key="booking.confirmed", channel="email", context={"name": "Ada"}
        )

    return make


SUPPRESSED = [
    # the tenant's reason, the platform's, a security message, what becomes of it
    ("manual", None, False, "suppressed"),
    (None, "complaint", False, "suppressed"),
    ("unsubscribed", None, False, "suppressed"),
    ("unsubscribed", None, True, "sent"),
    (None, "unsubscribed", True, "sent"),
    ("hard_bounce", None, True, "suppressed"),
    ("hard_bounce", "unsubscribed", True, "suppressed"),
    ("unsubscribed", "hard_bounce", True, "suppressed"),
]


@pytest.mark.parametrize(("own", "platforms", "security", "status"), SUPPRESSED)
def test_a_suppressed_address_gets_nothing_but_what_passes_an_opt_out(
    acme_sends, event, own, platforms, security, status
):
    message = event(security=security)()
    if own:
        Suppression.objects.create(channel="email", address="ada@example.com", reason=own)
    if platforms:
        with public_context():
            Suppression.objects.create(channel="email", address="ada@example.com", reason=platforms)
    turn("urgent" if security else "default")
    found, reason = ended(message)
    assert found == status
    assert bool(acme_sends.received) == (status == "sent")
    if status == "suppressed":
        assert reason.startswith("address is suppressed: ")


def test_a_suppression_is_of_one_channel_and_one_address(acme_sends):
    Suppression.objects.create(channel="push", address="ada@example.com")
    Suppression.objects.create(channel="email", address="grace@example.com")
    message = accepted()
    turn()
    assert ended(message)[0] == MessageStatus.SENT


SWITCHES = [
    # the recipient's switches, the tenant's defaults, a security message, what becomes of it
    ({"booking": {"email": False}}, {}, False, "suppressed"),
    ({"booking": {"email": False}}, {}, True, "sent"),
    ({"booking": {"sms": False}}, {}, False, "sent"),
    ({"invoice": {"email": False}}, {}, False, "sent"),
    ({"*": {"email": False}}, {}, False, "suppressed"),
    ({"*": {"email": False}, "booking": {"email": True}}, {}, False, "sent"),
    ({"booking": False}, {}, False, "suppressed"),
    (None, {"booking": {"email": False}}, False, "suppressed"),
    ({"booking": {"email": True}}, {"booking": {"email": False}}, False, "sent"),
]


@pytest.mark.parametrize(("own", "defaults", "security", "status"), SWITCHES)
def test_what_a_recipient_switched_off_is_not_sent(acme_sends, event, own, defaults, security, status):
    ada = factories.Recipient(email="ada@example.com")
    NotificationPreference.objects.create(recipient=None, switches=defaults)
    if own is not None:
        NotificationPreference.objects.create(recipient=ada, switches=own)
    message = event(category="booking", security=security)()
    turn(message.priority)
    found, reason = ended(message)
    assert found == status
    assert bool(acme_sends.received) == (status == "sent")
    assert (reason == "recipient switched off booking by email") == (status == "suppressed")


def test_the_category_is_the_message_type_where_the_event_names_none(acme_sends, event):
    NotificationPreference.objects.create(recipient=None, switches={"announcement": {"email": False}})
    message = event(message_type="announcement")()
    turn("bulk")
    assert ended(message)[0] == MessageStatus.SUPPRESSED


# What cannot be sent


def test_a_message_whose_wording_is_gone_fails_alone(acme_sends):
    doomed, good = (factories.Template(event_key=key) for key in ("doomed", "good"))
    messages = [
        send(to="ada@example.com", template_key=key, context={"name": "A"}) for key in ("good", "doomed", "good")
    ]
    TemplateVersion.objects.filter(template_id=doomed.pk).delete()
    wording._compiled._kept.clear()
    turn()
    assert [fresh(message).status for message in messages] == ["sent", "failed", "sent"]
    assert "is gone" in ended(messages[1])[1]
    assert len(acme_sends.received) == 2
    assert good.pk


def test_wording_that_can_no_longer_be_rendered_fails_its_message_alone(acme_sends):
    template = factories.Template()
    messages = [send(to="ada@example.com", template_key="booking.confirmed", context={"name": "A"}), accepted()]
    TemplateVersion.objects.filter(template_id=template.pk).update(body_text="{% load static %}{{")
    wording._compiled._kept.clear()
    turn()
    assert [fresh(message).status for message in messages] == ["failed", "sent"]


@pytest.mark.parametrize("switched", [Outbox, Account])
def test_while_a_sender_is_switched_off_its_messages_wait_without_an_attempt(acme_sends, switched):
    message = accepted()
    switched.objects.update(is_active=False)
    turn()
    waiting = fresh(message)
    assert (waiting.status, waiting.attempt_count) == ("scheduled", 0)
    assert "switched off" in waiting.deferral_reason
    switched.objects.update(is_active=True)
    make_due(message)
    turn()
    assert ended(message)[0] == MessageStatus.SENT


def test_without_its_sender_a_message_fails(acme_sends):
    message = accepted()
    Outbox.objects.all().delete()
    turn()
    assert ended(message) == ("failed", "the outbox is gone")
    assert fresh(message).dead_lettered_at


def test_what_another_worker_may_know_is_waited_for(acme_sends):
    factories.Outbox(account=factories.Account(provider="nobody"), address="new@acme.test")
    message = accepted(from_address="new@acme.test")
    turn()
    waiting = fresh(message)
    assert (waiting.status, waiting.attempt_count) == ("scheduled", 0)
    assert "no provider 'nobody'" in waiting.deferral_reason


def test_a_secret_that_this_workers_keys_do_not_open_is_waited_for(acme_sends, settings):
    account = factories.Account(provider="smtp", settings={"smtp": {"host": "x.example.com", "password": "s3cret"}})
    factories.Outbox(account=account, address="new@acme.test")
    message = accepted(from_address="new@acme.test")
    settings.FIELD_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    turn()
    assert fresh(message).status == MessageStatus.SCHEDULED
    assert on_ledger(message).exists()


def test_a_row_that_breaks_the_decision_fails_its_message_alone(acme_sends):
    broken = factories.Recipient(email="ada@example.com")
    preference = NotificationPreference.objects.create(recipient=broken)
    NotificationPreference.objects.filter(pk=preference.pk).update(switches=["x"])
    messages = [accepted(), accepted("grace@example.com")]
    turn()
    assert [fresh(message).status for message in messages] == ["failed", "sent"]
    assert "cannot be prepared" in ended(messages[0])[1]


@pytest.mark.parametrize("written", ["Ada@example.com", "ada@EXAMPLE.com"])
def test_an_opt_out_holds_in_any_letter_case(acme_sends, written):
    Suppression.objects.create(channel="email", address="Ada@Example.COM")
    message = accepted(written)
    turn()
    assert ended(message)[0] == MessageStatus.SUPPRESSED


@pytest.mark.parametrize("to", ["ADA@example.com", {"email": "ada@example.com", "external_id": "unknown"}])
def test_what_a_recipient_switched_off_stays_off_however_they_are_called(acme_sends, to):
    ada = factories.Recipient(email="Ada@example.com", external_id="7")
    NotificationPreference.objects.create(recipient=ada, switches={"*": False})
    message = send(to=to, subject="Hi", body_text="Hello")
    turn()
    assert ended(message)[0] == MessageStatus.SUPPRESSED


def test_saving_an_old_object_of_a_message_does_not_undo_what_became_of_it(acme_sends):
    message = accepted()
    turn()
    message.metadata = {"order": 17}
    message.save()
    assert (fresh(message).status, fresh(message).metadata) == ("sent", {"order": 17})


def test_the_providers_answer_is_kept_with_the_message(acme_sends):
    message = accepted()
    acme_sends.script("ada@example.com", Accepted(provider_id="p-1", response="250 queued as 42"))
    turn()
    assert fresh(message).provider_response == {"response": "250 queued as 42"}


def test_a_turn_that_is_over_claims_no_more(acme_sends):
    acme_sends.connections = 1
    messages = [accepted() for _ in range(30)]
    tally = delivery.take_turn("default", seconds=0)
    assert 0 < tally.sent < 30
    assert fresh(messages[-1]).status == "pending"
    assert turn().sent == 30 - tally.sent


@pytest.mark.parametrize(
    ("account", "reason"),
    [
        ({"provider": "django"}, "the platform's own"),
        ({"provider": "smtp", "settings": {"smtp": {"host": ""}}}, "host"),
        ({"provider": "smtp", "settings": {"smtp": {"host": "x.example.com", "odd": 1}}}, "odd"),
    ],
)
def test_an_account_that_cannot_be_used_fails_its_messages_with_the_reason(acme_sends, account, reason):
    factories.Outbox(account=factories.Account(**account), address="bad@acme.test")
    message = accepted(from_address="bad@acme.test")
    turn()
    status, said = ended(message)
    assert status == MessageStatus.FAILED
    assert reason in said


def test_a_message_that_was_deleted_is_taken_off_the_ledger(acme_sends):
    message = accepted()
    OutboxMessage.objects.all().delete()
    assert turn().total == 0
    assert not on_ledger(message).exists()


# What arrives


@pytest.fixture
def by_smtp(in_acme, mail):
    account = factories.Account(provider="smtp", settings=mail.settings(username="acme", password="acme-password-1"))
    factories.Outbox(account=account, reply_to="desk@acme.test")
    return mail


def test_a_mail_arrives_with_both_bodies_and_its_headers(by_smtp):
    factories.Template(subject="Booked, {{ name }}!", body_text="See you,\n{{ name }}", body_html="<p>{{ name }}</p>")
    message = send(
        to={"email": "ada@example.com", "name": "Ada Byron"},
        template_key="booking.confirmed",
        context={"name": "Ada & co."},
        headers={"X-Booking": "17"},
    )
    assert turn().sent == 1
    (caught,) = by_smtp.mails
    assert (caught.sender, caught.recipient) == ("hello@acme.test", "ada@example.com")
    assert caught.subject == "Booked, Ada & co.!"
    assert caught.part("plain") == "See you,\nAda & co."
    assert caught.part("html") == "<p>Ada &amp; co.</p>"
    assert caught.message["From"] == "Acme <hello@acme.test>"
    assert caught.message["To"] == "Ada Byron <ada@example.com>"
    assert caught.message["Reply-To"] == "desk@acme.test"
    assert caught.message["X-Booking"] == "17"
    assert caught.message["Message-ID"] == f"<{message.pk}@acme.test>"
    assert caught.message["Auto-Submitted"] == "auto-generated"
    assert caught.message["Date"]
    stored = fresh(message)
    assert (stored.subject, stored.body_text) == ("Booked, Ada & co.!", "See you,\nAda & co.")
    assert stored.external_id == f"<{message.pk}@acme.test>"


def test_many_mails_arrive_once_each(by_smtp):
    messages = [accepted(f"ada{number}@example.com", body_text=f"for {number}") for number in range(30)]
    assert turn().sent == 30
    assert sorted((caught.recipient, caught.part("plain")) for caught in by_smtp.mails) == sorted(
        (message.to_address, message.body_text) for message in messages
    )


def test_each_tenant_sends_with_its_own_account_and_the_platforms_serves_who_has_none(acme, globex, mail):
    def account(name):
        settings = mail.settings(username=name, password=f"{name}-password-1")
        return factories.Outbox(
            account=factories.Account(provider="smtp", settings=settings), address=f"hi@{name}.test", priority=1
        )

    with public_context():
        account("platform")
    with tenant_context(acme):
        account("acme")
    for tenant in (acme, globex, acme):
        with tenant_context(tenant):
            accepted(body_text=tenant.name)
            assert turn().sent == 1
    assert [(caught.part("plain"), caught.sender, caught.login) for caught in mail.mails] == [
        ("acme", "hi@acme.test", "acme:acme-password-1"),
        ("globex", "hi@platform.test", "platform:platform-password-1"),
        ("acme", "hi@acme.test", "acme:acme-password-1"),
    ]


def test_changed_credentials_are_used_by_the_next_message(by_smtp):
    accepted()
    turn()
    account = Account.objects.get()
    account.settings["smtp"]["password"] = "acme-password-2"
    account.save()
    accepted()
    turn()
    assert [caught.login for caught in by_smtp.mails] == ["acme:acme-password-1", "acme:acme-password-2"]


def test_a_tenants_account_reaches_no_private_network_that_is_not_allowed(by_smtp, settings):
    settings.NOTIFY_PRIVATE_NETWORKS = []
    message = accepted()
    turn()
    assert ended(message)[0] == MessageStatus.FAILED
    assert not by_smtp.mails


def test_an_adapter_is_given_plain_values_only(acme_sends):
    accepted({"email": "ada@example.com", "name": "Ada"}, headers={"X-A": "1"}, reply_to="desk@acme.test")
    turn()
    (outgoing,) = acme_sends.received
    assert isinstance(outgoing, Outgoing)
    assert (outgoing.to, outgoing.to_name, outgoing.reply_to) == ("ada@example.com", "Ada", "desk@acme.test")
    assert outgoing.headers == {"X-A": "1"}


@pytest.mark.django_db(transaction=True)
def test_the_threads_that_hand_over_open_no_database_connection(acme_sends):
    with connection.cursor() as cursor:
        count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        cursor.execute(count)
        (before,) = cursor.fetchone()
        for number in range(20):
            accepted(f"ada{number}@example.com")
        assert turn().sent == 20
        cursor.execute(count)
        # The writer has one of its own.
        assert cursor.fetchone()[0] <= before + 1


def test_a_turn_loads_and_records_in_sets(acme_sends, django_assert_max_num_queries):
    for number in range(50):
        accepted(f"ada{number}@example.com")
    acme_sends.connections = 50
    with django_assert_max_num_queries(70):
        assert turn().sent == 50
