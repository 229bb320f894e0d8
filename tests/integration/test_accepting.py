"""What callers get back, and what is refused at the call."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import UUID

import pytest
from django.contrib.auth import get_user_model
from django.utils import timezone

import notifications
from notifications.exceptions import (
    CommunicationError,
    InvalidContentError,
    InvalidRecipientError,
    InvalidSenderError,
    MissingPlaceholderError,
    TenantRequired,
)
from notifications.models import CommunicationSettings, MessageStatus, OutboxMessage, Scope
from notifications.rendering import context as rendering_context
from notifications.services import (
    enqueue_notification,
    get_messages_for_object,
    register_serializer,
    send,
    send_email,
    send_sms,
)
from tenants import onboarding
from tenants.context import public_context, tenant_context
from tests import factories
from tests.factories import accepted, fresh, on_ledger

ADA = {"email": "ada@example.com", "name": "Ada"}


# What comes back


def test_an_event_is_accepted_with_the_words_of_its_template(acme_sends, acme):
    template = factories.Template()
    message = enqueue_notification(
        event_key="booking.confirmed", channel="email", to=ADA, context={"name": "Ada"}, tenant=acme
    )
    stored = fresh(message)
    assert isinstance(message.id, UUID)
    assert (stored.status, stored.event_key, stored.channel) == (MessageStatus.PENDING, "booking.confirmed", "email")
    assert (stored.to_address, stored.to_name) == ("ada@example.com", "Ada")
    assert (stored.from_address, stored.from_name) == ("hello@acme.test", "Acme")
    assert stored.context == {"name": "Ada"}
    assert (stored.template_scope, stored.template_uuid, stored.template_version) == (Scope.TENANT, template.pk, 1)
    assert on_ledger(message).get().due_at <= timezone.now()


def test_nothing_is_stored_of_what_is_refused(acme_sends):
    with pytest.raises(InvalidContentError):
        accepted(body_text=" ")
    assert not OutboxMessage.objects.exists()
    assert not on_ledger().exists()


def test_the_short_ways_in_give_the_same_record(acme_sends):
    mail = send_email(to_address="ada@example.com", subject="Hi", message="Text", html="<p>x</p>", metadata={"a": 1})
    text = send_sms(to_address="+12025550188", message="Text")
    assert (mail.channel, mail.subject, mail.body_text, mail.body_html) == ("email", "Hi", "Text", "<p>x</p>")
    assert (mail.recipient_email, mail.recipient_phone) == ("ada@example.com", "")
    assert (text.channel, text.message, text.recipient_phone) == ("sms", "Text", "+12025550188")
    assert text.from_address == "+12025550123"


def test_send_is_importable_from_the_package():
    assert notifications.send is send


def test_what_is_written_in_the_call_goes_before_the_template(acme_sends):
    factories.Template(body_html="<p>See you, {{ name }}</p>")
    message = send(
        to=ADA, template_key="booking.confirmed", context={"name": "Ada"}, subject="{{ raw }}", body_text="B"
    )
    factories.turn()
    stored = fresh(message)
    assert (stored.subject, stored.body_text, stored.body_html) == ("{{ raw }}", "B", "<p>See you, Ada</p>")


def test_metadata_is_kept_and_read_back(acme_sends):
    message = fresh(accepted(metadata={"attachments": ["a.pdf"], "campaign": "welcome"}))
    assert message.metadata == {"attachments": ["a.pdf"], "campaign": "welcome"}
    assert message.get_metadata_value("attachments") == ["a.pdf"]
    assert message.get_metadata_value("none", 7) == 7


@pytest.mark.parametrize("status", MessageStatus.values)
def test_a_status_counts_as_sent_failed_or_neither(status):
    message = OutboxMessage(status=status, retry_count=0, max_retries=3)
    assert message.is_sent == (status in {"sent", "delivered"})
    assert message.is_failed == message.can_retry == (status in {"failed", "bounced"})


# When


def test_a_schedule_in_the_past_means_now(acme_sends):
    message = accepted(scheduled_at=timezone.now() - timedelta(days=1))
    assert (message.status, message.scheduled_at) == (MessageStatus.PENDING, None)
    assert on_ledger(message).get().due_at <= timezone.now()


@pytest.mark.parametrize("name", ["scheduled_at", "scheduled_for"])
def test_a_schedule_in_the_future_waits_for_its_time(acme_sends, name):
    factories.Template()
    at = datetime(2100, 1, 1, 12, tzinfo=UTC)
    message = enqueue_notification(event_key="booking.confirmed", to=ADA, context={"name": "Ada"}, **{name: at})
    assert (message.status, message.scheduled_at) == (MessageStatus.SCHEDULED, at)
    assert message.expires_at > at
    assert on_ledger(message).get().due_at == at
    assert factories.turn().total == 0


def test_a_schedule_without_time_zone_is_refused(acme_sends):
    with pytest.raises(CommunicationError, match="scheduled_at has no time zone"):
        accepted(scheduled_at=datetime(2100, 1, 1))  # noqa: DTZ001


def test_the_event_says_how_long_a_message_is_worth_sending(acme_sends):
    factories.Event(expires_after=timedelta(minutes=10))
    factories.Template()
    message = send(to=ADA, template_key="booking.confirmed", context={"name": "Ada"})
    assert message.expires_at - message.created_at < timedelta(minutes=11)


# To whom


def user():
    return get_user_model().objects.create_user("ada", email="ada@example.com", first_name="Ada", last_name="Byron")


RECIPIENTS = {
    "text": (lambda: "ada@example.com", ""),
    "dict": (lambda: {"email": "ada@example.com", "name": "Ada"}, "Ada"),
    "dict with an address": (lambda: {"address": "ada@example.com"}, ""),
    "user": (user, "Ada Byron"),
    "object": (lambda: SimpleNamespace(email="ada@example.com", name="Ada"), "Ada"),
    "recipient": (lambda: factories.Recipient(email="ada@example.com"), "Ada"),
}


@pytest.mark.parametrize(("make", "name"), RECIPIENTS.values(), ids=RECIPIENTS.keys())
def test_a_recipient_may_be_given_as(acme_sends, make, name):
    message = accepted(make())
    assert (message.to_address, message.to_name) == ("ada@example.com", name)


def test_a_user_given_as_recipient_is_linked(acme_sends):
    ada = user()
    assert accepted(ada).user_id == ada.pk
    assert accepted(user=ada).user_id == ada.pk
    assert fresh(accepted(user=ada)).user == ada


@pytest.mark.parametrize("by", ["email", "external_id"])
def test_a_known_recipient_is_found_again(acme_sends, by):
    ada = factories.Recipient(email="ada@example.com", external_id="u-7", language="de")
    message = accepted(
        {"email": "ada@example.com"} if by == "email" else {"email": "b@c.example", "external_id": "u-7"}
    )
    assert (message.recipient_id, message.to_name) == (ada.pk, "Ada")


@pytest.mark.parametrize(
    ("channel", "to"),
    [
        ("email", "not an address"),
        ("email", ""),
        ("email", {"phone": "+12025550188"}),
        ("email", {"email": "ada@example.com", "bcc": "v@z.io"}),
        ("email", {"email": 7}),
        ("email", SimpleNamespace(name="Ada")),
        ("email", None),
        ("sms", "ada@example.com"),
        ("sms", {"email": "ada@example.com"}),
        ("sms", "12345"),
        ("sms", "0160 1234567"),
    ],
)
def test_a_recipient_that_the_channel_cannot_reach_is_refused(acme_sends, channel, to):
    with pytest.raises(InvalidRecipientError):
        send(to=to, channel=channel, subject="Hi", body_text="Hello")


def test_a_number_without_country_code_is_read_in_the_tenants_region(acme_sends):
    CommunicationSettings.objects.update(phone_region="DE")
    assert send_sms(to_address="030 901820", message="Hi").to_address == "+4930901820"


# Injection


@pytest.mark.parametrize(
    "call",
    [
        {"subject": "Hi\r\nBcc: v@z.io"},
        {"subject": "Hi\nBcc: v@z.io"},
        {"reply_to": "desk@acme.test\r\nBcc: v@z.io"},
        {"reply_to": "desk@acme.test, v@z.io"},
        {"from_address": "hello@acme.test\r\nBcc: v@z.io"},
        {"from_address": "x\r\nBcc: v@acme.test"},
        {"from_address": "ceo@bank.test, x@acme.test"},
        {"headers": {"X-T": "y\r\nBcc: v@z.io"}},
        {"headers": {"X-T: y\r\nBcc": "v@z.io"}},
        {"headers": {"From": "ceo@bank.test"}},
        {"headers": {"bcc": "v@z.io"}},
        {"headers": {"List-Unsubscribe": "<https://evil.test>"}},
        {"headers": {"X-Number": 7}},
        {"metadata": {"attachments": ["a.pdf\r\nBcc: v@z.io"]}},
        {"metadata": {"attachments": ["../../etc/passwd"]}},
        {"metadata": {"attachments": "a.pdf"}},
        {"metadata": {"attachments": [7]}},
        {"to": '"b@y.io" <v@z.io>'},
        {"to": "a@y.io, v@z.io"},
        {"to": "a@y.io\nBcc: v@z.io"},
        {"to": "ü@y.io"},
        {"to": "a%b@y.io"},
        {"to": {"email": "ada@example.com", "name": "Ada\r\nBcc: v@z.io"}},
        {"to": SimpleNamespace(email="ada@example.com", name="=?utf-8?q?=0d=0aBcc:_v@z.io?=")},
    ],
)
def test_what_would_write_a_header_of_its_own_is_refused_at_the_call(acme_sends, call):
    account = factories.Account(domain="acme.test", domain_verified_at=timezone.now())
    factories.Outbox(account=account, address="other@acme.test")
    with pytest.raises((InvalidContentError, InvalidRecipientError, InvalidSenderError)):
        accepted(**{"to": "ada@example.com", **call})
    assert not OutboxMessage.objects.exists()


@pytest.mark.parametrize(
    "call",
    [
        {"body_text": "a\x00b"},
        {"body_text": "a\ud800b"},
        {"body_html": "a\x00b"},
        {"context": {"name": "a\x00b"}},
        {"context": {"name": "a\ud800b"}},
        {"context": {"a\x00b": 1}},
        {"metadata": {"name": "a\x00b"}},
        {"idempotency_key": "a\x00b"},
        {"related_object": ("booking", "a\x00b")},
        {"related_object": ("b" * 51, 1)},
        {"related_object": ("booking", "1" * 201)},
        {"language": "a\x00b"},
        {"priority": "a\x00b"},
    ],
)
def test_text_that_the_database_cannot_hold_is_refused_like_any_other_fault(acme_sends, call):
    with pytest.raises(CommunicationError):
        accepted(**call)


# From whom


def test_only_an_active_outbox_of_the_tenants_own_may_be_the_sender(acme_sends, globex):
    factories.Outbox(address="desk@acme.test", name="Desk")
    factories.Outbox(address="old@acme.test", is_active=False)
    factories.Outbox(address="off@acme.test", account__is_active=False)
    with tenant_context(globex):
        factories.Outbox(address="hello@globex.test")
    with public_context():
        factories.Outbox(address="hello@platform.test")
    assert (accepted(from_address="Desk@acme.test").from_address, accepted().from_address) == (
        "desk@acme.test",
        min("desk@acme.test", "hello@acme.test"),
    )
    for other in ("old@acme.test", "off@acme.test", "hello@globex.test", "hello@platform.test", "any@acme.test"):
        with pytest.raises(InvalidSenderError, match="from_address"):
            accepted(from_address=other)


def test_any_address_at_a_verified_domain_may_be_the_sender(acme_sends):
    account = factories.Account(domain="Acme.Test")
    outbox = factories.Outbox(account=account, address="news@acme.test")
    with pytest.raises(InvalidSenderError):
        accepted(from_address="ceo@acme.test")
    account.domain_verified_at = timezone.now()
    account.save()
    message = accepted(from_address="ceo@acme.test")
    assert (message.from_address, message.outbox_uuid) == ("ceo@acme.test", outbox.pk)
    for other in ("ceo@sub.acme.test", "ceo@notacme.test", "acme.test"):
        with pytest.raises(InvalidSenderError):
            accepted(from_address=other)


def test_a_tenant_without_an_outbox_uses_the_platforms(in_acme, provider):
    with public_context():
        shared = factories.Outbox(address="shared@platform.test", priority=1)
    CommunicationSettings.objects.update(email_from_name="Acme Rooms")
    message = accepted()
    assert (message.outbox_scope, message.outbox_uuid) == (Scope.PLATFORM, shared.pk)
    assert (message.from_address, message.from_name) == ("shared@platform.test", "Acme Rooms")
    factories.turn()
    assert fresh(message).status == MessageStatus.SENT


def test_the_tenants_chosen_outbox_goes_before_the_first(acme_sends):
    factories.Outbox(address="second@acme.test", priority=200)
    CommunicationSettings.objects.update(email_from_address="second@acme.test")
    assert accepted().from_address == "second@acme.test"


def test_a_channel_that_nobody_can_send_on_is_refused(acme_sends):
    with pytest.raises(CommunicationError, match="no active outbox can send push"):
        send(to="token", channel="push", body_text="Hi")


# On which channel


@pytest.mark.parametrize(
    ("explicit", "message_type", "expected"),
    [
        ("sms", "announcement", "sms"),
        ("email", "alert", "email"),
        (None, "transactional", "email"),
        (None, "reminder", "sms"),
        (None, "alert", "sms"),
        (None, "announcement", "email"),
    ],
)
def test_the_channel_is_the_calls_else_the_message_types(acme_sends, explicit, message_type, expected):
    factories.Event(message_type=message_type)
    for channel in ("email", "sms"):
        factories.Template(channel=channel)
    to = {"email": "ada@example.com", "phone": "+12025550188"}
    message = send(to=to, template_key="booking.confirmed", channel=explicit, context={"name": "Ada"})
    assert (message.channel, message.message_type) == (expected, message_type)


def test_without_a_type_the_channel_is_the_tenants_default(acme_sends):
    CommunicationSettings.objects.update(default_channel="sms")
    assert send(to="+12025550188", body_text="Hi").channel == "sms"


def test_the_platforms_event_type_counts_where_the_tenant_has_none(acme_sends):
    with public_context():
        factories.Event(message_type="alert")
    factories.Template(channel="sms")
    assert send(to="+12025550188", template_key="booking.confirmed", context={"name": "A"}).channel == "sms"
    factories.Event(message_type="announcement")
    factories.Template()
    assert send(to=ADA, template_key="booking.confirmed", context={"name": "A"}).channel == "email"


@pytest.mark.parametrize("call", [{"channel": "pigeon"}, {"priority": "now"}])
def test_an_unknown_word_is_refused_with_those_there_are(acme_sends, call):
    with pytest.raises(CommunicationError, match="is none of"):
        accepted(**call)


# How urgently


@pytest.mark.parametrize(
    ("message_type", "security", "asked", "metadata", "expected"),
    [
        ("transactional", False, None, {}, "default"),
        ("reminder", False, None, {}, "default"),
        ("alert", False, None, {}, "high"),
        ("announcement", False, None, {}, "bulk"),
        ("transactional", True, None, {}, "urgent"),
        ("transactional", True, "bulk", {}, "bulk"),
        ("transactional", False, "urgent", {}, "high"),
        ("transactional", False, "bulk", {"priority": "high"}, "bulk"),
        ("transactional", False, None, {"priority": "high"}, "high"),
        ("transactional", False, None, {"priority": "urgent"}, "default"),
        ("transactional", False, None, {"priority": "soon"}, "default"),
    ],
)
def test_the_priority_is_the_calls_capped_by_what_the_message_is(
    acme_sends, message_type, security, asked, metadata, expected
):
    factories.Event(message_type=message_type, security=security)
    factories.Template()
    message = send(
        to=ADA,
        channel="email",
        template_key="booking.confirmed",
        context={"name": "A"},
        priority=asked,
        metadata=metadata,
    )
    assert message.priority == expected
    assert on_ledger(message).get().lane.queue == expected


# About what


def test_messages_of_an_object_are_found_by_it(acme_sends):
    ada = factories.Recipient()
    first, second = accepted(related_object=ada), accepted(related_object=ada)
    accepted(related_object=factories.Recipient())
    accepted(related_object=("recipient", str(ada.pk)))
    assert get_messages_for_object(ada) == [first, second]
    assert fresh(first).related_object == ada
    assert first.related_object_id == str(ada.pk)


def test_messages_of_something_elsewhere_are_found_by_type_and_id(acme_sends, globex):
    message = accepted(related_object=("booking", 17))
    accepted(related_object=("booking", 18))
    accepted(related_object=("invoice", 17))
    assert get_messages_for_object(("booking", "17")) == get_messages_for_object(("booking", 17)) == [message]
    assert get_messages_for_object(("booking", 17), tenant=globex) == []


# For which tenant


@pytest.mark.parametrize("named_by", ["instance", "schema"])
def test_a_tenant_may_be_named_from_outside(acme, globex, provider, named_by):
    with tenant_context(acme):
        factories.Outbox()
    with public_context():
        factories.Template()
    message = enqueue_notification(
        event_key="booking.confirmed",
        to=ADA,
        context={"name": "Ada"},
        tenant=acme if named_by == "instance" else acme.schema_name,
    )
    with tenant_context(acme):
        assert OutboxMessage.objects.get().pk == message.pk
        assert on_ledger().get().tenant_id == acme.pk
    with tenant_context(globex):
        assert not OutboxMessage.objects.exists()


def test_without_a_tenant_and_outside_any_a_call_is_refused(db):
    with pytest.raises(TenantRequired, match="tenant="):
        accepted()
    with pytest.raises(TenantRequired, match="tenant="):
        get_messages_for_object(("booking", 17))


@pytest.mark.parametrize("kind", ["unknown", "closed", "waiting for migrations"])
def test_a_tenant_that_cannot_be_served_is_refused_by_name(acme, kind):
    if kind == "closed":
        onboarding.close(acme, "acme", "a test")
    if kind == "waiting for migrations":
        type(acme).objects.filter(pk=acme.pk).update(migrations=["notifications.0001_initial"])
    for tenant in ["t_nobodyhere"] if kind == "unknown" else [acme.schema_name, acme]:
        with pytest.raises(TenantRequired, match="not a tenant that can be served"):
            accepted(tenant=tenant)


def test_the_platform_sends_messages_of_its_own(provider, db):
    with public_context():
        factories.Outbox(address="ops@platform.test", priority=1)
        factories.Template()
    message = enqueue_notification(
        event_key="booking.confirmed", to="ops@example.com", context={"name": "Ops"}, tenant="public"
    )
    assert (message.outbox_scope, message.template_scope) == (Scope.PLATFORM, Scope.PLATFORM)
    with tenant_context("public"):
        assert factories.turn().sent == 1
        assert fresh(message).status == MessageStatus.SENT
        assert accepted().status == MessageStatus.PENDING


def test_a_platform_without_tenants_needs_no_tenant(provider, db, settings):
    settings.NOTIFY_TENANT_MODEL = None
    factories.Outbox(address="ops@platform.test", priority=1)
    assert accepted().status == MessageStatus.PENDING


# Placeholders and context


def test_what_the_event_requires_must_be_in_the_context(acme_sends):
    factories.Event(required_placeholders=["name", "place", "time"])
    factories.Template()
    with pytest.raises(MissingPlaceholderError, match="place, time"):
        send(to=ADA, template_key="booking.confirmed", context={"name": "Ada"})
    send(to=ADA, template_key="booking.confirmed", context={"name": "Ada", "place": "x", "time": "y"})


@pytest.mark.parametrize(
    ("call", "path"),
    [
        ({"context": {"guests": [{"who": object()}]}}, r"context\.guests\.0\.who"),
        ({"context": {"who": SimpleNamespace(password="x")}}, r"context\.who"),
        ({"context": {"n": float("nan")}}, r"context\.n"),
        ({"metadata": {"campaign": {"by": object()}}}, r"metadata\.campaign\.by"),
    ],
)
def test_what_is_no_plain_data_is_refused_with_its_path(acme_sends, call, path):
    with pytest.raises(CommunicationError, match=path):
        accepted(**call)


def test_an_instance_comes_in_as_the_fields_registered_for_it(acme_sends, monkeypatch):
    monkeypatch.setattr(rendering_context, "REGISTERED_SERIALIZERS", {})
    register_serializer(get_user_model(), ("first_name",))
    factories.Template(body_text="{{ user.first_name }} {{ user.email }}")
    message = send(to=ADA, template_key="booking.confirmed", context={"user": user()})
    assert message.context == {"user": {"first_name": "Ada"}}
    factories.turn()
    assert fresh(message).body_text == "Ada "


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tenant": 3}, "tenant=3 is not a tenant"),
        ({"scheduled_at": "2030-01-01T10:00:00Z"}, "scheduled_at must be a datetime, not str"),
        ({"scheduled_at": datetime(9999, 12, 31, tzinfo=UTC)}, "scheduled_at is after the year 9000"),
        ({"idempotency_key": 17}, "idempotency_key must be text, not int"),
        ({"related_object": "booking"}, r"related_object must be a model instance, or \(type, id\)"),
        ({"user": "bob"}, "user must be a user of the tenant, not str"),
        ({"subject": 3}, "subject must be text, not int"),
        ({"body_text": 4}, "body_text must be text, not int"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(acme_sends, given, said):
    with pytest.raises(CommunicationError, match=said):
        send(**{"to": "ada@example.com", "subject": "Hi", "body_text": "Hello", **given})
