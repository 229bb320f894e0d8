"""Handlers: the platform's own functions hand over in a provider's place, inside the tenant."""

import asyncio

import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import ValidationError
from django.db import connection

from notifications import handlers
from notifications.channels import Rejected
from notifications.exceptions import CommunicationError, HandlerNotAllowed
from notifications.models import Outbox, OutboxMessage
from notifications.services import register_handler
from tests import factories
from tests.factories import accepted, fresh, on_ledger, turn

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def register(monkeypatch):
    """Registers a function under the name `gateway`, for one test."""
    monkeypatch.setattr(handlers, "_registered", {})

    def make(function):
        register_handler("gateway")(function)
        return factories.Outbox(handler="gateway", address="gateway@acme.test")

    return make


ANSWERS = [
    # what the handler does, then the message's status, outcome of the attempt, what it says
    (lambda _: True, "sent", "accepted", ""),
    (lambda message: message.mark_sent(message_id="gw-17") or True, "sent", "accepted", ""),
    (lambda message: message.mark_sent(message_id="gw-17"), "sent", "accepted", ""),
    (lambda _: False, "scheduled", "unavailable", "the handler did not take the message"),
    (lambda message: message.mark_failed("line busy"), "scheduled", "unavailable", "line busy"),
    (lambda message: message.mark_failed("line busy") or True, "scheduled", "unavailable", "line busy"),
    (lambda _: {}["missing"], "uncertain", "uncertain", "the handler broke: KeyError"),
]


@pytest.mark.parametrize(("handler", "status", "outcome", "error"), ANSWERS)
def test_what_a_handler_marks_or_returns_becomes_of_the_message(
    acme, in_acme, provider, register, handler, status, outcome, error
):
    register(handler)
    message = accepted()
    turn()
    stored, attempt = fresh(message), fresh(message).attempts.get()
    assert (stored.status, attempt.outcome, attempt.error) == (status, outcome, error)
    assert attempt.provider == "handler"
    assert provider.received == []


def test_the_providers_own_id_is_kept(acme, in_acme, register):
    register(lambda message: message.mark_sent(message_id="gw-17"))
    message = accepted()
    turn()
    assert fresh(message).external_id == "gw-17"


def test_what_a_handler_says_will_never_be_taken_fails(acme, in_acme, register):
    def refuse(_):
        raise Rejected("no such line", error_class="invalid_recipient")

    register(refuse)
    message = accepted()
    turn()
    assert (fresh(message).status, fresh(message).error_class) == ("failed", "invalid_recipient")
    assert not on_ledger().exists()


def test_a_handler_that_had_marked_a_message_sent_before_it_broke_has_sent_it(acme, in_acme, register):
    def send_and_break(message):
        message.mark_sending()
        message.mark_sent()
        raise RuntimeError("after the fact")

    register(send_and_break)
    message = accepted()
    turn()
    assert fresh(message).status == "sent"


def test_a_handler_gets_the_rendered_message_its_account_and_its_tenants_rows(acme, in_acme, register):
    seen = []

    def look(message):
        seen.append(
            (message.status, message.subject, message.account.name, Outbox.objects.count(), connection.schema_name)
        )
        return True

    register(look)
    factories.Event()
    factories.Template()
    accepted(template_key="booking.confirmed", context={"name": "Ada"}, subject=None, body_text=None)
    turn()
    assert seen == [("sending", "Booked, Ada", Outbox.objects.get().account.name, 1, acme.schema_name)]


def test_coroutines_of_many_messages_run_side_by_side_in_their_tenant(acme, in_acme, register):
    """Each waits until all have begun: one after the other, none would ever end."""
    number = 8
    begun, everybody = [], asyncio.Event()

    async def together(message):
        begun.append(await sync_to_async(lambda: (connection.schema_name, OutboxMessage.objects.count()))())
        if len(begun) == number:
            everybody.set()
        await everybody.wait()
        return True

    register(together)
    messages = [accepted(f"ada{n}@example.com") for n in range(number)]
    assert turn().sent == number
    assert {fresh(message).status for message in messages} == {"sent"}
    assert begun == [(acme.schema_name, number)] * number


def test_a_coroutine_that_takes_too_long_leaves_its_message_uncertain_and_the_others_alone(
    acme, in_acme, register, settings
):
    settings.NOTIFY_LOCK_TIMEOUT_SECONDS = 1

    async def stall_for_ada(message):
        if message.to_address == "ada@example.com":
            await asyncio.sleep(30)
        return True

    register(stall_for_ada)
    slow, quick = accepted("ada@example.com"), accepted("bob@example.com")
    turn()
    assert (fresh(slow).status, fresh(quick).status) == ("uncertain", "sent")


def test_a_handler_that_leaves_its_tenants_schema_is_brought_back_and_said(acme, globex, in_acme, register, caplog):
    def wander(message):
        connection.set_tenant(globex)
        return True

    register(wander)
    messages = [accepted(f"ada{number}@example.com") for number in range(3)]
    turn()
    assert [fresh(message).status for message in messages] == ["sent"] * 3
    assert "left its tenant's schema" in caplog.text


def test_a_limit_holds_for_a_handler_too(acme, in_acme, register):
    calls = []
    outbox = register(lambda message: calls.append(message) or True)
    outbox.rate_limit = 2
    outbox.save()
    for number in range(5):
        accepted(f"ada{number}@example.com")
    turn()
    assert len(calls) == 2


def test_a_handler_that_is_no_longer_allowed_is_not_called_and_its_messages_wait(acme, in_acme, register, monkeypatch):
    calls = []
    register(calls.append)
    monkeypatch.setattr(handlers, "_registered", {})
    message = accepted()
    turn()
    assert calls == []
    assert fresh(message).status == "scheduled"
    assert "'gateway' is not registered" in fresh(message).deferral_reason


def test_a_path_on_the_operators_list_is_a_handler_and_any_other_is_refused(in_acme, settings):
    settings.NOTIFY_HANDLER_ALLOWLIST = ["tests.toys.take_it", "tests.toys.missing"]
    factories.Outbox(handler="tests.toys.take_it")
    with pytest.raises(ValidationError, match="not registered"):
        factories.Outbox(handler="os.system")
    with pytest.raises(HandlerNotAllowed, match="cannot be imported"):
        handlers.handler_named("tests.toys.missing")
    with pytest.raises(HandlerNotAllowed, match="is not registered"):
        handlers.handler_named("os.system")


def test_a_name_belongs_to_one_function(register):
    register_handler("gateway")(bool)
    with pytest.raises(ValueError, match="registered already"):
        register_handler("gateway")(str)


def test_only_what_is_being_handed_over_can_be_marked(acme, in_acme, provider):
    factories.Outbox()
    message = accepted()
    with pytest.raises(CommunicationError, match="is pending: only a handler"):
        message.mark_sent()
