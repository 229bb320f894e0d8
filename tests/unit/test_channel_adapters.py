"""The registry, and the adapters that need no server."""

import logging
import smtplib
import threading
from dataclasses import replace

import pytest
from django.core import mail
from django.core.mail.backends.base import BaseEmailBackend

from notifications.channels import (
    ADAPTERS,
    Accepted,
    Adapter,
    InvalidSettings,
    Outgoing,
    Rejected,
    Unavailable,
    Uncertain,
    UnknownProvider,
    build,
)
from notifications.channels.email import django as django_adapter
from notifications.channels.fake import Fake
from notifications.channels.pool import Pool

MAIL = Outgoing(
    reference="m-1",
    to="ada@example.com",
    to_name="Ada",
    from_address="hello@acme.test",
    from_name="Acme",
    subject="Your booking",
    text="Hello Ada",
    html="<p>Hello Ada</p>",
)


# The registry


@pytest.mark.parametrize(("channel", "provider"), ADAPTERS)
def test_every_adapter_announces_itself_as_registered(channel, provider):
    assert ADAPTERS[channel, provider].provider == provider


@pytest.mark.parametrize(("channel", "provider"), ADAPTERS)
def test_every_adapter_names_a_setting_it_does_not_know(channel, provider):
    with pytest.raises(InvalidSettings) as raised:
        build(channel, provider, {"surprise": 1})
    assert raised.value.field == "surprise"


def test_an_unknown_provider_is_told_which_there_are():
    with pytest.raises(UnknownProvider, match=r"'pigeon' for channel 'email'.*console, django, smtp"):
        build("email", "pigeon", {})
    with pytest.raises(UnknownProvider, match=r"the channels are: email, sms, webhook"):
        build("smoke", "signal", {})


# The console


def test_the_console_logs_one_block_and_accepts(caplog):
    with caplog.at_level(logging.INFO, "notifications.console"):
        accepted = build("sms", "console", {}).send(Outgoing(reference="m-1", to="+4930901820", text="Hi\nthere"))
    assert accepted.provider_id == "m-1"
    assert [record.getMessage() for record in caplog.records] == [
        "Message: m-1\nTo: +4930901820\n  | Hi\n  | there",
    ]


def test_a_message_cannot_forge_lines_of_the_log_or_drive_the_terminal(caplog):
    with caplog.at_level(logging.INFO, "notifications.console"):
        build("email", "console", {}).send(replace(MAIL, subject="a\nTo: v@z.io\x1b[2J", text="b\x1b[2J\x85To: v@z.io"))
    lines = caplog.records[0].getMessage().split("\n")
    assert [line for line in lines if line.startswith("To:")] == ["To: Ada <ada@example.com>"]
    assert all(line.isprintable() for line in lines)


# The fake


def test_the_fake_plays_its_script_and_then_accepts():
    def custom(message: Outgoing) -> Accepted:
        return Accepted(provider_id=message.subject)

    fake = Fake()
    fake.script(MAIL.to, Unavailable("later"), Uncertain("perhaps"), Accepted(provider_id="x"), custom)
    for failure in (Unavailable, Uncertain):
        with pytest.raises(failure):
            fake.send(MAIL)
    assert [fake.send(MAIL).provider_id for _ in range(3)] == ["x", "Your booking", "fake-m-1"]
    assert fake.send(replace(MAIL, to="grace@example.com")).provider_id == "fake-m-1"
    assert (len(fake.received), len(fake.accepted)) == (6, 4)


