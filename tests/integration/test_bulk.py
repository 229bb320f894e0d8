"""Many messages in one call: the same messages as one by one, all of a page or none, and none twice."""

import random
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from notifications import crashpoints, pages
from notifications.dispatch.sweep import waiting
from notifications.exceptions import (
    CommunicationError,
    IdempotencyConflict,
    InvalidContentError,
    InvalidRecipientError,
    InvalidSenderError,
    MissingPlaceholderError,
    TemplateNotFoundError,
    TemplateRenderError,
)
from notifications.models import CommunicationSettings, MessageStatus, OutboxMessage
from notifications.pages import RecipientsRefused
from notifications.queues import Schedule, queue_named
from notifications.services import BulkNotifier, Messages, send
from tenants.context import public_context, tenant_context
from tenants.scoping import WrongTenant
from tests import factories
from tests.factories import Undone, accepted, on_ledger, race, turn

User = get_user_model()


def many(number: int, first: int = 0) -> list[str]:
    return [f"guest{position}@example.com" for position in range(first, first + number)]


def written(recipients: Any, **options: Any) -> Messages:
    """E-mails in the same words to all of them."""
    return BulkNotifier.send_bulk_email(
        **{"recipients": recipients, "subject": "Closed", "message": "Until May", **options}
    )


def told(recipients: Any, **options: Any) -> Messages:
    """E-mails by the template of an event."""
    given = {"recipients": recipients, "event_key": "booking.confirmed", "channel": "email", **options}
    return BulkNotifier.send_bulk(**given)


@pytest.fixture
def small_pages(monkeypatch):
    """Pages of ten."""
    monkeypatch.setattr(pages, "MOST", 10)
    monkeypatch.setattr("notifications.bulk.MOST", 10)


@pytest.fixture
def die_at(monkeypatch):
    """Let the calling process end at a point, the n-th time that it comes there."""

    def set_up(point: str, time: int = 1) -> None:
        seen = Counter()

        def hook(reached: str) -> None:
            seen[reached] += 1
            if (reached, seen[reached]) == (point, time):
                raise Undone

        monkeypatch.setattr(crashpoints, "hook", hook)

    yield set_up
    monkeypatch.setattr(crashpoints, "hook", None)


# What comes back


def test_each_recipient_gets_the_mail_and_the_messages_come_back_in_order(acme_sends):
    messages = written(many(120))
    assert isinstance(messages[0], OutboxMessage)
    assert [message.to_address for message in messages] == many(120)
    assert (len(messages), messages.new, messages.refused) == (120, 120, [])
    assert messages[-1].to_address == "guest119@example.com"
    assert [message.to_address for message in messages[3:5]] == many(2, 3)
    assert [message.id for message in messages] == messages.ids
    assert {(m.channel, m.subject, m.body_text, m.priority, m.status) for m in messages} == {
        ("email", "Closed", "Until May", "bulk", "pending")
    }
    assert on_ledger(*messages).count() == 120
    with pytest.raises(IndexError):
        messages[120]
    while turn("bulk").total:
        pass
    assert Counter(one.to for one in acme_sends.received) == Counter(many(120))


def test_text_messages_go_to_phone_numbers(acme_sends):
    CommunicationSettings.objects.update(phone_region="DE")
    messages = BulkNotifier.send_bulk_sms(recipients=["030 901820", "+12025550188"], message="Closed")
    assert [(m.channel, m.to_address, m.body_text) for m in messages] == [
        ("sms", "+4930901820", "Closed"),
        ("sms", "+12025550188", "Closed"),
    ]


def test_an_instance_may_be_asked_as_well_as_the_class(acme_sends):
    assert len(BulkNotifier().send_bulk_email(recipients=many(2), subject="Hi", message="Hello")) == 2


def test_nobody_is_no_fault(acme_sends):
    assert list(written([])) == []


@pytest.mark.parametrize(("size", "statements"), [(None, 3), (7, 18), (120, 1)])
def test_rows_go_in_by_batches(acme_sends, size, statements):
    with CaptureQueriesContext(connection) as captured:
        written(many(120), **({"batch_size": size} if size else {}))
    assert sum("INSERT INTO notifications" in query["sql"] for query in captured) == statements
    assert OutboxMessage.objects.count() == 120


