"""The SMTP adapter against a real socket: the bytes on the wire, and every fault a mail server can show."""

import email
import email.policy
import ipaddress
import re
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from notifications.channels import Accepted, Adapter, Failure, Outgoing, Rejected, Unavailable, Uncertain, build
from notifications.channels.base import InvalidSettings
from notifications.channels.email import session
from notifications.channels.email.mime import to_wire
from tests.smtp_server import DROP, STALL, SMTPServer, server_tls

LOOPBACK = [ipaddress.ip_network("127.0.0.0/8")]
PASSWORD = "correct-horse-7"
MAIL = Outgoing(
    reference="0192f0c1-0000-7000-8000-000000000001",
    to="ada@example.com",
    to_name="Ada",
    from_address="hello@acme.test",
    from_name="Acme",
    subject="Your booking",
    text="Hello Ada",
    html="<p>Hello Ada</p>",
)


@pytest.fixture
def server() -> Iterator[SMTPServer]:
    with SMTPServer() as server:
        yield server


@pytest.fixture
def connect(request):
    """Build adapters that are closed when the test ends."""

    def connect_to(server: SMTPServer, host: str = "127.0.0.1", **settings: Any) -> Adapter:
        wanted = {"host": host, "port": server.port, "use_tls": False, "timeout": 2, "data_timeout": 2}
        adapter = build("email", "smtp", {**wanted, **settings}, allowed_networks=LOOPBACK)
        request.addfinalizer(adapter.close)
        return adapter

    return connect_to


def parsed(server: SMTPServer, position: int = -1):
    return email.message_from_bytes(server.taken[position].content, policy=email.policy.default)


def failure_of(adapter: Adapter, message: Outgoing = MAIL) -> Failure:
    with pytest.raises(Failure) as raised:
        adapter.send(message)
    return raised.value


# The mail that is sent


def test_a_mail_arrives_with_both_bodies_and_the_headers_of_a_machine(server, connect):
    accepted = connect(server).send(replace(MAIL, reply_to="desk@acme.test", headers={"X-Booking": "42"}))
    mail = parsed(server)
    assert accepted == Accepted(f"<{MAIL.reference}@acme.test>", "250 2.0.0 queued as TEST")
    assert (server.taken[0].sender, server.taken[0].recipient) == ("hello@acme.test", "ada@example.com")
    assert mail["From"] == "Acme <hello@acme.test>"
    assert mail["To"] == "Ada <ada@example.com>"
    assert mail["Reply-To"] == "desk@acme.test"
    assert mail["Subject"] == "Your booking"
    assert mail["X-Booking"] == "42"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["Date"].datetime.tzinfo
    assert mail.get_body(("plain",)).get_content() == "Hello Ada\r\n"
    assert mail.get_body(("html",)).get_content() == "<p>Hello Ada</p>\r\n"


def test_the_message_id_is_the_same_on_every_attempt(server, connect):
    server.on("payload", "451 4.3.0 try later")
    adapter = connect(server)
    failure_of(adapter)
    adapter.send(MAIL)
    adapter.send(replace(MAIL, message_id="<given@acme.test>"))
    assert bytes(server.received[0]).count(f"Message-ID: <{MAIL.reference}@acme.test>".encode()) == 2
    assert parsed(server)["Message-ID"] == "<given@acme.test>"


def test_text_beyond_ascii_arrives_as_written_on_a_7_bit_wire(server, connect):
    text = "سلام دنیا 🎉 — ½\n.hidden dot\n" + "ü" * 2000
    connect(server).send(replace(MAIL, subject="یادآوری نوبت 🎉", from_name="نوبت", text=text, html=""))
    mail = parsed(server)
    assert server.taken[0].raw.isascii()
    assert max(map(len, server.taken[0].raw.split(b"\r\n"))) <= 998
    assert (mail["Subject"], mail["From"].addresses[0].display_name) == ("یادآوری نوبت 🎉", "نوبت")
    assert mail.get_content().replace("\r\n", "\n") == text + "\n"


def test_a_short_text_beyond_ascii_needs_no_8_bit_server(server, connect):
    connect(server).send(replace(MAIL, text="Grüße", html="<p>Grüße</p>"))
    assert server.taken[0].raw.isascii()
    assert parsed(server).get_body(("plain",)).get_content() == "Grüße\r\n"