def test_the_fake_counts_what_runs_at_once():
    meeting = threading.Barrier(3)

    def wait(message: Outgoing) -> Accepted:
        meeting.wait(5)
        return Accepted()

    fake = Fake()
    fake.script(MAIL.to, wait, wait, wait)
    threads = [threading.Thread(target=fake.send, args=(MAIL,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fake.most_at_once == 3


# The pool


class Item:
    def __init__(self) -> None:
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def test_the_pool_lends_the_warmest_item():
    pool = Pool(Item, 3)
    with pool.lend() as first:
        pass
    with pool.lend() as second:
        assert second is first


def test_a_lent_item_is_closed_when_it_comes_back_after_closing():
    pool = Pool(Item, 2)
    with pool.lend() as lent:
        pool.close()
        assert lent.closed == 0
    assert lent.closed == 1


# The platform's own backend


class Backend(BaseEmailBackend):
    """A backend whose next outcome a test sets."""

    outcome: Exception | int = 1
    refuses: Exception | None = None
    opened = closed = 0

    def open(self) -> bool:
        type(self).opened += 1
        if self.refuses:
            raise self.refuses
        return True

    def close(self) -> None:
        type(self).closed += 1

    def send_messages(self, messages) -> int:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def backend(monkeypatch) -> type[Backend]:
    class Fresh(Backend):
        pass

    class Mailers(dict[str, BaseEmailBackend]):
        def __missing__(self, alias: str) -> BaseEmailBackend:
            return Fresh(alias=alias)

    monkeypatch.setattr(django_adapter, "mailers", Mailers())
    return Fresh


def test_a_mail_goes_through_the_platforms_backend(monkeypatch):
    monkeypatch.setattr(mail, "outbox", [], raising=False)
    adapter = build("email", "django", {})
    accepted = adapter.send(replace(MAIL, headers={"X-Booking": "42"}))
    adapter.close()
    (sent,) = mail.outbox
    assert accepted == Accepted(provider_id="<m-1@acme.test>")
    assert (sent.to, sent.from_email) == (["Ada <ada@example.com>"], "Acme <hello@acme.test>")
    assert sent.message()["X-Booking"] == "42"
    assert sent.body_contains("Hello Ada")


def test_the_platforms_backend_is_for_the_platform():
    assert ADAPTERS["email", "django"].platform_only
    assert not ADAPTERS["email", "smtp"].platform_only


def test_a_kept_backend_is_opened_once(backend):
    adapter = build("email", "django", {})
    adapter.send(MAIL)
    adapter.send(MAIL)
    adapter.close()
    assert (backend.opened, backend.closed) == (1, 1)


@pytest.mark.parametrize(
    ("error", "outcome", "error_class"),
    [
        (smtplib.SMTPRecipientsRefused({"a@b.io": (550, b"5.1.1 unknown")}), Rejected, "invalid_recipient"),
        (smtplib.SMTPRecipientsRefused({"a@b.io": (450, b"4.2.0 later")}), Unavailable, "transient"),
        (smtplib.SMTPSenderRefused(421, b"4.7.0 later", "a@b.io"), Unavailable, "throttled"),
        (smtplib.SMTPDataError(554, b"5.6.0 spam"), Rejected, "permanent"),
        (ValueError("bad header"), Rejected, "permanent"),
        (ConnectionRefusedError(), Unavailable, "transient"),
        (smtplib.SMTPServerDisconnected("gone"), Uncertain, "transient"),
        (TimeoutError(), Uncertain, "transient"),
        (KeyError("what a backend may raise"), Uncertain, "transient"),
        (0, Unavailable, "transient"),
    ],
)
def test_what_a_backend_raises_has_one_meaning(backend, error, outcome, error_class):
    backend.outcome = error
    adapter: Adapter = build("email", "django", {})
    with pytest.raises(outcome) as raised:
        adapter.send(MAIL)
    assert raised.value.error_class == error_class
    backend.outcome = 1
    adapter.send(MAIL)


@pytest.mark.parametrize(
    ("error", "error_class"),
    [(smtplib.SMTPAuthenticationError(535, b"no"), "auth"), (ConnectionRefusedError(), "transient")],
)
def test_a_backend_that_cannot_connect_is_unavailable(backend, error, error_class):
    backend.refuses = error
    with pytest.raises(Unavailable) as raised:
        build("email", "django", {}).send(MAIL)
    assert raised.value.error_class == error_class


def test_an_injection_does_not_reach_the_backend(backend):
    with pytest.raises(Rejected):
        build("email", "django", {}).send(replace(MAIL, subject="a\r\nBcc: v@z.io"))
    assert backend.opened == 0


def test_a_mailer_that_is_not_set_up_is_named():
    with pytest.raises(InvalidSettings, match="mailer"):
        build("email", "django", {"mailer": "nowhere"})