def test_what_it_asks_of_the_database_does_not_grow_with_the_recipients(acme_sends):
    factories.Event(required_placeholders=["name"])
    factories.Template()
    counts = []
    for number in (5, 10, 500):
        people = [({"email": address, "external_id": address}, {"name": address}) for address in many(number)]
        with CaptureQueriesContext(connection) as captured:
            told(people, idempotency_key=f"{number}")
        counts.append(sum(not query["sql"].startswith("SET search_path") for query in captured))
    assert counts[1:] == [min(counts)] * 2, counts


def test_the_messages_are_read_as_they_are_by_now(acme_sends):
    messages = written(many(2))
    turn("bulk")
    assert {message.status for message in messages} == {MessageStatus.SENT}


@pytest.mark.parametrize("wrong", ["ada@example.com", {"email": "ada@example.com"}, 7, None])
def test_one_recipient_is_no_list_of_them(acme_sends, wrong):
    with pytest.raises(CommunicationError, match="recipients must be a list"):
        written(wrong)


@pytest.mark.parametrize("wrong", [0, -1, 10_001, "50", None])
def test_a_batch_has_a_size(acme_sends, wrong):
    with pytest.raises(CommunicationError, match="batch_size"):
        written(many(2), batch_size=wrong)


# The same as one by one

ITS_OWN = {"id", "idempotency_key", "request_hash", "created_at", "expires_at", "recipient"}


def columns(message: OutboxMessage) -> dict[str, Any]:
    whole = {field.attname: getattr(message, field.attname) for field in OutboxMessage._meta.concrete_fields}
    return {name: value for name, value in whole.items() if name not in ITS_OWN}


def one_of_each() -> dict[str, Any]:
    ada = User.objects.create_user("ada", email="ada@example.com", first_name="Ada", last_name="Byron")
    factories.Recipient(email="known@example.com", name="Known", language="de")
    factories.Recipient(email="other@example.com", name="By id", external_id="u-7", language="de-AT")
    return {
        "text": "Ada@Example.COM",
        "text of a known one": "KNOWN@example.com",
        "dict": {"email": "grace@example.com", "name": "  Grace   Hopper "},
        "dict with an address": {"address": "alan@example.com", "language": "de"},
        "external id": {"email": "new@example.com", "external_id": "u-7"},
        "user": ada,
        "object": SimpleNamespace(email="edsger@example.com", name="Edsger"),
        "recipient": factories.Recipient(name="Tony", email="tony@example.com"),
        "the long way": "o'hara@münchen.de",
    }


