"""Writing to many at once: those who were selected, each once, by those who may, and the log knows of it."""

import re
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any
from uuid import uuid4

import pytest
from auditlog.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from notifications.admin import broadcast
from notifications.admin.broadcast import Letter, Result, channels_by_event, open_channels
from notifications.models import Account, MessageStatus, Outbox, OutboxMessage, Recipient
from tenants.context import public_context, tenant_context
from tenants.models import Tenant
from tests import factories
from tests.integration.test_admin import entries, signed_in, staff

LIST = "/admin/notifications/recipient/"
WRITE = f"{LIST}write/"
MAY = "notifications.broadcast_recipient"
VIEW = "notifications.view_recipient"


@pytest.fixture
def people(acme: Tenant, provider: Any) -> list[Recipient]:
    """Three recipients of acme, which can send e-mail; one of them has no address for it."""
    with tenant_context(acme):
        factories.Outbox()
        return [
            factories.Recipient(name="Ada", attributes={"room": "Blue"}),
            factories.Recipient(name="Grace", attributes={"room": "Garden"}),
            factories.Recipient(name="Alan", email="", phone="+12025550142"),
        ]


def letter(people: list[Recipient], **more: Any) -> dict[str, Any]:
    """What the page sends that writes to these people."""
    ids = ",".join(str(recipient.pk) for recipient in people)
    return {"token": str(uuid4()), "recipients": ids, "channel": "email", "subject": "Closed", "text": "Hi", **more}


def by_event(people: list[Recipient], event: str = "booking.confirmed", **more: Any) -> dict[str, Any]:
    return letter(people, event=event, subject="", text="", **more)


def stored(tenant: Tenant) -> list[OutboxMessage]:
    with tenant_context(tenant):
        return list(OutboxMessage.objects.select_related("recipient").order_by("id"))


def logged(tenant: Tenant) -> list[LogEntry]:
    return [
        entry
        for entry in entries(tenant, content_type__model="communicationsettings")
        if (entry.additional_data or {}).get("event") == "broadcast"
    ]


def chosen(client: Client, people: list[Recipient], **more: Any) -> Any:
    """The answer to the action, run for these people."""
    data = {"action": "write_to_them", "_selected_action": [str(recipient.pk) for recipient in people], **more}
    return client.post(LIST, data, follow=True)


# From the list to the messages.


def test_selected_recipients_get_one_message_each_and_the_others_none(acme: Tenant, people: list[Recipient]) -> None:
    client = signed_in(acme)
    with tenant_context(acme):
        other = factories.Recipient(name="Edsger")
    page = chosen(client, people[:2])
    assert "Write to 2 recipients" in page.text
    assert ("Ada, Grace" in page.text, "Edsger" in page.text) == (True, False)
    assert stored(acme) == [], "asking is not doing"
    hidden = dict(re.findall(r'<input type="hidden" name="(token|recipients)" value="([^"]+)"', page.text))
    page = client.post(WRITE, {**letter([]), **hidden}, follow=True)
    assert "Messages to 2 recipients are on their way." in page.text
    messages = stored(acme)
    assert {message.recipient_id for message in messages} == {recipient.pk for recipient in people[:2]}
    assert other.pk not in {message.recipient_id for message in messages}
    assert [(message.priority, message.subject, message.body_text) for message in messages] == [
        ("bulk", "Closed", "Hi")
    ] * 2
    assert {message.related_id for message in messages} == {hidden["token"]}


def test_an_events_template_is_filled_with_each_recipients_attributes_and_name(
    acme: Tenant, people: list[Recipient]
) -> None:
    with tenant_context(acme):
        factories.Template(subject="{{ name }}, {{ room }}", body_text="{{ room }} is yours, {{ name }}")
    signed_in(acme).post(WRITE, by_event(people[:2]))
    with tenant_context(acme):
        factories.turn("bulk")
    messages = stored(acme)
    assert [(message.subject, message.body_text) for message in messages] == [
        ("Ada, Blue", "Blue is yours, Ada"),
        ("Grace, Garden", "Garden is yours, Grace"),
    ]
    assert {(message.priority, message.event_key, message.template_scope) for message in messages} == {
        ("bulk", "booking.confirmed", "tenant")
    }


