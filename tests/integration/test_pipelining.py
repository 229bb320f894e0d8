"""MAIL, RCPT and DATA in one write (RFC 2920): every fault means what it means one at a time, and nothing slips out."""

import ipaddress
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from notifications.channels import Adapter, Failure, Outgoing, Rejected, Unavailable, Uncertain, build
from notifications.channels.email import mime, session
from notifications.channels.email.mime import Mail
from tests.smtp_server import DROP, STALL, SMTPServer, server_tls

LOOPBACK = [ipaddress.ip_network("127.0.0.0/8")]
TAKEN = "250 2.0.0 queued as TEST"
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
    with SMTPServer(features=["PIPELINING", "SIZE 1000000"]) as server:
        yield server


@pytest.fixture
def connect(request):
    """Build adapters that are closed when the test ends."""

    def connect_to(port: int, **settings: Any) -> Adapter:
        wanted = {"host": "127.0.0.1", "port": port, "use_tls": False, "timeout": 0.4, "data_timeout": 0.4}
        adapter = build("email", "smtp", {**wanted, "connections": 1, **settings}, allowed_networks=LOOPBACK)
        request.addfinalizer(adapter.close)
        return adapter

    return connect_to


def failure_of(adapter: Adapter, message: Outgoing = MAIL) -> Failure:
    with pytest.raises(Failure) as raised:
        adapter.send(message)
    return raised.value


def outcome(adapter: Adapter, message: Outgoing = MAIL) -> tuple[Any, ...]:
    try:
        return ("accepted", adapter.send(message).response)
    except Failure as failure:
        return (type(failure), failure.error_class, failure.code, str(failure))


class Listener:
    """A server for one connection, played by a function, for what a polite one does not do."""

    def __init__(self, play) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(5)
        self.port = self.listener.getsockname()[1]
        self.heard = bytearray()
        self.thread = threading.Thread(target=self.serve, args=(play,), daemon=True)
        self.thread.start()

    def serve(self, play) -> None:
        with self.listener:
            self.connection, _ = self.listener.accept()
        with self.connection:
            self.connection.settimeout(5)
            self.say(b"220 hi\r\n")
            self.hear(b"\r\n")
            self.say(b"250-hi\r\n250 PIPELINING\r\n")
            play(self)

    def say(self, words: bytes) -> None:
        self.connection.sendall(words)

    def hear(self, end: bytes) -> bytes:
        """Read until the last thing heard is `end`; everything is kept in `heard`."""
        start = len(self.heard)
        while not self.heard.endswith(end) or len(self.heard) == start:
            piece = self.connection.recv(65536)
            if not piece:
                break
            self.heard += piece
        return bytes(self.heard[start:])


# What goes over the wire


def test_three_commands_go_out_before_the_first_is_answered(connect):
    def play(listener: Listener) -> None:
        listener.hear(b"DATA\r\n")
        listener.say(b"250 ok\r\n250 ok\r\n354 go on\r\n")
        listener.hear(b"\r\n.\r\n")
        listener.say(b"250 taken\r\n")
        listener.hear(b"quit\r\n")

    listener = Listener(play)
    adapter = connect(listener.port)
    assert adapter.send(MAIL).response == "250 taken"
    adapter.close()
    listener.thread.join(5)
    heard = bytes(listener.heard)
    assert b"MAIL FROM:<hello@acme.test>\r\nRCPT TO:<ada@example.com>\r\nDATA\r\nSubject: " in heard


def test_replies_in_any_pieces_are_read_in_order(connect):
    def play(listener: Listener) -> None:
        listener.hear(b"DATA\r\n")
        for piece in (b"25", b"0-a\r\n250 ok\r", b"\n250 2.1.5 ok\r\n3", b"54 go on\r\n"):
            listener.say(piece)
            time.sleep(0.03)
        listener.hear(b"\r\n.\r\n")
        listener.say(b"250 taken\r\n")
        listener.hear(b"quit\r\n")

    assert connect(Listener(play).port).send(MAIL).response == "250 taken"


def test_a_server_that_does_not_offer_it_is_asked_one_by_one(connect):
    with SMTPServer() as server:
        server.on("mail", STALL)
        failure_of(connect(server.port))
        assert b"mail from" in b"".join(server.received).lower()
        assert b"rcpt" not in b"".join(server.received).lower()


def test_the_size_goes_with_it_where_the_server_asks_for_it(server, connect):
    connect(server.port).send(MAIL)
    told = int(next(line for line in server.commands if line.startswith("MAIL")).partition("size=")[2])
    assert told == len(server.taken[0].raw) + len(b".\r\n")