CALLS = {
    "written": {"channel": "email", "subject": "Closed", "body_text": "Until {{ may }}", "body_html": "<p>x</p>"},
    "by template": {
        "template_key": "booking.confirmed",
        "channel": "email",
        "context": {"name": "A", "n": [1, {"x": 2.5}]},
    },
    "with everything": {
        "template_key": "booking.confirmed",
        "channel": "email",
        "context": {"name": "Ä\"'{}\\u0000\n"},
        "subject": "Mine",
        "from_address": "hello@acme.test",
        "reply_to": "desk@acme.test",
        "metadata": {"campaign": "May", "priority": "high"},
        "headers": {"X-Campaign": "May"},
        "related_object": ("booking", 17),
        "language": "de",
        "scheduled_at": datetime(2100, 1, 1, 12, tzinfo=UTC),
    },
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_message_is_the_same_as_if_it_were_sent_alone(acme_sends, call):
    factories.Event(message_type="announcement", category="bookings", expires_after=timedelta(days=1))
    factories.Template()
    factories.Template(language="de", subject="Gebucht, {{ name }}")
    people = one_of_each()
    alone = [send(to=to, **{"priority": None if "metadata" in call else "bulk", **call}) for to in people.values()]
    given = {"event_key" if name == "template_key" else name: value for name, value in call.items()}
    together = BulkNotifier.send_bulk(recipients=people.values(), **given)
    for kind, one, other in zip(people, alone, together, strict=True):
        assert columns(factories.fresh(one)) == columns(other), kind
        assert one.recipient_id == other.recipient_id, kind
        assert other.expires_at - one.expires_at < timedelta(minutes=5)
    assert {(row.due_at, row.manual) for row in on_ledger(*alone) if row.due_at.year == 2100} == {
        (row.due_at, row.manual) for row in on_ledger(*together) if row.due_at.year == 2100
    }
    assert on_ledger(*together).count() == len(people)
    assert len({row.lane_id for row in on_ledger(*alone, *together)}) == 1
    assert {message.language for message in together} == (
        {""} if call is CALLS["written"] else {"", "de"} - {"" if "language" in call else None}
    )


def test_a_recipients_own_context_goes_before_everybodys(acme_sends):
    factories.Template(subject="{{ name }}", body_text="{{ room }}, {{ floor }}")
    shared = {"room": "Blue", "floor": 1}
    people = [
        ("ada@example.com", {"name": "Ada"}),
        {"email": "grace@example.com", "context": {"name": "Grace", "room": "Garden"}},
        {"email": "alan@example.com", "context": None},
        "edsger@example.com",
    ]
    messages = told(people, context=shared)
    turn("bulk")
    assert [(message.subject, message.body_text) for message in messages] == [
        ("Ada", "Blue, 1"),
        ("Grace", "Garden, 1"),
        ("", "Blue, 1"),
        ("", "Blue, 1"),
    ]
    assert messages[1].context == {"name": "Grace", "room": "Garden", "floor": 1}


def test_nothing_is_rendered_but_a_sample(acme_sends):
    factories.Template(subject="{{ name }}", body_text="See you")
    messages = told([("ada@example.com", {"name": "Ada"}), ("grace@example.com", {})])
    assert {(message.subject, message.body_text) for message in messages} == {("", "")}
    with pytest.raises(InvalidRecipientError, match=r"recipients\[0\]: subject is empty"):
        told([("grace@example.com", {}), ("ada@example.com", {"name": "Ada"})])
    assert len(told([("g@example.com", {}), ("a@example.com", {"name": "A"})], skip_invalid=True)) == 1


def test_a_muted_template_is_kept_and_not_sent(acme_sends):
    factories.Template()
    factories.Template(language="de", muted=True)
    messages = told([{"email": "ada@example.com"}, {"email": "grace@example.com", "language": "de"}])
    assert [(message.status, message.error_message) for message in messages] == [
        ("pending", ""),
        ("suppressed", "the template is muted"),
    ]
    assert [row.item for row in on_ledger()] == messages.ids[:1]


@pytest.mark.parametrize("size", [1, 1_000])
@hypothesis_settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
        | st.sampled_from(["NULL", "{}", '"', "\\", '\\"', "a,b", "\\u0000", "'; --", "%s", "\x7f\x1b"]),
        min_size=1,
        max_size=20,
    )
)
def test_every_text_arrives_as_it_was_given(acme_sends, size, texts):
    messages = BulkNotifier.send_bulk(
        recipients=[(address, {"text": text, text: [text]}) for address, text in zip(many(20), texts, strict=False)],
        subject="Hi",
        body_text="Hello",
        channel="email",
        batch_size=size,
    )
    assert [message.context for message in messages] == [{"text": text, text: [text]} for text in texts]


# What is refused

WRONG = {
    "address": ("not an address", InvalidRecipientError, "to.email: Write one address"),
    "email": ({"email": "ada@mail.invalid"}, InvalidRecipientError, "to.email: "),
    "no address": ({"name": "Ada"}, InvalidRecipientError, "to has no email"),
    "unknown key": ({"email": "a@example.com", "bcc": "v@z.io"}, InvalidRecipientError, "unknown keys 'bcc'"),
    "nobody": (None, InvalidRecipientError, "neither email nor phone"),
    "header": ({"email": "a@example.com", "name": "A\r\nBcc: v@z.io"}, InvalidRecipientError, "to.name"),
    "NUL": (("a@example.com", {"name": "a\x00b"}), InvalidContentError, "context.name holds a NUL"),
    "half a character": (("a@example.com", {"name": "a\ud800"}), InvalidContentError, "context.name"),
    "NUL outside": ({"email": "a@example.com", "external_id": "\x00"}, InvalidContentError, "to.external_id"),
    "no context": (("a@example.com", "Ada"), TemplateRenderError, "context is a str"),
    "object in it": (("a@example.com", {"name": object()}), TemplateRenderError, "context.name is a object"),
    "placeholder": (("a@example.com", {"room": 1}), MissingPlaceholderError, "context lacks name"),
}