def test_what_is_written_is_not_rendered(acme: Tenant, people: list[Recipient]) -> None:
    signed_in(acme).post(WRITE, letter(people[:1], text="{{ name }}\r\n{% now %}"))
    (message,) = stored(acme)
    assert message.body_text == "{{ name }}\n{% now %}"


def test_a_doubled_submit_sends_once_and_is_logged_once(acme: Tenant, people: list[Recipient]) -> None:
    client, data = signed_in(acme), letter(people[:2])
    for _ in range(2):
        assert "Messages to 2 recipients are on their way." in client.post(WRITE, data, follow=True).text
    assert len(stored(acme)) == 2
    assert len(logged(acme)) == 1
    client.post(WRITE, letter(people[:2]))
    assert len(stored(acme)) == 4, "another page is another broadcast"


@pytest.mark.django_db(transaction=True)
def test_two_submits_at_once_send_once_and_are_logged_once(provider: Any) -> None:
    acme = Tenant.objects.get(name="acme")
    with tenant_context(acme):
        factories.Outbox()
        people = [factories.Recipient() for _ in range(10)]
        actor = User.objects.get(username="owner@acme.example")
    wanted = Letter(token=uuid4(), channel="email", subject="Closed", text="Hi")

    def submit(_: int) -> tuple[int, int]:
        with tenant_context(acme):
            result = broadcast.broadcast([person.pk for person in people], people, wanted, actor)
        return result.accepted, result.new

    assert sorted(factories.race(3, submit)) == [(10, 0), (10, 0), (10, 10)]
    assert len(stored(acme)) == 10
    assert len(logged(acme)) == 1


def test_a_page_that_was_sent_sends_no_other_words(acme: Tenant, people: list[Recipient]) -> None:
    client, data = signed_in(acme), letter(people[:2])
    client.post(WRITE, data)
    page = client.post(WRITE, {**data, "text": "Something else"}).text
    assert "Nothing was sent: 2 × this page was sent before, with other words" in page
    assert "Something else" in page, "what was written is not lost"
    assert [message.body_text for message in stored(acme)] == ["Hi", "Hi"]


def test_who_cannot_be_written_to_is_counted_by_reason(acme: Tenant, people: list[Recipient]) -> None:
    with tenant_context(acme):
        factories.Event(required_placeholders=["name", "room"])
        factories.Template()
        people += [factories.Recipient(name="Edsger"), factories.Recipient(name="Tony"), factories.Recipient()]
        people[-1].delete()
        people[-1].pk = uuid4()
    page = unescape(signed_in(acme).post(WRITE, by_event(people), follow=True).text)
    assert "Messages to 2 recipients are on their way." in page
    assert (
        "4 recipients got none: 2 × context lacks room, which booking.confirmed requires; "
        "1 × no address for E-mail; 1 × deleted meanwhile." in page
    )
    assert {message.recipient.name for message in stored(acme) if message.recipient} == {"Ada", "Grace"}
    (entry,) = logged(acme)
    assert (entry.additional_data["messages"], entry.additional_data["refused"]) == (2, 4)


def test_a_name_that_nobody_knows_is_missing(acme: Tenant, people: list[Recipient]) -> None:
    with tenant_context(acme):
        factories.Event(required_placeholders=["name"])
        factories.Template()
        nameless = factories.Recipient(name="")
    page = signed_in(acme).post(WRITE, by_event([nameless])).text
    assert "Nothing was sent: 1 × context lacks name" in page
    assert stored(acme) == []
    assert logged(acme) == []


def test_a_muted_template_sends_nothing_and_says_so(acme: Tenant, people: list[Recipient]) -> None:
    with tenant_context(acme):
        factories.Template(muted=True)
    page = signed_in(acme).post(WRITE, by_event(people[:2])).text
    assert "Nothing was sent: 2 × the template is muted." in page
    assert logged(acme) == []


