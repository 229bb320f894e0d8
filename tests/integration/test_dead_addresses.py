"""An address that does not exist, as its mail server says, gets nothing more; one that is refused otherwise does."""

import pytest

from notifications.models import Suppression
from notifications.services import send
from tenants.context import tenant_context
from tests import factories
from tests.factories import accepted, fresh, turn
from tests.smtp_server import SMTPServer


@pytest.fixture
def server(in_acme):
    """Acme's mail server."""
    with SMTPServer() as server:
        use(server)
        yield server


def use(server):
    """Let the current tenant send over it."""
    settings = {"host": "127.0.0.1", "port": server.port, "use_tls": False}
    factories.Outbox(account=factories.Account(provider="smtp", settings={"smtp": settings}))


def sent_to(address: str) -> str:
    """What becomes of a message to an address."""
    message = accepted(address)
    turn()
    return fresh(message).status


@pytest.mark.parametrize(
    ("step", "reply"),
    [("rcpt", "550 5.1.1 no such user"), ("rcpt", "554 5.1.1 no such user"), ("rcpt", "550 5.1.2 no such host"),
     ("rcpt", "551 5.1.6 moved"), ("rcpt", "556 5.1.10 takes no mail"), ("payload", "550 5.1.1 no such user")],
)  # fmt: skip
def test_what_does_not_exist_is_suppressed_and_the_next_message_stays(server, step, reply):
    server.on(step, reply)
    assert sent_to("Gone@example.com") == "failed"
    found = Suppression.objects.get()
    assert (found.channel, found.address, found.reason, found.note) == (
        "email",
        "gone@example.com",
        "hard_bounce",
        reply,
    )
    assert sent_to("gone@example.com") == "suppressed"
    assert sent_to("grace@example.com") == "sent"
    assert [taken.recipient for taken in server.taken] == ["grace@example.com"]


@pytest.mark.parametrize(
    ("step", "reply"),
    [
        ("rcpt", "550 no such user"),
        ("rcpt", "550 5.7.1 relaying denied"),
        ("rcpt", "550 5.2.2 mailbox full"),
        ("rcpt", "550 5.1.3 bad address"),
        ("rcpt", "550 blocked, see 5.1.1"),
        ("rcpt", "450 4.1.1 try again"),
        ("mail", "550 5.1.1 no such sender"),
        ("payload", "550 no such user"),
    ],
)
def test_what_is_refused_for_another_reason_is_not_held_against_the_address(server, step, reply):
    server.on(step, reply)
    assert sent_to("ada@example.com") in {"failed", "scheduled"}
    assert not Suppression.objects.exists()
    assert sent_to("ada@example.com") == "sent"


def test_two_messages_to_a_dead_address_suppress_it_once(server):
    server.always("rcpt", "550 5.1.1 no such user")
    messages = [accepted("gone@example.com") for _ in range(2)]
    assert turn().failed == 2
    assert {fresh(message).error_class for message in messages} == {"invalid_recipient"}
    assert Suppression.objects.get().address == "gone@example.com"


def test_what_a_server_told_one_tenant_suppresses_nothing_of_anothers(server, globex):
    server.on("rcpt", "550 5.1.1 no such user")
    assert sent_to("ada@example.com") == "failed"
    with tenant_context(globex):
        use(server)
        assert sent_to("ada@example.com") == "sent"


def test_an_opt_out_does_not_hide_that_an_address_does_not_exist(server):
    """Codes pass an opt-out, and would go there for ever."""
    Suppression.objects.create(channel="email", address="gone@example.com", reason="unsubscribed", note="by link")
    factories.Event(security=True)
    factories.Template()
    server.on("rcpt", "550 5.1.1 no such user")
    for expected in ("failed", "suppressed"):
        message = send(
            to="gone@example.com", template_key="booking.confirmed", channel="email", context={"name": "Ada"}
        )
        turn("urgent")
        assert fresh(message).status == expected
    assert Suppression.objects.get().note.startswith("unsubscribed before")