@pytest.mark.parametrize(("wrong", "kind", "said"), WRONG.values(), ids=WRONG.keys())
def test_who_cannot_be_written_to_is_named_and_nothing_is_stored(acme_sends, wrong, kind, said):
    factories.Event(required_placeholders=["name"])
    factories.Template()
    people = [(address, {"name": "Guest"}) for address in many(4)]
    people.insert(2, wrong)
    with pytest.raises(RecipientsRefused) as raised:
        told(people)
    assert str(raised.value).startswith("recipients[2]: ")
    assert said in str(raised.value)
    assert "skip_invalid=True" in str(raised.value)
    assert [(one.position, type(one.error).__mro__[1] is not Exception) for one in raised.value.refused] == [(2, True)]
    assert isinstance(raised.value.refused[0].error, kind)
    assert not OutboxMessage.objects.exists()
    assert not on_ledger().exists()


@pytest.mark.parametrize(("wrong", "kind", "said"), WRONG.values(), ids=WRONG.keys())
def test_who_cannot_be_written_to_may_be_left_out(acme_sends, wrong, kind, said):
    factories.Event(required_placeholders=["name"])
    factories.Template()
    people = [(address, {"name": "Guest"}) for address in many(4)]
    people[1:1] = [wrong]
    people.append(wrong)
    messages = told(people, skip_invalid=True)
    assert [message.to_address for message in messages] == many(4)
    assert [one.position for one in messages.refused] == [1, 5]
    assert all(isinstance(one.error, kind) and said in str(one) for one in messages.refused)


def test_of_many_wrong_ones_some_are_named_and_the_others_counted(acme_sends):
    with pytest.raises(RecipientsRefused, match=r"recipients\[0\].*recipients\[4\].*; and 95 more") as raised:
        written(["x"] * 100)
    assert len(raised.value.refused) == 100


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        ({"event_key": "nothing.such", "channel": "email"}, TemplateNotFoundError),
        ({"subject": " ", "body_text": "Hi", "channel": "email"}, InvalidContentError),
        ({"subject": "Hi", "channel": "email"}, InvalidContentError),
        ({"subject": "Hi\nBcc: v@z.io", "body_text": "Hi", "channel": "email"}, InvalidContentError),
        ({"subject": "Hi", "body_text": "Hi", "channel": "email", "from_address": "x@z.io"}, InvalidSenderError),
        ({"event_key": "booking.confirmed", "channel": "email", "from_address": "x@z.io"}, InvalidSenderError),
        ({"subject": "Hi", "body_text": "Hi", "channel": "pigeon"}, CommunicationError),
        ({"subject": "Hi", "body_text": "Hi", "channel": "email", "priority": "now"}, CommunicationError),
        ({"subject": "Hi", "body_text": "Hi", "channel": "email", "idempotency_key": "k" * 201}, CommunicationError),
    ],
)
def test_what_is_wrong_with_the_call_is_said_of_the_call(acme_sends, call, kind):
    factories.Template()
    with pytest.raises(kind) as raised:
        BulkNotifier.send_bulk(recipients=many(3), **call)
    assert "recipients[" not in str(raised.value)
    assert not OutboxMessage.objects.exists()


# Once a key


def test_the_same_call_again_gives_the_same_messages_as_they_are_now(acme_sends):
    factories.Template()
    people = [({"email": address, "name": "Guest"}, {"name": address}) for address in many(30)]
    first = told(people, idempotency_key="campaign-7")
    turn("bulk")
    again = told(people, idempotency_key="campaign-7")
    assert (again.ids, again.new) == (first.ids, 0)
    assert {message.status for message in again} == {MessageStatus.SENT}
    assert not on_ledger().exists()
    assert OutboxMessage.objects.count() == 30