def test_many_mails_go_over_one_connection(server, connect):
    """Without a pause, though this server writes each reply by itself and so waits for its acknowledgement."""
    adapter = connect(server.port, timeout=5)
    started = time.monotonic()
    for number in range(50):
        adapter.send(replace(MAIL, to=f"p{number}@example.com", text=f"{number}\n."))
    assert time.monotonic() - started < 50 * 0.03
    assert [taken.recipient for taken in server.taken] == [f"p{number}@example.com" for number in range(50)]
    assert server.connections == 1
    assert "rset" not in server.commands


def test_it_goes_under_tls_and_after_the_log_in(connect, tmp_path, monkeypatch):
    tls, certificate = server_tls(tmp_path, "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with SMTPServer(features=["PIPELINING", "AUTH PLAIN"], tls=tls) as server:
        adapter = connect(server.port, use_tls=True, username="acme", password="correct-horse-7", timeout=5)
        adapter.send(MAIL)
        adapter.send(MAIL)
        adapter.close()
        assert len(server.taken) == 2
        assert bytes(server.received[0]).count(b"\r\nRCPT TO:<ada@example.com>\r\nDATA\r\n") == 2


@pytest.mark.parametrize("field", ["sender", "recipient"])
@pytest.mark.parametrize("smuggled", ["a@b.io>\r\nRCPT TO:<v@z.io", "a@b.io\r", "a@b.io\n", "ü@b.io"])
def test_no_address_adds_a_command(server, connect, field, smuggled):
    envelope = {
        "sender": "a@b.io",
        "recipient": "c@d.io",
        "message_id": "<a@b.io>",
        "content": b"x\r\n",
        field: smuggled,
    }
    with connect(server.port)._pool.lend() as connection, pytest.raises(ValueError, match=r"line break|ascii"):
        connection.hand_over(Mail(**envelope))
    assert not any(command.lower().startswith(("mail", "rcpt", "data")) for command in server.commands)


SMUGGLED = b"MAIL FROM:<ceo@bank.test>"


@pytest.mark.parametrize(
    "end",
    ["\n.\n", "\n.\r\n", "\r.\r", "\r.\r\n", "\r\n.\r", "\r\n.\n", "\r\n.\r\n", "\r\n\x00.\r\n"],
    ids=repr,
)
@pytest.mark.parametrize("part", ["text", "html"])
@pytest.mark.parametrize("more", ["", "é", "x" * 999], ids=["7bit", "accents", "long"])
def test_no_body_written_directly_ends_the_mail_early(server, connect, monkeypatch, end, part, more):
    monkeypatch.setattr(mime, "write_by_library", lambda _: pytest.fail("not written directly"))
    body = f"{more}before{end}{SMUGGLED.decode()}{end}RCPT TO:<v@z.io>{end}DATA{end}after"
    adapter = connect(server.port, timeout=5)
    adapter.send(replace(MAIL, **{part: body}))
    adapter.send(MAIL)
    raw = server.taken[0].raw
    assert len(server.taken) == 2
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)|\x00", raw)
    assert not re.search(rb"\r\n\.(?!\.)", b"\r\n" + raw)
    assert b"MAIL FROM:<ceo@bank" in raw
    assert not any("bank.test" in command for command in server.commands)


@pytest.mark.parametrize(
    "change",
    [
        {"subject": "Hi\r\nBcc: v@z.io"},
        {"subject": "Hi\u2028Bcc: v@z.io"},
        {"from_name": "Acme\r\nBcc: v@z.io"},
        {"to_name": "=?utf-8?q?a=0d=0aBcc:_v@z.io?="},
        {"headers": {"X-T": "y\r\nBcc: v@z.io"}},
        {"headers": {"X-T: y\r\nBcc": "v@z.io"}},
        {"headers": {"Bcc": "v@z.io"}},
        {"service_headers": {"List-Unsubscribe": "<https://a.test>\r\nBcc: v@z.io"}},
        {"message_id": "<a@b.io>\r\nBcc: v@z.io"},
        {"to": "a@y.io> SIZE=1\r\nDATA"},
        {"to": "a@y.io\r\nRCPT TO:<v@z.io>"},
        {"from_address": "hello@acme.test\r\n"},
        {"from_address": "=?utf-8?q?ceo=40bank.test?=@acme.test"},
        {"text": "lone surrogate \ud800"},
    ],
)
def test_injection_is_refused_before_a_byte_is_sent(server, connect, change):
    assert isinstance(failure_of(connect(server.port), replace(MAIL, **change)), Rejected)
    assert server.connections == 0


# Every fault means what it means one at a time


FAULTS = [
    (step, answer)
    for step in ("mail", "rcpt", "data", "payload")
    for answer in (
        *("421 4.7.0 closing", "451 4.3.0 try later", "452 4.2.2 full", "454 4.7.0 slow down", "450 4.2.0 greylisted"),
        *(
            "530 5.7.0 authentication required",
            "550 5.1.1 no such user",
            "550 5.7.1 relaying denied",
            "550 no such user",
        ),
        *("552 5.3.4 too big", "554 5.6.0 spam", "199 nonsense", "nonsense", "354 go on", "999 what", DROP, STALL),
    )
    if (step, answer) != ("data", "354 go on")
]