def test_a_long_unsubscribe_link_is_not_encoded(server, connect):
    link = f"<https://acme.example.com/u/{'a' * 200}>, <mailto:u@acme.example.com?subject={'b' * 60}>"
    connect(server).send(replace(MAIL, service_headers={"List-Unsubscribe": link}))
    head = re.sub(rb"\r\n (?! )", b" ", server.taken[0].content.partition(b"\r\n\r\n")[0])
    assert f"List-Unsubscribe: {link}".encode() in head.split(b"\r\n")


def test_a_domain_in_another_script_goes_out_as_a_labels(server, connect):
    connect(server).send(replace(MAIL, to="ada@münchen.example", to_name=""))
    assert server.taken[0].recipient == "ada@xn--mnchen-3ya.example"
    assert parsed(server)["To"] == "ada@xn--mnchen-3ya.example"


def test_the_size_is_told_where_the_server_asks_for_it(connect):
    with SMTPServer(features=["SIZE 1000000"]) as server:
        connect(server).send(MAIL)
    told = int(next(line for line in server.commands if line.startswith("mail")).partition("size=")[2])
    assert told == len(server.taken[0].raw) + len(b".\r\n")


# Injection


@pytest.mark.parametrize(
    "change",
    [
        {"subject": "Hi\r\nBcc: v@z.io"},
        {"subject": "Hi\nBcc: v@z.io"},
        {"subject": "Hi\rBcc: v@z.io"},
        {"subject": "Hi\x00"},
        {"subject": "Hi\u2028Bcc: v@z.io"},
        {"from_name": "Acme\r\nBcc: v@z.io"},
        {"to_name": "Ada\nBcc: v@z.io"},
        {"to_name": "=?utf-8?q?a=0d=0aBcc:_v@z.io?="},
        {"headers": {"X-T": "y\r\nBcc: v@z.io"}},
        {"headers": {"X-T: y\r\nBcc": "v@z.io"}},
        {"headers": {"X-T: y\nBcc": "v@z.io"}},
        {"headers": {"From": "ceo@bank.test"}},
        {"headers": {"to": "v@z.io"}},
        {"headers": {"Bcc": "v@z.io"}},
        {"headers": {"Content-Type": "text/html"}},
        {"headers": {"List-Unsubscribe": "<https://evil.test>"}},
        {"service_headers": {"Bcc": "v@z.io"}},
        {"service_headers": {"List-Unsubscribe": "<https://a.test>\r\nBcc: v@z.io"}},
        {"message_id": "<a@b.io>\r\nBcc: v@z.io"},
        {"reference": "a b>"},
        {"to": "a@y.io, v@z.io"},
        {"to": "a@y.io v@z.io"},
        {"to": '"b@y.io" <v@z.io>'},
        {"to": "a@y.io\r\nRCPT TO:<v@z.io>"},
        {"to": "a@y.io> SIZE=1\r\nDATA"},
        {"to": "jürgen@y.io"},
        {"to": ""},
        {"from_address": "hello@acme.test\r\n"},
        {"from_address": ""},
        {"reply_to": "a@y.io, v@z.io"},
        {"text": "lone surrogate \ud800"},
    ],
)
def test_injection_is_refused_before_a_byte_is_sent(server, connect, change):
    adapter = connect(server)
    failure = failure_of(adapter, replace(MAIL, **change))
    assert isinstance(failure, Rejected)
    assert failure.error_class == "permanent"
    assert server.connections == 0


def test_an_encoded_line_break_in_a_subject_stays_encoded(server, connect):
    connect(server).send(replace(MAIL, subject="=?utf-8?q?a=0d=0aBcc:_v@z.io?= tail"))
    head = server.taken[0].raw.partition(b"\r\n\r\n")[0]
    assert not re.search(rb"(?im)^bcc:", head)
    assert server.taken[0].recipient == "ada@example.com"


SMUGGLED = b"MAIL FROM:<ceo@bank.test>"


@pytest.mark.parametrize(
    "end",
    ["\n.\n", "\n.\r\n", "\r.\r", "\r.\r\n", "\r\n.\r", "\r\n.\n", "\r\n.\r\n", "\r\n\x00.\r\n"],
    ids=repr,
)
@pytest.mark.parametrize("part", ["text", "html"])
def test_no_body_ends_the_mail_early(server, connect, end, part):
    body = f"before{end}{SMUGGLED.decode()}{end}RCPT TO:<v@z.io>{end}DATA{end}after"
    adapter = connect(server)
    adapter.send(replace(MAIL, **{part: body}))
    adapter.send(MAIL)
    raw = server.taken[0].raw
    assert len(server.taken) == 2
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)|\x00", raw)
    assert not re.search(rb"\r\n\.(?!\.)", b"\r\n" + raw)
    assert SMUGGLED in raw
    assert not any("bank.test" in command for command in server.commands)