def test_a_key_may_be_as_long_as_one_may_be(acme_sends):
    first = written(many(2), idempotency_key="k" * 200)
    assert written(many(2), idempotency_key="k" * 200).ids == first.ids
    assert {len(message.idempotency_key) <= 200 for message in first} == {True}
    assert written(many(2), idempotency_key="k" * 199).new == 2


def test_a_key_tells_nobody_whom_it_was_for(acme_sends):
    (message,) = written(["ada@example.com"], idempotency_key="campaign-7")
    assert message.idempotency_key.startswith("campaign-7:")
    assert "ada" not in message.idempotency_key


def test_a_longer_list_under_the_same_key_adds_who_is_new(acme_sends):
    first = written(many(5), idempotency_key="k")
    both = written(many(8), idempotency_key="k")
    assert (both.ids[:5], both.new, OutboxMessage.objects.count()) == (first.ids, 3, 8)


def test_a_call_that_died_between_pages_is_completed_without_doubles(acme_sends, small_pages, die_at):
    die_at("before_accept_commit", 3)
    with pytest.raises(Undone):
        written(many(35), idempotency_key="k")
    assert OutboxMessage.objects.count() == on_ledger().count() == 20
    die_at("never")
    messages = written(many(35), idempotency_key="k")
    assert messages.new == 15
    assert [message.to_address for message in messages] == many(35)
    assert OutboxMessage.objects.count() == on_ledger().count() == 35


@pytest.mark.django_db(transaction=True)
def test_a_call_that_died_before_the_bell_has_left_its_work_to_the_sweep(acme_sends, acme, valkey, die_at):
    die_at("after_accept_commit")
    with pytest.raises(Undone):
        written(many(3), idempotency_key="k")
    assert len(queue_named("bulk")) == 0
    assert on_ledger().count() == 3
    assert waiting() == [(acme.schema_name, "bulk")]


@pytest.mark.django_db(transaction=True)
def test_a_single_one_that_died_before_the_bell_has_left_its_work_to_the_sweep(acme_sends, acme, valkey, die_at):
    die_at("before_accept_commit")
    with pytest.raises(Undone):
        accepted()
    assert not OutboxMessage.objects.exists()
    die_at("after_accept_commit")
    with pytest.raises(Undone):
        accepted()
    assert len(queue_named("default")) == 0
    assert waiting() == [(acme.schema_name, "default")]


OTHERS = [{"message": "Until June"}, {"subject": "Open"}, {"priority": "default"}, {"metadata": {"a": 1}}]


@pytest.mark.parametrize("other", OTHERS, ids=[next(iter(other)) for other in OTHERS])
def test_the_same_key_for_other_arguments_is_a_conflict_by_position(acme_sends, other):
    first = written(many(3), idempotency_key="k")
    with pytest.raises(IdempotencyConflict, match=r"recipients\[2\]: idempotency_key='k' was used before"):
        written([*many(2, 10), *many(1)], idempotency_key="k", **other)
    assert [message.id for message in OutboxMessage.objects.order_by("id")] == first.ids


def test_another_context_is_another_message(acme_sends):
    factories.Template()
    told([("ada@example.com", {"name": "Ada"})], idempotency_key="k")
    told([("ada@example.com", {})], context={"name": "Ada"}, idempotency_key="k")
    with pytest.raises(IdempotencyConflict):
        told([("ada@example.com", {"name": "Grace"})], idempotency_key="k")
    left_out = told([("ada@example.com", {"name": "X"}), "new@example.com"], idempotency_key="k", skip_invalid=True)
    assert (len(left_out), left_out.new, left_out.refused[0].position) == (1, 1, 0)
    assert isinstance(left_out.refused[0].error, IdempotencyConflict)


def test_who_is_given_twice_gets_two_messages_without_a_key_and_one_with_it(acme_sends):
    twice = ["ada@example.com", "grace@example.com", "ADA@EXAMPLE.com"]
    assert len(set(written(twice).ids)) == 3
    with pytest.raises(IdempotencyConflict, match=r"recipients\[2\].*by recipients\[0\]"):
        written(twice, idempotency_key="k")
    messages = written([*twice[:2], twice[0]], idempotency_key="k")
    assert (len(messages), messages.new) == (3, 2)
    assert messages.ids[0] == messages.ids[2]