@pytest.mark.parametrize("kept", [False, True], ids=["fresh", "kept"])
@pytest.mark.parametrize(("step", "answer"), FAULTS)
def test_a_fault_means_the_same_as_one_at_a_time(connect, step, answer, kept):
    seen = []
    for features in ([], ["PIPELINING"]):
        with SMTPServer(features=features) as server:
            adapter = connect(server.port, timeout=0.2, data_timeout=0.2)
            if kept:
                adapter.send(MAIL)
            server.on(step, answer)
            hit = outcome(adapter, replace(MAIL, subject="The one that fails"))
            after = adapter.send(replace(MAIL, to="grace@example.com"))
            adapter.close()
            delivered = [(taken.recipient, b"that fails" in taken.raw) for taken in server.taken]
            seen.append((hit, after, delivered, step == "payload" or not _sent(server, b"that fails")))
    assert seen[0] == seen[1]
    assert seen[1][-1], "the mail went out before it was asked for"


def _sent(server: SMTPServer, words: bytes) -> bool:
    # On a kept connection that drops, the mail goes out over the next one, as it should.
    return words in b"".join(server.received) and not any(words in taken.raw for taken in server.taken)


@pytest.mark.parametrize(
    ("step", "answer", "kind", "error_class"),
    [
        ("mail", "421 4.7.0 closing", Unavailable, "throttled"),
        ("rcpt", "421 4.7.0 closing", Unavailable, "throttled"),
        ("data", "421 4.7.0 closing", Unavailable, "throttled"),
        ("rcpt", "550 5.1.1 no such user", Rejected, "invalid_recipient"),
        ("rcpt", "450 4.2.0 greylisted", Unavailable, "transient"),
        ("mail", "530 5.7.0 authentication required", Unavailable, "auth"),
        ("rcpt", "nonsense", Unavailable, "transient"),
        ("data", "250 ok", Unavailable, "transient"),
        ("mail", DROP, Unavailable, "transient"),
        ("rcpt", DROP, Unavailable, "transient"),
        ("data", STALL, Unavailable, "transient"),
        ("payload", DROP, Uncertain, "transient"),
        ("payload", STALL, Uncertain, "transient"),
        ("payload", "nonsense", Uncertain, "transient"),
    ],
)
def test_each_fault_has_one_meaning(server, connect, step, answer, kind, error_class):
    server.on(step, answer)
    failure = failure_of(connect(server.port))
    assert (type(failure), failure.error_class) == (kind, error_class)
    assert not server.taken


@pytest.mark.parametrize("step", ["mail", "rcpt", "data"])
def test_a_kept_connection_dropped_between_the_three_is_opened_anew(server, connect, step):
    adapter = connect(server.port)
    adapter.send(MAIL)
    server.on(step, DROP)
    adapter.send(MAIL)
    assert (server.connections, len(server.taken)) == (2, 2)


def test_a_worn_out_connection_is_opened_anew(server, connect):
    adapter = connect(server.port)
    adapter.send(MAIL)
    server.on("mail", "421 4.7.0 too many mails on this connection")
    adapter.send(MAIL)
    assert (server.connections, len(server.taken)) == (2, 2)


def test_a_connection_dropped_while_idle_is_opened_anew(server, connect):
    adapter = connect(server.port)
    adapter.send(MAIL)
    server.drop_idle()
    adapter.send(MAIL)
    assert (server.connections, len(server.taken)) == (2, 2)


def test_a_kept_connection_lost_after_the_payload_is_uncertain_and_not_sent_twice(server, connect):
    adapter = connect(server.port)
    adapter.send(MAIL)
    server.on("payload", DROP)
    assert isinstance(failure_of(adapter), Uncertain)
    assert b"".join(server.received).count(b"Subject: ") == 2