def test_it_goes_out_at_its_time(acme: Tenant, people: list[Recipient]) -> None:
    at = (timezone.now() + timedelta(days=2)).astimezone(UTC).replace(second=0, microsecond=0)
    page = signed_in(acme).post(WRITE, letter(people[:2], send_at=f"{at:%Y-%m-%dT%H:%M}"), follow=True).text
    assert f"Messages to 2 recipients go out at {at:%Y-%m-%d %H:%M}." in page
    assert [(message.status, message.scheduled_at) for message in stored(acme)] == [(MessageStatus.SCHEDULED, at)] * 2
    assert logged(acme)[0].additional_data["scheduled_at"] == at.isoformat()


@pytest.mark.parametrize("at", ["2020-01-01T10:00", "9999-12-31T23:59", "tomorrow"])
def test_a_time_that_cannot_be_meant_is_refused(acme: Tenant, people: list[Recipient], at: str) -> None:
    assert signed_in(acme).post(WRITE, letter(people[:2], send_at=at)).status_code == 200
    assert stored(acme) == []


# Who may, and how many.


def test_it_needs_its_own_permission(acme: Tenant, people: list[Recipient]) -> None:
    for held in ((VIEW, "notifications.change_recipient"), (MAY,)):
        client = signed_in(acme, staff(acme, *held))
        assert "Ada, Grace" not in chosen(client, people[:2]).text
        assert client.post(WRITE, letter(people[:2])).status_code == 403
    assert "Write to them" not in signed_in(acme, staff(acme, VIEW)).get(LIST).text
    assert stored(acme) == []
    client = signed_in(acme, staff(acme, VIEW, MAY))
    assert "Write to them" in client.get(LIST).text
    assert "Ada, Grace" in chosen(client, people[:2]).text
    assert client.post(WRITE, letter(people[:2])).status_code == 302
    assert len(stored(acme)) == 2


def test_reading_the_page_changes_nothing_and_a_token_is_needed(acme: Tenant, people: list[Recipient]) -> None:
    answer = signed_in(acme).get(WRITE, letter(people[:2]))
    assert (answer.status_code, answer.headers["Location"]) == (302, LIST)
    client = Client(enforce_csrf_checks=True, headers={"host": "acme.carillon.test"})
    with tenant_context(acme):
        client.force_login(User.objects.get(username="owner@acme.example"))
    assert client.post(WRITE, letter(people[:2])).status_code == 403
    assert stored(acme) == []


def test_too_many_are_refused_with_what_to_do(
    acme: Tenant, people: list[Recipient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcast, "AT_ONCE", 2)
    client = signed_in(acme)
    said = "Select at most 2 recipients: a larger broadcast will go by segment."
    assert said in chosen(client, people).text
    assert said in chosen(client, people[:1], select_across="1").text
    assert said in client.post(WRITE, letter(people)).text
    assert stored(acme) == []
    assert "Write to 2 recipients" in chosen(client, people[:2]).text


def test_as_many_as_may_be_fit_in_one_request(
    acme: Tenant, people: list[Recipient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcast, "broadcast", lambda wanted, *_: Result(accepted=len(wanted)))
    with tenant_context(acme):
        many = Recipient.objects.bulk_create(
            Recipient(name=f"Guest {number}", phone="+12025550143") for number in range(broadcast.AT_ONCE)
        )
        Recipient.objects.exclude(pk__in=[recipient.pk for recipient in many]).delete()
    client = signed_in(acme)
    assert "Write to 1,000 recipients" in chosen(client, many[:1], select_across="1").text
    assert "Messages to 1,000 recipients are on their way." in client.post(WRITE, letter(many), follow=True).text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text": ""}, "Choose an event, or write a text."),
        ({"subject": ""}, "An e-mail needs a subject."),
        ({"event": "booking.confirmed"}, "Choose an event, or write a subject and a text: not both."),
        ({"event": "sms.only", "subject": "", "text": ""}, "This event has a template for SMS only."),
        ({"event": "nothing.such"}, "Select a valid choice."),
        ({"channel": "voice"}, "Select a valid choice."),
        ({"token": "x"}, "Enter a valid UUID."),
        ({"recipients": "x"}, "Select recipients in their list."),
    ],
)
def test_what_is_wrong_is_said_and_nothing_goes(
    acme: Tenant, people: list[Recipient], given: dict[str, str], said: str
) -> None:
    with tenant_context(acme):
        factories.Outbox(account__kind="sms", address="+12025550123", name="")
        factories.Template()
        factories.Template(event_key="sms.only", channel="sms", subject="")
    answer = signed_in(acme).post(WRITE, letter(people[:2], **given))
    assert answer.status_code == 200
    assert said in unescape(answer.text)
    assert stored(acme) == []