def test_people_who_share_a_mailbox_get_a_message_each(acme_sends):
    people = [factories.Recipient(email="family@example.com", name=name) for name in ("Ada", "Grace")]
    people += [{"email": "family@example.com", "external_id": key} for key in ("u-1", "u-2")]
    people += [User.objects.create_user(name, email="family@example.com") for name in ("alan", "tony")]
    assert written(people, idempotency_key="k").new == 6
    assert written(people, idempotency_key="k").new == 0


def test_the_same_key_on_another_channel_is_another_broadcast(acme_sends):
    both = factories.Recipient(phone="+12025550188")
    assert written([both], idempotency_key="k").new == 1
    assert BulkNotifier.send_bulk_sms(recipients=[both], message="Closed", idempotency_key="k").new == 1


@pytest.mark.django_db(transaction=True)
def test_racing_calls_with_one_key_store_each_message_once(acme, provider):
    with tenant_context(acme):
        factories.Outbox()

    def call(position: int) -> list[Any]:
        people = many(300)
        random.Random(position).shuffle(people)
        messages = written(people, tenant=acme, idempotency_key="k", batch_size=40)
        return sorted(zip(people, messages.ids, strict=True)), messages.new

    answers = race(8, call)
    assert all(isinstance(answer, tuple) for answer in answers), answers
    assert all(ids == answers[0][0] for ids, _ in answers)
    assert sum(new for _, new in answers) == 300
    with tenant_context(acme):
        assert OutboxMessage.objects.count() == on_ledger().count() == 300


@pytest.mark.django_db(transaction=True)
def test_of_different_racing_calls_with_one_key_one_wins_whole(acme, provider):
    with tenant_context(acme):
        factories.Outbox()
    answers = race(6, lambda n: written(many(50), tenant=acme, idempotency_key="k", message=f"{n}", batch_size=7).new)
    assert [type(answer) for answer in answers if answer != 50] == [IdempotencyConflict] * 5
    with tenant_context(acme):
        assert OutboxMessage.objects.values("body_text").distinct().count() == 1
        assert on_ledger().count() == 50


# More than a page


def test_more_than_a_page_goes_page_by_page_from_any_iterable(acme_sends, small_pages):
    seen = []
    messages = written((address for address in many(35)), progress=lambda so_far: seen.append(len(so_far)))
    assert seen == [10, 20, 30, 35]
    assert [message.to_address for message in messages] == many(35)


def test_a_refused_page_leaves_those_before_it_and_positions_count_through(acme_sends, small_pages):
    with pytest.raises(RecipientsRefused, match=r"recipients\[23\]") as raised:
        written([*many(23), "x", *many(10, 23)], idempotency_key="k")
    assert raised.value.__notes__ == ["the 20 recipients before were accepted"]
    assert OutboxMessage.objects.count() == 20
    assert written(many(33), idempotency_key="k").new == 13
    with pytest.raises(IdempotencyConflict, match=r"recipients\[21\]"):
        written([*many(21, 100), *many(3)], idempotency_key="k", message="other")


def test_in_the_callers_transaction_all_pages_are_one(acme_sends, small_pages):
    with suppress(Undone), transaction.atomic():
        messages = written(many(25))
        raise Undone
    assert not OutboxMessage.objects.exists()
    assert not on_ledger().exists()
    with pytest.raises(OutboxMessage.DoesNotExist):
        list(messages)


def test_whoever_is_read_late_is_read_where_the_caller_is(acme, acme_sends, small_pages):
    schemas = []

    def people():
        for address in many(25):
            schemas.append(connection.schema_name)
            yield address

    with public_context():
        assert len(written(people(), tenant=acme)) == 25
    assert set(schemas) == {"public"}


# How it goes out


def test_low_priority_is_the_default_and_another_may_be_asked_for(acme_sends):
    factories.Event(security=True)
    factories.Template()
    for options, expected in (
        ({}, "bulk"),
        ({"priority": "default"}, "default"),
        ({"priority": "urgent"}, "high"),
        ({"metadata": {"priority": "high"}}, "high"),
    ):
        assert {message.priority for message in written(many(2), **options)} == {expected}
    assert told(many(1), context={"name": "A"})[0].priority == "bulk"
    assert told(many(1), context={"name": "A"}, priority="urgent")[0].priority == "urgent"