def test_a_conversation_cut_off_in_the_middle_is_not_taken_up_again(server, connect, monkeypatch):
    adapter = connect(server.port)
    adapter.send(MAIL)
    monkeypatch.setattr(session, "_expect", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        adapter.send(replace(MAIL, from_address="first@acme.test"))
    monkeypatch.undo()
    adapter.send(MAIL)
    assert server.connections == 2
    assert [taken.sender for taken in server.taken] == ["hello@acme.test"] * 2


# Refused, and asked for the message all the same


@pytest.mark.parametrize("step", ["mail", "rcpt", "data"])
def test_a_refusal_leaves_the_connection_in_step(server, connect, step):
    adapter = connect(server.port)
    adapter.send(MAIL)
    server.on(step, "550 5.7.1 no")
    assert failure_of(adapter).code == "550"
    adapter.send(replace(MAIL, to="grace@example.com"))
    adapter.send(replace(MAIL, to="linus@example.com"))
    assert [taken.recipient for taken in server.taken] == ["ada@example.com", "grace@example.com", "linus@example.com"]
    assert server.connections == 1
    assert server.commands.count("rset") == 1


@pytest.mark.parametrize(
    ("end", "connections"),
    [
        ("554 5.5.1 no valid recipients", 1),
        ("451 4.3.0 later", 1),
        ("421 4.3.2 closing", 1),
        (TAKEN, 2),
        ("nonsense", 2),
        (DROP, 2),
        (STALL, 2),
    ],
)
def test_a_server_that_goes_on_after_a_refused_recipient_gets_a_dot_alone(server, connect, end, connections):
    server.on("rcpt", "550 5.1.1 no such user")
    server.on("data", "354 go on")
    server.on("payload", end)
    adapter = connect(server.port)
    failure = failure_of(adapter)
    assert (type(failure), failure.error_class, failure.code) == (Rejected, "invalid_recipient", "550")
    assert bytes(server.received[0]).endswith(b"RCPT TO:<ada@example.com>\r\nDATA\r\n.\r\n")
    assert [taken for taken in server.taken if taken.recipient or taken.content.strip()] == []
    server.taken.clear()
    adapter.send(replace(MAIL, to="grace@example.com"))
    assert [taken.recipient for taken in server.taken] == ["grace@example.com"]
    assert server.connections == connections


@pytest.mark.parametrize("rcpt", ["250 2.1.5 ok", "503 5.5.1 MAIL first", "nonsense"])
def test_a_server_that_goes_on_after_a_refused_sender_gets_nothing(server, connect, rcpt):
    """It may hold the recipient, so that a dot would send an empty mail."""
    server.on("mail", "550 5.1.8 bad sender")
    server.on("rcpt", rcpt)
    server.on("data", "354 go on")
    adapter = connect(server.port)
    failure = failure_of(adapter)
    assert (type(failure), failure.code) == (Rejected, "550")
    assert bytes(server.received[0]).endswith(b"\r\nDATA\r\n")
    adapter.send(MAIL)
    assert server.connections == 2
    assert len(server.taken) == 1


@pytest.mark.parametrize(("refused", "then"), [("mail", "rcpt"), ("mail", "data"), ("rcpt", "data")])
@pytest.mark.parametrize("fault", [DROP, STALL, "nonsense", "250 ok"])
def test_what_follows_a_refusal_does_not_change_it(server, connect, refused, then, fault):
    server.on(refused, "450 4.2.0 greylisted")
    server.on(then, fault)
    adapter = connect(server.port)
    failure = failure_of(adapter)
    assert (type(failure), failure.code, str(failure)) == (Unavailable, "450", "450 4.2.0 greylisted")
    adapter.send(MAIL)
    assert len(server.taken) == 1
    assert b"".join(server.received).count(b"Subject: ") == 1


# Time


def test_a_reply_that_trickles_in_is_cut_off_at_the_time_for_the_whole(connect):
    def play(listener: Listener) -> None:
        listener.hear(b"DATA\r\n")
        time.sleep(0.8)
        listener.say(b"2")
        listener.hear(b"never")

    adapter = connect(Listener(play).port, timeout=1)
    started = time.monotonic()
    assert isinstance(failure_of(adapter), Unavailable)
    assert time.monotonic() - started < 1.6


def test_a_server_that_closes_is_not_waited_for(server, connect):
    server.on("rcpt", "421 4.7.0 closing")
    server.on("data", STALL)
    started = time.monotonic()
    assert failure_of(connect(server.port, timeout=5)).code == "421"
    assert time.monotonic() - started < 2


def test_each_wait_has_its_own_time_limit(server, connect):
    """The time for the server to scan a mail is not the time it may take for a command, nor the other way round."""
    adapter = connect(server.port, timeout=0.3, data_timeout=5)
    adapter.send(MAIL)
    server.on("mail", STALL)
    started = time.monotonic()
    assert isinstance(failure_of(adapter), Unavailable)
    assert time.monotonic() - started < 1.5

    def play(listener: Listener) -> None:
        listener.hear(b"DATA\r\n")
        listener.say(b"250 ok\r\n250 ok\r\n354 go on\r\n")
        time.sleep(0.8)
        listener.hear(b"\r\n.\r\n")
        time.sleep(0.8)
        listener.say(b"250 taken\r\n")
        listener.hear(b"quit\r\n")

    slow = connect(Listener(play).port, timeout=0.3, data_timeout=5)
    assert slow.send(replace(MAIL, text="more than sockets hold\n" * 400_000)).response == "250 taken"
