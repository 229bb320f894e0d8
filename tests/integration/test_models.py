"""What the tables themselves keep true."""

from datetime import timedelta

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection
from django.utils import timezone

from notifications.models import Account, EventType, NotificationPreference, OutboxMessage, Recipient, Suppression
from notifications.models.fields import new_id
from tests import factories
from tests.factories import accepted, on_ledger, turn


def test_keys_are_in_the_order_of_their_making(acme_sends):
    messages = [accepted() for _ in range(20)]
    assert sorted(message.id for message in messages) == [message.id for message in messages]
    assert {message.id.version for message in messages} == {7}
    assert list(OutboxMessage.objects.all()) == messages[::-1]
    assert OutboxMessage.objects.get(id=str(messages[3].id)) == messages[3]


@pytest.mark.parametrize(
    ("make", "constraint"),
    [
        (lambda: [Recipient.objects.create(external_id="u-7") for _ in range(2)], "external_id"),
        (lambda: [NotificationPreference.objects.create() for _ in range(2)], "preference_once_a_recipient"),
        (lambda: [Suppression.objects.create(channel="email", address="a@b.io") for _ in range(2)], "suppression_once"),
        (lambda: Suppression.objects.create(channel="pigeon", address="a@b.io"), "suppression_channel_known"),
        (lambda: [factories.Event() for _ in range(2)], "key"),
        (lambda: factories.Event(message_type="spam"), "event_message_type_known"),
        (lambda: factories.Event(template_type="spam"), "event_template_type_known"),
        (lambda: factories.Account(kind="pigeon"), "account_kind_known"),
    ],
)
def test_the_database_refuses(in_acme, make, constraint):
    with pytest.raises(IntegrityError, match=constraint):
        make()


def test_recipients_without_an_external_id_are_many(in_acme):
    for _ in range(2):
        Recipient.objects.create(external_id=None)


def test_one_message_has_one_row_of_work(acme_sends):
    message = accepted()
    row = on_ledger(message).get()
    with pytest.raises(IntegrityError):
        type(row).objects.bulk_create(
            [
                type(row)(
                    item=message.pk, tenant_id=row.tenant_id, kind="send", lane_id=row.lane_id, due_at=timezone.now()
                )
            ]
        )


@pytest.mark.parametrize(
    "needed",
    [
        lambda: OutboxMessage.objects.filter(status="failed").order_by("-id")[:20],
        lambda: OutboxMessage.objects.filter(to_address="ada@example.com").order_by("-id")[:20],
        lambda: OutboxMessage.objects.filter(related_type="booking", related_id="17"),
        lambda: OutboxMessage.objects.filter(related_content_type_id=1, related_object_id="17"),
        lambda: OutboxMessage.objects.filter(external_id="x-1"),
        lambda: OutboxMessage.objects.filter(idempotency_key="k"),
        lambda: OutboxMessage.objects.filter(user_id=7).order_by("-id")[:20],
        lambda: Recipient.objects.filter(email__iexact="ada@example.com"),
        lambda: Recipient.objects.filter(phone="+12025550188"),
        lambda: EventType.objects.filter(key="booking.confirmed"),
        lambda: Suppression.objects.filter(channel="email", address="ada@example.com"),
    ],
)
def test_each_look_up_of_the_service_has_its_index(in_acme, needed):
    with connection.cursor() as cursor:
        # An empty table is always read whole; so is the plan without that choice.
        cursor.execute("SET LOCAL enable_seqscan = off")
    plan = needed().explain()
    assert "Index" in plan
    assert "Seq Scan" not in plan


def test_claiming_touches_no_index_of_the_ledger(acme_sends):
    """Lease columns are in no index, so that claiming is an update in place (heap-only)."""
    accepted()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT indexdef FROM pg_indexes WHERE tablename = 'dispatch_ledgerrow' AND schemaname = 'public'"
        )
        indexes = " ".join(definition for (definition,) in cursor.fetchall())
    for column in ("lease_until", "token", "worker", "handed_over_at", "deaths"):
        assert column not in indexes


def test_the_work_of_a_sent_message_leaves_no_row(acme_sends):
    accepted()
    assert turn().sent == 1
    assert not on_ledger().exists()


def test_metadata_and_context_are_kept_as_given(acme_sends):
    at = timezone.now() + timedelta(days=1)
    message = accepted(context={"n": 1.5, "l": [1, None, True], "d": {"at": at}, "id": new_id()})
    stored = OutboxMessage.objects.get().context
    assert stored == message.context
    assert stored["d"] == {"at": at.isoformat()}
    assert stored["l"] == [1, None, True]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"email": " Ada@Example.COM "}, ("Ada@example.com", "")),
        ({"phone": "+49 (30) 901820"}, ("", "+4930901820")),
    ],
)
def test_a_recipients_addresses_are_kept_as_messages_have_them(in_acme, given, kept):
    recipient = Recipient.objects.create(**given)
    assert (recipient.email, recipient.phone) == kept


@pytest.mark.parametrize("given", [{"email": "ada"}, {"phone": "12"}])
def test_a_recipient_with_a_wrong_address_is_refused_by_its_field(in_acme, given):
    with pytest.raises(ValidationError) as refused:
        Recipient.objects.create(**given)
    assert list(refused.value.message_dict) == list(given)


@pytest.mark.parametrize("written", [None, ["domain"]])
def test_another_domain_has_to_be_verified_anew(in_acme, written):
    made = factories.Account(domain="acme.test", domain_verified_at=timezone.now())
    assert made.domain_verified_at
    account = Account.objects.get()
    account.domain = "ACME.test"
    account.save()
    assert Account.objects.get().domain_verified_at
    account.domain = "bank.test"
    account.save(update_fields=written)
    stored = Account.objects.get()
    assert (stored.domain, stored.domain_verified_at) == ("bank.test", None)


def test_a_domain_that_is_not_written_stays_verified(in_acme):
    account = factories.Account(domain="acme.test", domain_verified_at=timezone.now())
    account.domain = "bank.test"
    account.save(update_fields=["name"])
    assert Account.objects.get().domain_verified_at