@pytest.mark.django_db(transaction=True)
def test_one_bell_rings_once_they_are_stored(acme_sends, valkey, small_pages):
    with transaction.atomic():
        written(many(35))
        assert len(queue_named("bulk")) == 0
    assert len(queue_named("bulk")) == 1


@pytest.mark.django_db(transaction=True)
def test_what_is_kept_for_the_commands_rings_no_bell(acme_sends, valkey, settings):
    settings.NOTIFY_SEND_IMMEDIATELY = False
    messages = written(many(3))
    assert len(queue_named("bulk")) == 0
    assert {row.manual for row in on_ledger(*messages)} == {True}
    assert turn("bulk").total == 0
    assert turn("bulk", manual=True).total == 3


@pytest.mark.django_db(transaction=True)
def test_inline_they_are_sent_when_the_call_returns(acme_sends, settings):
    settings.NOTIFY_DISPATCH_MODE = "inline"
    assert {message.status for message in written(many(5))} == {MessageStatus.SENT}
    assert len(acme_sends.received) == 5


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "call", [lambda at: list(written(many(3), scheduled_at=at)), lambda at: [accepted(scheduled_at=at)]]
)
def test_scheduled_ones_wait_with_one_bell_planned_for_their_time(acme_sends, acme, valkey, call):
    valkey.delete(Schedule.scheduled_jobs_key)
    at = datetime(2100, 1, 1, 12, tzinfo=UTC)
    messages = call(at)
    assert {(message.status, message.scheduled_at) for message in messages} == {("scheduled", at)}
    assert {row.due_at for row in on_ledger(*messages)} == {at}
    queue = messages[0].priority
    assert len(queue_named(queue)) == 0
    ((name, due),) = valkey.zrange(Schedule.scheduled_jobs_key, 0, -1, withscores=True)
    assert due == at.timestamp()
    assert all(part in name.decode() for part in (acme.schema_name, queue))
    valkey.delete(Schedule.scheduled_jobs_key)


def test_a_sender_that_the_caller_names_is_fixed(acme_sends):
    assert {message.from_fixed for message in written(many(2), from_address="hello@acme.test")} == {True}
    assert {message.from_fixed for message in written(many(2))} == {False}
    assert (accepted(from_address="hello@acme.test").from_fixed, accepted().from_fixed) == (True, False)


# Walls


def test_the_same_key_of_another_tenant_is_independent(acme, globex, provider):
    for tenant in (acme, globex):
        with tenant_context(tenant):
            factories.Outbox()
    mine = written(many(5), tenant=acme, idempotency_key="k", message="acme")
    theirs = written(many(5), tenant=globex, idempotency_key="k", message="globex")
    assert (mine.new, theirs.new) == (5, 5)
    for tenant, messages in ((acme, mine), (globex, theirs)):
        with tenant_context(tenant):
            assert {message.body_text for message in OutboxMessage.objects.all()} == {tenant.name}
            assert sorted(OutboxMessage.objects.values_list("pk", flat=True)) == sorted(messages.ids)


def test_messages_are_read_from_their_tenant_wherever_the_thread_is(acme, globex, provider):
    with tenant_context(acme):
        factories.Outbox()
    messages = written(many(3), tenant=acme)
    with tenant_context(globex):
        assert [message.to_address for message in messages] == many(3)
        assert messages[1].to_address == "guest1@example.com"
        assert connection.schema_name == globex.schema_name
        with pytest.raises(WrongTenant):
            messages[1].save()


def test_known_recipients_and_people_of_another_tenant_stay_theirs(acme, globex, provider):
    with tenant_context(globex):
        stranger = factories.Recipient(email="guest0@example.com", name="Stranger")
    user = User.objects.create_user("ada", email="ada@example.com")
    with tenant_context(acme):
        factories.Outbox()
        with pytest.raises(WrongTenant):
            written([stranger])
    messages = written([*many(1), user], tenant=acme)
    assert [(message.recipient_id, message.to_name, message.user_id) for message in messages] == [(None, "", None)] * 2