@pytest.mark.parametrize(
    "end", [b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\r\n.\n", b"\r\n.\r\n", b"\r\n\0.\r\n"]
)
def test_whatever_the_bytes_are_only_the_last_line_is_a_dot(end):
    wire = to_wire(b"." + end + b"a" + end + b"b")
    assert wire.endswith(b"b\r\n.\r\n")
    assert wire.startswith(b"..\r\n..\r\na")
    assert wire.count(b"\r\n.\r\n") == 1
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)|\0", wire)


def test_a_body_of_dots_arrives_as_dots(server, connect):
    connect(server).send(replace(MAIL, text=".\n..\n.a", html=""))
    assert parsed(server).get_content() == ".\r\n..\r\n.a\r\n"


# Refusals (fault rows 18 to 20)


@pytest.mark.parametrize(
    ("step", "reply", "outcome", "error_class"),
    [
        ("mail", "421 4.7.0 closing", Unavailable, "throttled"),
        ("mail", "451 4.3.0 try later", Unavailable, "transient"),
        ("rcpt", "450 4.2.0 greylisted", Unavailable, "transient"),
        ("rcpt", "451 4.3.0 try later", Unavailable, "transient"),
        ("rcpt", "452 4.2.2 full", Unavailable, "transient"),
        ("data", "454 4.7.0 slow down", Unavailable, "throttled"),
        ("payload", "421 4.3.2 closing", Unavailable, "throttled"),
        ("payload", "451 4.3.0 try later", Unavailable, "transient"),
        ("rcpt", "550 5.1.1 no such user", Rejected, "invalid_recipient"),
        ("rcpt", "550 no such user", Rejected, "invalid_recipient"),
        ("rcpt", "551 5.1.6 moved", Rejected, "invalid_recipient"),
        ("rcpt", "553 5.1.3 bad address", Rejected, "invalid_recipient"),
        ("rcpt", "554 5.1.1 no such user", Rejected, "invalid_recipient"),
        ("rcpt", "550 5.7.1 relaying denied", Rejected, "permanent"),
        ("rcpt", "552 5.2.2 mailbox full", Rejected, "permanent"),
        ("rcpt", "554 5.7.1 spam from 185.1.1.1", Rejected, "permanent"),
        ("rcpt", "554 blocked, see 5.1.1.1", Rejected, "permanent"),
        ("mail", "550 5.1.8 bad sender", Rejected, "permanent"),
        ("mail", "530 5.7.0 authentication required", Unavailable, "auth"),
        ("data", "554 5.5.1 no valid recipients", Rejected, "permanent"),
        ("payload", "550 5.7.1 refused", Rejected, "permanent"),
        ("payload", "552 5.3.4 too big", Rejected, "permanent"),
        ("payload", "554 5.6.0 spam", Rejected, "permanent"),
        ("mail", "199 nonsense", Unavailable, "transient"),
        ("rcpt", "nonsense", Unavailable, "transient"),
        ("payload", "nonsense", Uncertain, "transient"),
        ("payload", "354 go on", Uncertain, "transient"),
    ],
)
def test_each_refusal_has_one_meaning(server, connect, step, reply, outcome, error_class):
    server.on(step, reply)
    adapter = connect(server)
    failure = failure_of(adapter)
    assert (type(failure), failure.error_class) == (outcome, error_class)
    if reply[:3].isdigit() and reply[0] in "45":
        assert str(failure) == reply
        assert failure.code == reply[:3]
        assert getattr(failure, "account_wide", False) == (error_class in {"throttled", "auth"})
    assert adapter.send(MAIL).response == "250 2.0.0 queued as TEST"


def test_one_refused_recipient_does_not_touch_the_next_on_the_same_connection(server, connect):
    server.on("rcpt", "250 ok", "550 5.1.1 no such user", "250 ok")
    adapter = connect(server)
    adapter.send(MAIL)
    failure_of(adapter, replace(MAIL, to="gone@example.com"))
    adapter.send(replace(MAIL, to="grace@example.com"))
    assert [taken.recipient for taken in server.taken] == ["ada@example.com", "grace@example.com"]
    assert server.connections == 1
    assert server.commands.count("rset") == 1