# What is offered.


def test_only_channels_that_somebody_can_send_on_are_offered(acme: Tenant, people: list[Recipient]) -> None:
    with public_context():
        Account.objects.update(is_active=False)
    with tenant_context(acme):
        assert open_channels() == ["email"]
        factories.Outbox(account__kind="sms", address="+12025550123", name="", is_active=False)
        assert open_channels() == ["email"]
    with public_context():
        factories.Outbox(account__kind="whatsapp", address="+12025550123", name="")
    with tenant_context(acme):
        assert open_channels() == ["email", "whatsapp"]
        Outbox.objects.update(is_active=False)
        assert open_channels() == ["whatsapp"]
    with public_context():
        Account.objects.update(is_active=False)
    page = chosen(signed_in(acme), people[:2]).text
    assert "No active outbox can send" in page


def test_events_with_wording_here_or_with_the_platform_are_offered(
    acme: Tenant, globex: Tenant, people: list[Recipient], settings: Any
) -> None:
    with public_context():
        factories.Template(event_key="platforms.own")
        factories.Event(key="code", security=True)
        factories.Template(event_key="code")
    with tenant_context(globex):
        factories.Template(event_key="globex.own")
    with tenant_context(acme):
        factories.Template()
        factories.Template(channel="sms", subject="")
        factories.Template(event_key="off", is_active=False)
        assert channels_by_event() == {"booking.confirmed": {"email", "sms"}, "platforms.own": {"email"}}
        settings.NOTIFY_ALLOW_GLOBAL_TEMPLATE_FALLBACK = False
        assert list(channels_by_event()) == ["booking.confirmed"]
    with public_context():
        assert list(channels_by_event()) == ["platforms.own"]


def test_the_platforms_template_serves_where_the_tenant_has_none(acme: Tenant, people: list[Recipient]) -> None:
    with public_context():
        factories.Template(event_key="platforms.own")
    signed_in(acme).post(WRITE, by_event(people[:1], event="platforms.own"))
    assert [message.template_scope for message in stored(acme)] == ["platform"]


# Walls, and the log.


def test_another_tenants_recipients_are_out_of_reach(acme: Tenant, globex: Tenant, people: list[Recipient]) -> None:
    with tenant_context(globex):
        factories.Outbox(address="hello@globex.test")
        strangers = [factories.Recipient(name="Stranger")]
    client = signed_in(acme)
    assert "Stranger" not in chosen(client, strangers).text
    assert "Nothing was sent: 1 × deleted meanwhile." in client.post(WRITE, letter(strangers)).text
    page = client.post(WRITE, letter([*people[:2], *strangers]), follow=True).text
    assert "1 recipient got none: 1 × deleted meanwhile." in page
    assert len(stored(acme)) == 2
    assert stored(globex) == []
    assert logged(globex) == []


def test_the_log_names_who_wrote_what_to_how_many_and_no_address(acme: Tenant, people: list[Recipient]) -> None:
    data = letter(people)
    signed_in(acme).post(WRITE, data)
    (entry,) = logged(acme)
    assert entry.actor.username == "owner@acme.example"
    assert entry.additional_data == {
        "event": "broadcast",
        "broadcast": data["token"],
        "what": "Closed",
        "channel": "email",
        "messages": 2,
        "refused": 1,
        "scheduled_at": None,
    }
    assert entry.timestamp <= datetime.now(UTC)
    page = signed_in(acme).get("/admin/auditlog/logentry/").text
    assert "broadcast" in page