def test_a_reply_is_quoted_short_and_printable(server, connect):
    server.on("rcpt", "550-5.1.1 first\r\n550 \x1b[31m\x07" + "x" * 500)
    text = str(failure_of(connect(server)))
    assert text.startswith("550 5.1.1 first ")
    assert text.isprintable()
    assert len(text) <= 204


@pytest.mark.parametrize(
    ("reply", "error_class"),
    [
        ("535 5.7.8 bad secret-banner", "auth"),
        ("534 5.7.9 use something else", "auth"),
        ("530 5.7.0 must begin TLS", "auth"),
        ("454 4.7.0 later", "throttled"),
        ("421 4.7.0 later", "throttled"),
    ],
)
def test_a_refused_login_holds_the_account_and_keeps_the_password(connect, reply, error_class):
    with SMTPServer(features=["AUTH PLAIN LOGIN"]) as server:
        server.always("auth", reply)
        adapter = connect(server, username="acme", password=PASSWORD)
        failure = failure_of(adapter)
    assert (type(failure), failure.error_class) == (Unavailable, error_class)
    assert "secret-banner" not in str(failure)
    shown = "".join(traceback.TracebackException.from_exception(failure, capture_locals=True).format())
    assert PASSWORD not in shown + repr(failure) + repr(adapter)
    assert failure.__context__ is None
    assert not server.taken


def test_a_server_without_logins_cannot_be_logged_in_to(server, connect):
    failure = failure_of(connect(server, username="acme", password=PASSWORD))
    assert (type(failure), failure.error_class) == (Unavailable, "auth")
    assert PASSWORD.encode() not in b"".join(server.received)


def test_a_password_never_crosses_a_foreign_network_in_clear(connect, monkeypatch):
    monkeypatch.setattr(session.Session, "_vouched_for", lambda _: False)
    with SMTPServer(features=["AUTH PLAIN LOGIN"]) as server:
        failure = failure_of(connect(server, username="acme", password=PASSWORD))
    assert (str(failure), failure.error_class) == (session.CLEAR_PASSWORD, "auth")
    assert b"AUTH" not in b"".join(server.received).upper().replace(b"AUTH PLAIN LOGIN", b"")


# Connecting (fault row 21)


def test_a_closed_port_is_unavailable(server, connect):
    adapter = connect(server)
    server.__exit__()
    failure = failure_of(adapter)
    assert (type(failure), str(failure)) == (Unavailable, session.UNREACHABLE)
    assert failure.account_wide


def test_a_name_that_nobody_knows_counts_against_the_account(connect, server, monkeypatch):
    def getaddrinfo(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    failure = failure_of(connect(server, "mail.carillon.invalid", port=587))
    assert (str(failure), failure.account_wide) == (session.NOT_FOUND, True)


@pytest.mark.parametrize(
    "banner", [STALL, DROP, "554 5.7.1 go away secret-banner", "SSH-2.0-secret-banner", "x" * 200_000]
)
def test_a_banner_that_is_none_tells_nothing(server, connect, banner):
    server.on("banner", banner)
    started = time.monotonic()
    failure = failure_of(connect(server, timeout=0.3))
    assert (type(failure), str(failure)) == (Unavailable, session.UNREACHABLE)
    assert time.monotonic() - started < 1.5
    assert not server.taken


def test_a_banner_of_421_throttles(server, connect):
    server.on("banner", "421 4.7.0 secret-banner")
    failure = failure_of(connect(server))
    assert (type(failure), failure.error_class, str(failure)) == (Unavailable, "throttled", session.THROTTLED)


def test_a_reply_that_trickles_in_is_cut_off(connect):
    """A server of a tenant's choice must not hold a sender by sending a byte now and then."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        done = threading.Event()

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection:
                for _ in range(60):
                    if done.wait(0.05):
                        return
                    try:
                        connection.sendall(b"2")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        settings = {"host": "127.0.0.1", "port": listener.getsockname()[1], "use_tls": False, "timeout": 0.4}
        started = time.monotonic()
        failure = failure_of(build("email", "smtp", settings, allowed_networks=LOOPBACK))
        done.set()
        thread.join()
    assert isinstance(failure, Unavailable)
    assert time.monotonic() - started < 1.5


def test_an_endless_reply_is_cut_off(server, connect):
    server.on("ehlo", "250-x\r\n" * 50_000 + "250 x")
    assert isinstance(failure_of(connect(server)), Unavailable)


def test_a_line_without_end_is_cut_off(connect):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)

        def flood() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                while True:
                    connection.sendall(b"2" * 65536)

        thread = threading.Thread(target=flood, daemon=True)
        thread.start()
        settings = {"host": "127.0.0.1", "port": listener.getsockname()[1], "use_tls": False, "timeout": 3}
        started = time.monotonic()
        failure = failure_of(build("email", "smtp", settings, allowed_networks=LOOPBACK))
        thread.join()
    assert isinstance(failure, Unavailable)
    assert time.monotonic() - started < 1.5


@pytest.mark.parametrize("reply", ["454 4.7.0 no TLS now", "501 5.5.4 no", STALL, DROP])
def test_tls_that_is_refused_is_never_replaced_by_clear_text(connect, tmp_path, reply):
    tls, _ = server_tls(tmp_path, "127.0.0.1")
    with SMTPServer(tls=tls) as server:
        server.always("starttls", reply)
        failure = failure_of(connect(server, use_tls=True, timeout=0.3))
    assert isinstance(failure, Unavailable)
    assert failure.error_class == ("throttled" if reply.startswith("454") else "transient")
    assert failure.account_wide
    assert not any(command.startswith(("mail", "auth")) for command in server.commands)


def test_tls_that_is_not_offered_is_never_replaced_by_clear_text(server, connect):
    failure = failure_of(connect(server, use_tls=True, username="acme", password=PASSWORD))
    assert (type(failure), str(failure)) == (Unavailable, session.CLEAR_TEXT)
    assert failure.account_wide
    assert not any(command.startswith(("mail", "auth")) for command in server.commands)


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "tls from the start"])
def test_a_certificate_nobody_vouches_for_is_refused(connect, tmp_path, implicit):
    tls, _ = server_tls(tmp_path, "127.0.0.1")
    with SMTPServer(tls=tls, implicit_tls=implicit) as server:
        failure = failure_of(connect(server, use_tls=not implicit, use_ssl=implicit))
    assert (type(failure), str(failure)) == (Unavailable, session.BAD_TLS)
    assert failure.account_wide
    assert not any(command.startswith("mail") for command in server.commands)


@pytest.fixture
def named(monkeypatch):
    """Make mail.carillon.test resolve to loopback."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        return resolve("127.0.0.1" if host == "mail.carillon.test." else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return "mail.carillon.test"


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "tls from the start"])
def test_tls_checks_the_name_while_the_socket_goes_to_the_checked_address(
    connect, tmp_path, monkeypatch, named, implicit
):
    tls, certificate = server_tls(tmp_path, named)
    asked = []
    tls.sni_callback = lambda _socket, name, _context: asked.append(name)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with SMTPServer(tls=tls, implicit_tls=implicit, features=["AUTH PLAIN"]) as server:
        settings = {"use_tls": not implicit, "use_ssl": implicit, "username": "acme", "password": PASSWORD}
        adapter = connect(server, named, **settings)
        adapter.send(MAIL)
        adapter.send(MAIL)
        adapter.close()
    assert len(server.taken) == 2
    assert server.connections == 1
    assert asked == [named]


def test_a_certificate_for_another_name_is_refused(connect, tmp_path, monkeypatch, named):
    tls, certificate = server_tls(tmp_path, "other.carillon.test", "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with SMTPServer(tls=tls) as server:
        failure = failure_of(connect(server, named, use_tls=True))
    assert (type(failure), str(failure)) == (Unavailable, session.BAD_TLS)
    assert not server.taken


def test_words_slipped_in_before_tls_are_not_taken_for_replies(connect, tmp_path, monkeypatch, named):
    tls, certificate = server_tls(tmp_path, named)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with SMTPServer(tls=tls) as server:
        server.on("starttls", "220 go on\r\n250-injected\r\n250 AUTH PLAIN")
        failure = failure_of(connect(server, named, use_tls=True))
    assert (type(failure), str(failure)) == (Unavailable, session.BAD_TLS)
    assert failure.account_wide
    assert [command.split()[0] for command in server.commands] == ["ehlo", "STARTTLS"]


def test_a_private_address_is_rejected_and_not_told(connect, server):
    settings = {"host": "127.0.0.1", "port": 587, "use_tls": False}
    failure = failure_of(build("email", "smtp", settings))
    assert (type(failure), failure.error_class) == (Rejected, "permanent")
    assert "127" not in str(failure)


# Lost connections (fault row 22)


@pytest.mark.parametrize("step", ["ehlo", "mail", "rcpt", "data"])
@pytest.mark.parametrize("fault", [DROP, STALL])
def test_a_connection_lost_before_the_payload_is_unavailable(server, connect, step, fault):
    server.on(step, fault)
    adapter = connect(server, timeout=0.3)
    failure = failure_of(adapter)
    assert (type(failure), failure.account_wide) == (Unavailable, True)
    assert b"Subject" not in b"".join(server.received)
    adapter.send(MAIL)


@pytest.mark.parametrize("fault", [DROP, STALL])
def test_a_connection_lost_after_the_payload_is_uncertain(server, connect, fault):
    server.on("payload", fault)
    adapter = connect(server, data_timeout=0.3)
    assert isinstance(failure_of(adapter), Uncertain)
    adapter.send(MAIL)
    assert server.connections == 2
    assert len(server.taken) == 1


def test_a_connection_lost_within_the_payload_is_unavailable(connect):
    """Without its final dot a mail is not taken, however much of it arrived."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)

        def hang_up_early() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as lines:
                connection.sendall(b"220 hi\r\n")
                for line in lines:
                    if line.startswith(b"data"):
                        connection.sendall(b"354 go on\r\n")
                        return
                    connection.sendall(b"250 ok\r\n")

        thread = threading.Thread(target=hang_up_early, daemon=True)
        thread.start()
        settings = {"host": "127.0.0.1", "port": listener.getsockname()[1], "use_tls": False, "data_timeout": 5}
        adapter = build("email", "smtp", settings, allowed_networks=LOOPBACK)
        failure = failure_of(adapter, replace(MAIL, text="long " * 4_000_000))
        thread.join()
    assert (type(failure), failure.account_wide) == (Unavailable, False)


def test_a_server_that_stops_reading_counts_against_the_account(connect):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        done = threading.Event()

        def stop_reading() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb", buffering=0) as lines:
                connection.sendall(b"220 hi\r\n")
                for line in lines:
                    if line.startswith(b"data"):
                        connection.sendall(b"354 go on\r\n")
                        done.wait(10)
                        return
                    connection.sendall(b"250 ok\r\n")

        thread = threading.Thread(target=stop_reading, daemon=True)
        thread.start()
        settings = {"host": "127.0.0.1", "port": listener.getsockname()[1], "use_tls": False, "data_timeout": 0.3}
        adapter = build("email", "smtp", settings, allowed_networks=LOOPBACK)
        failure = failure_of(adapter, replace(MAIL, text="long " * 4_000_000))
        done.set()
        thread.join()
    assert (type(failure), failure.account_wide) == (Unavailable, True)


def test_a_connection_is_used_again(server, connect):
    adapter = connect(server)
    for _ in range(5):
        adapter.send(MAIL)
    assert server.connections == 1
    assert len(server.taken) == 5
    assert "rset" not in server.commands


def test_a_connection_dropped_while_idle_is_opened_anew(server, connect):
    adapter = connect(server)
    adapter.send(MAIL)
    server.drop_idle()
    adapter.send(MAIL)
    assert server.connections == 2
    assert len(server.taken) == 2


@pytest.mark.parametrize("step", ["mail", "rcpt", "data"])
def test_a_kept_connection_dropped_before_the_payload_is_opened_anew(server, connect, step):
    adapter = connect(server)
    adapter.send(MAIL)
    server.on(step, DROP)
    adapter.send(MAIL)
    assert server.connections == 2
    assert len(server.taken) == 2


def test_a_conversation_cut_off_in_the_middle_is_not_taken_up_again(server, connect, monkeypatch):
    adapter = connect(server)
    adapter.send(MAIL)
    monkeypatch.setattr(session.Session, "rcpt", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        adapter.send(replace(MAIL, from_address="first@acme.test"))
    monkeypatch.undo()
    adapter.send(MAIL)
    assert server.connections == 2
    assert [taken.sender for taken in server.taken] == ["hello@acme.test"] * 2


def test_a_fresh_connection_that_drops_too_is_unavailable(server, connect):
    adapter = connect(server)
    adapter.send(MAIL)
    server.on("mail", DROP, DROP, DROP)
    assert isinstance(failure_of(adapter), Unavailable)
    assert server.connections == 2


def test_a_kept_connection_lost_after_the_payload_is_still_uncertain(server, connect):
    adapter = connect(server)
    adapter.send(MAIL)
    server.on("payload", DROP)
    assert isinstance(failure_of(adapter), Uncertain)
    assert len(server.taken) == 1


def test_a_worn_out_connection_is_opened_anew(server, connect):
    adapter = connect(server)
    adapter.send(MAIL)
    server.on("mail", "421 4.7.0 too many mails on this connection")
    adapter.send(MAIL)
    assert server.connections == 2
    assert len(server.taken) == 2


def test_a_server_that_says_421_to_fresh_connections_too_throttles(server, connect):
    adapter = connect(server)
    adapter.send(MAIL)
    server.always("mail", "421 4.7.0 enough")
    failure = failure_of(adapter)
    assert (type(failure), failure.error_class) == (Unavailable, "throttled")


@pytest.mark.parametrize("probe", ["250 ok", "421 4.4.2 timeout exceeded", DROP, STALL, "502 what?"])
def test_a_connection_is_probed_after_a_pause(server, connect, monkeypatch, probe):
    adapter = connect(server, timeout=0.3)
    adapter.send(MAIL)
    monkeypatch.setattr(session, "IDLE_SECONDS", 0.0)
    server.on("rset", probe)
    adapter.send(MAIL)
    assert "rset" in server.commands
    assert server.connections == (1 if probe == "250 ok" else 2)
    assert len(server.taken) == 2


# Several at once


def test_mails_go_out_at_once_on_as_many_connections_as_allowed(server, connect):
    adapter = connect(server, connections=3)
    references = [f"m-{number}" for number in range(30)]

    def send(share: list[str]) -> None:
        for reference in share:
            adapter.send(replace(MAIL, reference=reference))

    threads = [threading.Thread(target=send, args=(references[start::6],)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sent = sorted(parsed(server, position)["Message-ID"] for position in range(30))
    assert sent == sorted(f"<{reference}@acme.test>" for reference in references)
    assert server.connections <= 3
    assert adapter.connections == 3


def test_closing_says_goodbye_and_a_later_mail_opens_anew(server, connect):
    adapter = connect(server)
    adapter.send(MAIL)
    adapter.close()
    assert server.commands[-1] == "quit"
    adapter.send(MAIL)
    assert server.connections == 2


def test_closing_does_not_wait_for_a_server_that_is_silent(server, connect, monkeypatch):
    monkeypatch.setattr(session, "QUIT_SECONDS", 0.2)
    adapter = connect(server)
    adapter.send(MAIL)
    server.on("quit", STALL)
    started = time.monotonic()
    adapter.close()
    assert time.monotonic() - started < 1


# Settings


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({}, "host"),
        ({"host": ""}, "host"),
        ({"host": 7}, "host"),
        ({"host": "smtp.example.com:25"}, "host"),
        ({"host": "user@smtp.example.com"}, "host"),
        ({"host": "2130706433"}, "host"),
        ({"host": "h.test", "port": "25"}, "port"),
        ({"host": "h.test", "port": 0}, "port"),
        ({"host": "h.test", "port": True}, "port"),
        ({"host": "h.test", "username": "acme"}, "password"),
        ({"host": "h.test", "password": "secret"}, "username"),
        ({"host": "h.test", "username": "acme", "password": "pässword"}, "password"),
        ({"host": "h.test", "username": "ac\nme", "password": "secret"}, "username"),
        ({"host": "h.test", "use_tls": "yes"}, "use_tls"),
        ({"host": "h.test", "use_tls": True, "use_ssl": True}, "use_tls"),
        ({"host": "h.test", "timeout": 0}, "timeout"),
        ({"host": "h.test", "data_timeout": float("nan")}, "data_timeout"),
        ({"host": "h.test", "connections": 65}, "connections"),
        ({"host": "h.test", "tls": False}, "tls"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(settings, field):
    with pytest.raises(InvalidSettings) as raised:
        build("email", "smtp", settings)
    assert raised.value.field == field
    assert "pässword" not in str(raised.value)
