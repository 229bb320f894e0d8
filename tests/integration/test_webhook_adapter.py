"""The webhook adapter against a real socket: the request on the wire, and every fault that HTTP can show."""

import base64
import hashlib
import ipaddress
import json
import logging
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from notifications import adapters
from notifications.channels import Accepted, Adapter, Failure, Outgoing, Rejected, Unavailable, Uncertain, build, http
from notifications.channels.base import InvalidSettings
from notifications.channels.webhook.https import signature
from notifications.dispatch.models import AccountHold
from notifications.models import Account, MessageStatus, OutboxMessage
from notifications.services import send
from tests import factories
from tests.http_server import DROP, RESET, STALL, HTTPServer, Request, Slowly, answer
from tests.smtp_server import server_tls

LOOPBACK = [ipaddress.ip_network("127.0.0.0/8")]
KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
MESSAGE = Outgoing(
    reference="0192f0c1-0000-7000-8000-000000000001",
    to="https://hooks.carillon.test/",
    to_name="Ada",
    from_address="acme-notifications",
    from_name="Acme",
    reply_to="desk@acme.test",
    subject="Your booking",
    text="Hello Ada, سلام 🎉",
    html="<p>Hello Ada</p>",
    headers={"X-Booking": "42", "Authorization": "Bearer forged"},
)


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    with HTTPServer() as server:
        yield server


@pytest.fixture
def connect(request):
    """Build adapters that are closed when the test ends."""

    def make(**settings: Any) -> Adapter:
        adapter = build("webhook", "https", {"timeout": 2, "data_timeout": 2, **settings}, allowed_networks=LOOPBACK)
        request.addfinalizer(adapter.close)
        return adapter

    return make


def to(server: HTTPServer, target: str = "/hook", **changes: Any) -> Outgoing:
    return replace(MESSAGE, to=server.url(target), **changes)


def failure_of(adapter: Adapter, message: Outgoing) -> Failure:
    with pytest.raises(Failure) as raised:
        adapter.send(message)
    return raised.value


# The request that is sent


def test_a_message_arrives_as_json_under_its_reference(server, connect):
    accepted = connect().send(to(server, "/hook?team=7&x=%20"))
    (request,) = server.requests
    assert accepted == Accepted("", "200 OK")
    assert (request.method, request.target) == ("POST", "/hook?team=7&x=%20")
    assert request.json == {
        "id": MESSAGE.reference,
        "from": "acme-notifications",
        "from_name": "Acme",
        "to_name": "Ada",
        "reply_to": "desk@acme.test",
        "subject": "Your booking",
        "text": "Hello Ada, سلام 🎉",
        "html": "<p>Hello Ada</p>",
        "headers": {"X-Booking": "42", "Authorization": "Bearer forged"},
    }
    assert request.headers == {
        "host": f"127.0.0.1:{server.port}",
        "user-agent": "Carillon",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "idempotency-key": MESSAGE.reference,
        "content-length": str(len(request.body)),
    }


def test_every_attempt_carries_the_same_reference_and_the_same_bytes(server, connect):
    server.on("answer", answer(500), answer(503, retry_after="1"), DROP)
    adapter = connect(secret=SECRET)
    for _ in range(3):
        failure_of(adapter, to(server))
    adapter.send(to(server))
    assert len(server.requests) == 4
    assert {request.headers["idempotency-key"] for request in server.requests} == {MESSAGE.reference}
    assert {request.headers["webhook-id"] for request in server.requests} == {MESSAGE.reference}
    assert len({request.body for request in server.requests}) == 1


@pytest.mark.parametrize(
    ("body", "headers", "provider_id"),
    [
        (b'{"id": "msg_7"}', {}, "msg_7"),
        (b'{"id": 7}', {}, "7"),
        (b'{"id": "msg_7"}', {"x_request_id": "req-1"}, "msg_7"),
        (b"", {"x_request_id": "req-1"}, "req-1"),
        (b'{"id": true}', {"x_request_id": "req-1"}, "req-1"),
        (b'{"id": "has\\nlines"}', {}, ""),
        (b'{"id": "has space"}', {}, ""),
        (b'{"id": "\xc3\xbc"}', {}, ""),
        (b'{"id": ""}', {}, ""),
        (b'{"id": "' + b"x" * 101 + b'"}', {}, ""),
        (b'{"id": ' + b"9" * 5000 + b"}", {}, ""),
        (b'{"id": ["x"]}', {}, ""),
        (b'["id"]', {}, ""),
        (b"[" * 60_000, {}, ""),
        (b"\xff\xfe\x00", {}, ""),
        (b'{"id": "msg_7"', {}, ""),
        (b'{"id": "msg_7", "more": "' + b"x" * 70_000 + b'"}', {}, ""),
    ],
)
def test_the_providers_id_is_what_the_answer_calls_it_if_that_is_short_and_plain(
    server, connect, body, headers, provider_id
):
    server.on("answer", answer(202, body, **headers))
    adapter = connect()
    assert adapter.send(to(server)) == Accepted(provider_id, "202 Accepted")
    assert adapter.send(to(server)) == Accepted("", "200 OK")


def test_what_cannot_be_written_is_refused_before_anything_is_connected(server, connect):
    adapter = connect()
    for change in ({"text": "half \ud800"}, {"reference": "a\r\nX-Forged: 1"}, {"reference": ""}):
        assert isinstance(failure_of(adapter, to(server, **change)), Rejected)
    assert server.connections == 0


@pytest.mark.parametrize(
    "address",
    ["", "hook", "ftp://127.0.0.1/", "https://user:hush@127.0.0.1/", "https://127.0.0.1/a\r\nX: 1", "https://127.1/"],
)
def test_an_address_that_is_none_is_refused(connect, address):
    failure = failure_of(connect(), replace(MESSAGE, to=address))
    assert (type(failure), failure.error_class) == (Rejected, "invalid_recipient")
    assert "hush" not in str(failure)


# The signature (https://www.standardwebhooks.com)


def hmac_sha256(key: bytes, text: bytes) -> bytes:
    """HMAC as RFC 2104 defines it, by nothing but the hash."""
    padded = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded) + text).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in padded) + inner).digest()


def signatures(key: bytes, request: Request) -> str:
    signed = ".".join([request.headers["webhook-id"], request.headers["webhook-timestamp"], ""]).encode() + request.body
    return "v1," + base64.b64encode(hmac_sha256(key, signed)).decode()


def test_a_request_is_signed_with_the_accounts_secret(server, connect):
    before = int(time.time())
    connect(secret=SECRET).send(to(server))
    (request,) = server.requests
    assert request.headers["webhook-signature"] == signatures(KEY, request)
    assert request.headers["webhook-id"] == request.json["id"]
    assert before <= int(request.headers["webhook-timestamp"]) <= time.time()
    assert SECRET.removeprefix("whsec_") not in json.dumps(request.headers)


def test_while_a_secret_is_replaced_both_sign(server, connect):
    newer = bytes(range(64, 128))
    connect(secret=f"whsec_{base64.b64encode(newer).decode()} {SECRET}").send(to(server))
    (request,) = server.requests
    assert request.headers["webhook-signature"] == f"{signatures(newer, request)} {signatures(KEY, request)}"


def test_the_signature_is_the_one_of_the_standards_own_example():
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signature((key,), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


# Answers


@pytest.mark.parametrize(
    ("status", "outcome", "error_class"),
    [
        (301, Rejected, "permanent"),
        (400, Rejected, "permanent"),
        (401, Rejected, "auth"),
        (403, Rejected, "auth"),
        (404, Rejected, "invalid_recipient"),
        (408, Unavailable, "transient"),
        (409, Uncertain, "transient"),
        (410, Rejected, "invalid_recipient"),
        (413, Rejected, "permanent"),
        (422, Rejected, "permanent"),
        (425, Unavailable, "transient"),
        (429, Unavailable, "throttled"),
        (500, Uncertain, "transient"),
        (502, Uncertain, "transient"),
        (503, Uncertain, "transient"),
        (504, Uncertain, "transient"),
    ],
)
def test_each_refusal_has_one_meaning_and_the_connection_goes_on(server, connect, status, outcome, error_class):
    server.on("answer", answer(status, b'{"error": "10.0.0.7 says no"}'))
    adapter = connect()
    failure = failure_of(adapter, to(server))
    assert (type(failure), failure.error_class, failure.code) == (outcome, error_class, str(status))
    assert "10.0.0.7" not in str(failure)
    adapter.send(to(server))
    assert server.connections == 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_429_tells_how_long_the_account_is_to_wait(server, connect, form):
    later = datetime.now(UTC) + timedelta(hours=2)
    server.on("answer", answer(429, retry_after="7200" if form == "seconds" else format_datetime(later, usegmt=True)))
    failure = failure_of(connect(), to(server))
    assert isinstance(failure, Unavailable)
    assert (failure.error_class, failure.account_wide) == ("throttled", True)
    assert timedelta(hours=1, minutes=55) < failure.retry_after <= timedelta(hours=2)


def test_one_address_in_trouble_is_not_held_against_the_account(server, connect):
    server.on("answer", answer(503, retry_after="60"), answer(408))
    adapter = connect()
    failures = [failure_of(adapter, to(server)) for _ in range(2)]
    server.stop()
    failures.append(failure_of(adapter, to(server)))
    assert [type(failure) for failure in failures] == [Unavailable] * 3
    assert not any(failure.account_wide for failure in failures)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(server, connect, status):
    server.on("answer", answer(status, location=server.url("/inside")))
    failure = failure_of(connect(), to(server))
    assert isinstance(failure, Rejected)
    assert "Redirects are not followed" in str(failure)
    assert [request.target for request in server.requests] == ["/hook"]


def test_no_cookie_is_kept(server, connect):
    server.on("answer", answer(200, set_cookie="session=1; Path=/"))
    adapter = connect()
    adapter.send(to(server))
    adapter.send(to(server))
    assert all("cookie" not in request.headers for request in server.requests)


def test_no_proxy_is_taken_from_the_environment(server, connect, monkeypatch):
    with HTTPServer() as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url("/"))
        connect().send(to(server))
        assert proxy.connections == 0
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "said",
    [
        answer(200, b"x" * 1_000_000),
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\ncut off",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nZZZ\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhe",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x08",
        b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nuntil the end",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + answer(200),
        b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["oversized", "cut off", "no chunks", "half a chunk", "no gzip", "HTTP/1.0", "hints before", "no reason"],
)
def test_once_the_status_came_the_rest_changes_nothing(server, connect, said):
    server.on("answer", said)
    adapter = connect()
    assert adapter.send(to(server)) == Accepted("", "200 OK")
    assert adapter.send(to(server)) == Accepted("", "200 OK")
    assert len(server.requests) == 2


def test_an_oversized_refusal_is_still_a_refusal(server, connect):
    server.on("answer", answer(410, b"x" * 1_000_000))
    assert failure_of(connect(), to(server)).code == "410"


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9.6\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 two hundred\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
        b"x" * 1_000_000 + b"connection: close",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK",
        DROP,
        RESET,
    ],
    ids=[
        "another protocol",
        "no status",
        "no header",
        "two lengths",
        "endless headers",
        "endless line",
        "101",
        "half",
        "drop",
        "reset",
    ],
)
def test_without_an_answer_a_message_may_have_been_taken(server, connect, said):
    server.on("answer", said)
    adapter = connect(data_timeout=0.5)
    failure = failure_of(adapter, to(server))
    assert isinstance(failure, Uncertain)
    assert "SSH" not in str(failure)
    assert len(server.requests) == 1
    adapter.send(to(server))
    assert server.connections == 2


def test_more_than_an_answer_is_not_taken_for_the_next_ones(server, connect):
    server.on("answer", answer(204).replace(b"Content-Length: 0\r\n", b"") + answer(200, b'{"id": "forged"}'))
    adapter = connect()
    assert adapter.send(to(server)) == Accepted("", "204 No Content")
    assert isinstance(failure_of(adapter, to(server)), Uncertain)
    assert adapter.send(to(server)) == Accepted("", "200 OK")
    assert server.connections == 2


# Time-outs and lost connections


@pytest.mark.parametrize("fault", [STALL, Slowly(answer(200) * 20), b"HTTP/1.1 100 Continue\r\n\r\n" * 3])
def test_an_answer_that_does_not_come_in_time_leaves_it_open(server, connect, fault):
    server.on("answer", fault)
    failure = failure_of(connect(data_timeout=0.4), to(server))
    assert (type(failure), str(failure)) == (Uncertain, http.STALLED)


def test_a_body_that_trickles_is_cut_off_and_the_status_counts(server, connect):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    server.on("answer", head)
    assert connect(data_timeout=0.4).send(to(server)) == Accepted("", "200 OK")


LONG = "long " * 4_000_000


@pytest.mark.parametrize(("fault", "text"), [(STALL, http.STALLED), (DROP, http.UNANSWERED), (RESET, http.UNANSWERED)])
def test_a_connection_lost_within_the_body_leaves_it_open(server, connect, fault, text):
    server.on("head", fault)
    failure = failure_of(connect(data_timeout=0.4), to(server, text=LONG))
    assert (type(failure), str(failure)) == (Uncertain, text)
    assert (server.heads, server.requests) == (1, [])


def test_an_answer_before_the_whole_body_is_one(server, connect):
    server.on("head", answer(413))
    failure = failure_of(connect(), to(server, text=LONG))
    assert (type(failure), failure.code) == (Rejected, "413")


def test_a_closed_port_is_unavailable(server, connect):
    server.stop()
    failure = failure_of(connect(), to(server))
    assert (type(failure), str(failure)) == (Unavailable, http.UNREACHABLE)


def test_a_name_that_nobody_knows_is_unavailable(connect, monkeypatch):
    def getaddrinfo(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    failure = failure_of(connect(), replace(MESSAGE, to="https://hooks.carillon.invalid/"))
    assert (type(failure), str(failure)) == (Unavailable, http.NOT_FOUND)


def test_a_connection_is_used_again(server, connect):
    adapter = connect()
    for _ in range(5):
        adapter.send(to(server))
    assert (len(server.requests), server.connections) == (5, 1)


@pytest.mark.parametrize("how", [DROP, RESET])
def test_a_connection_dropped_while_idle_is_opened_anew(server, connect, how):
    adapter = connect()
    adapter.send(to(server))
    server.hang_up(how)
    adapter.send(to(server))
    assert (len(server.requests), server.connections) == (2, 2)


def test_a_connection_found_gone_at_the_first_byte_is_opened_anew(server, connect, monkeypatch):
    """As when it goes between the last look at it and the request."""
    adapter = connect(connections=3)
    meeting = threading.Barrier(3)
    post_all(adapter, server, meeting)
    monkeypatch.setattr(http, "readable", lambda _: False)
    server.hang_up(RESET)
    adapter.send(to(server))
    assert len(server.requests) == 4
    assert server.connections == 4


def post_all(adapter: Adapter, server: HTTPServer, meeting: threading.Barrier) -> None:
    """As many messages at once as meet."""

    def one() -> None:
        meeting.wait(5)
        adapter.send(to(server, "/slow"))

    server.always("/slow", Slowly(answer(200)))
    threads = [threading.Thread(target=one) for _ in range(meeting.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.connections == meeting.parties


def test_a_connection_closed_under_a_request_leaves_it_open_and_is_not_tried_again(server, connect, monkeypatch):
    adapter = connect()
    adapter.send(to(server))
    monkeypatch.setattr(http, "readable", lambda _: False)
    server.hang_up(DROP)
    assert isinstance(failure_of(adapter, to(server)), Uncertain)
    assert (len(server.requests), server.connections) == (1, 1)


def test_a_connection_is_not_kept_for_long(server, connect, monkeypatch):
    monkeypatch.setattr(http, "IDLE_SECONDS", 0.0)
    adapter = connect()
    adapter.send(to(server))
    adapter.send(to(server))
    assert server.connections == 2


def test_messages_go_out_at_once_on_as_many_connections_as_allowed(server, connect):
    """Of six at once, each answered slowly, three are on their way, and three wait for their connections."""
    adapter = connect(connections=3)
    references = [f"m-{number}" for number in range(6)]
    server.always("/slow", Slowly(answer(200)))
    threads = [
        threading.Thread(target=adapter.send, args=(to(server, "/slow", reference=reference),))
        for reference in references
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(request.json["id"] for request in server.requests) == references
    assert server.connections == adapter.connections == 3


def test_a_stalled_address_does_not_hold_up_another(server, connect):
    adapter = connect(connections=2, data_timeout=5)
    server.on("/stalls", STALL)
    thread = threading.Thread(target=lambda: failure_of(adapter, to(server, "/stalls")), daemon=True)
    thread.start()
    for _ in range(5):
        adapter.send(to(server))
    assert thread.is_alive()
    server.stop()
    thread.join(5)


def test_closing_lets_requests_on_their_way_end_and_a_later_one_opens_anew(server, connect):
    adapter = connect()
    adapter.send(to(server))
    accepted = []
    server.on("/slow", Slowly(answer(200, b"x" * 10)))
    thread = threading.Thread(target=lambda: accepted.append(adapter.send(to(server, "/slow"))))
    thread.start()
    while len(server.requests) < 2:
        thread.join(0.01)
    adapter.close()
    thread.join(10)
    assert accepted == [Accepted("", "200 OK")]
    adapter.send(to(server))
    assert server.connections == 2
    assert server.everybody_left()


# TLS


@pytest.fixture
def named(monkeypatch) -> str:
    """Make hooks.carillon.test resolve to loopback."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        return resolve("127.0.0.1" if host == "hooks.carillon.test." else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return "hooks.carillon.test"


def test_tls_checks_the_name_while_the_socket_goes_to_the_checked_address(connect, tmp_path, monkeypatch, named):
    tls, certificate = server_tls(tmp_path, named)
    asked = []
    tls.sni_callback = lambda _socket, name, _context: asked.append(name)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with HTTPServer(tls=tls) as server:
        adapter = connect(secret=SECRET)
        for _ in range(2):
            adapter.send(replace(MESSAGE, to=server.url(host=named)))
        assert [request.headers["host"] for request in server.requests] == [f"{named}:{server.port}"] * 2
        assert server.connections == 1
    assert asked == [named]


def test_an_address_alone_is_checked_against_the_certificate_too(connect, tmp_path, monkeypatch):
    tls, certificate = server_tls(tmp_path, "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with HTTPServer(tls=tls) as server:
        connect().send(to(server))
        assert len(server.requests) == 1


@pytest.mark.parametrize("trusted", [False, True], ids=["nobody vouches for", "is for another name"])
def test_a_certificate_that_does_not_fit_stops_everything(connect, tmp_path, monkeypatch, named, trusted):
    tls, certificate = server_tls(tmp_path, "other.carillon.test", "127.0.0.1")
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with HTTPServer(tls=tls) as server:
        failure = failure_of(connect(), replace(MESSAGE, to=server.url(host=named)))
        assert (type(failure), str(failure)) == (Unavailable, http.BAD_TLS)
        assert server.heads == 0


@pytest.mark.parametrize(
    "fault", [STALL, DROP, RESET, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x28"]
)
def test_tls_that_does_not_come_about_is_never_replaced_by_clear_text(connect, tmp_path, fault):
    tls, _ = server_tls(tmp_path, "127.0.0.1")
    with HTTPServer(tls=tls) as server:
        server.always("accept", fault)
        failure = failure_of(connect(timeout=0.4), to(server))
        assert isinstance(failure, Unavailable)
        assert "400" not in str(failure)
        assert server.heads == 0


@pytest.mark.parametrize("said", [DROP, RESET, STALL])
def test_under_tls_too_a_lost_answer_leaves_it_open(connect, tmp_path, monkeypatch, said):
    tls, certificate = server_tls(tmp_path, "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with HTTPServer(tls=tls) as server:
        server.on("answer", said)
        adapter = connect(data_timeout=0.4)
        assert isinstance(failure_of(adapter, to(server)), Uncertain)
        adapter.send(to(server))
        server.hang_up()
        adapter.send(to(server))
        assert (len(server.requests), server.connections) == (3, 3)


# Forbidden addresses


@pytest.mark.parametrize(
    "address",
    [
        "https://127.0.0.1/",
        "https://127.0.0.1:6379/",
        "https://10.0.0.7/",
        "https://169.254.169.254/latest/meta-data/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[64:ff9b::a9fe:a9fe]/",
        "https://localhost/",
        "https://redis/",
        "https://metadata.google.internal/",
        "https://8.8.8.8:22/",
        "http://8.8.8.8/",
        "http://8.8.8.8:443/",
        "http://127.0.0.1/",
    ],
)
def test_what_may_not_be_reached_is_rejected_without_a_connection(monkeypatch, address):
    monkeypatch.setattr(socket, "socket", None)
    adapter = build("webhook", "https", {})
    failure = failure_of(adapter, replace(MESSAGE, to=address))
    assert (type(failure), failure.error_class) == (Rejected, "permanent")
    assert "127" not in str(failure)
    if address.startswith("http:"):
        assert str(failure) == http.CLEAR_TEXT


def test_a_name_that_changes_its_mind_is_asked_once_a_connection(server, connect, monkeypatch):
    """DNS rebinding: a public address at the look, one of ours at the connect."""
    asked, resolve = [], socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        asked.append(host)
        return resolve(["127.0.0.1", "10.0.0.7"][min(len(asked), 2) - 1], *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    adapter = connect()
    message = replace(MESSAGE, to=f"http://rebind.carillon.test:{server.port}/")
    adapter.send(message)
    assert asked == ["rebind.carillon.test."]
    server.hang_up()
    assert isinstance(failure_of(adapter, message), Rejected)
    assert (len(asked), server.connections) == (2, 1)


# Secrets


def test_the_secret_is_in_no_error_log_or_text(server, connect, caplog):
    adapter = connect(secret=SECRET)
    server.on("answer", answer(500), DROP, answer(401))
    with caplog.at_level(logging.DEBUG):
        failures = [failure_of(adapter, to(server, "/hook?token=hush")) for _ in range(3)]
        adapter.send(to(server, "/hook?token=hush"))
    shown = caplog.text + repr(adapter)
    for failure in failures:
        shown += repr(failure)
        shown += "".join(traceback.TracebackException.from_exception(failure, capture_locals=True).format())
        assert failure.__context__ is None
    assert SECRET.removeprefix("whsec_") not in shown
    assert repr(KEY) not in shown
    assert "hush" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"secret": "hush-hush"}, "secret"),
        ({"secret": "whsec_hush!hush"}, "secret"),
        ({"secret": "whsec_" + base64.b64encode(bytes(23)).decode()}, "secret"),
        ({"secret": "whsec_" + base64.b64encode(bytes(65)).decode()}, "secret"),
        ({"secret": base64.b64encode(KEY).decode()}, "secret"),
        ({"secret": " ".join([SECRET] * 3)}, "secret"),
        ({"secret": 7}, "secret"),
        ({"secret": "whsec_ü"}, "secret"),
        ({"timeout": 0}, "timeout"),
        ({"data_timeout": 61}, "data_timeout"),
        ({"connections": 65}, "connections"),
        ({"url": "https://hooks.example.com"}, "url"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_and_not_quoted(settings, field):
    with pytest.raises(InvalidSettings) as raised:
        build("webhook", "https", settings)
    assert raised.value.field == field
    if field == "secret":
        assert str(settings[field]) not in str(raised.value)


# From `send` to the far end


@pytest.fixture
def acme_posts(in_acme, server) -> Iterator[Account]:
    """Acme has an outbox for webhooks, and the test runs inside acme."""
    account = factories.Account(kind="webhook", provider="https", settings={"https": {"secret": SECRET, "timeout": 2}})
    factories.Outbox(account=account, address="acme-notifications", name="Acme")
    yield account
    adapters.close_all()


def accepted(server: HTTPServer, target: str = "/hook", **options: Any) -> OutboxMessage:
    return send(to=server.url(target), channel="webhook", body_text="Hello", **options)


def test_a_message_goes_from_the_call_to_the_far_end(acme_posts, server):
    server.on("answer", answer(202, b'{"id": "msg_7"}'))
    message = accepted(server, subject="Booked")
    assert factories.turn().sent == 1
    (request,) = server.requests
    message = factories.fresh(message)
    assert (message.status, message.external_id) == (MessageStatus.SENT, "msg_7")
    assert request.json["id"] == request.headers["idempotency-key"] == str(message.pk)
    assert (request.json["from"], request.json["from_name"]) == ("acme-notifications", "Acme")
    assert (request.json["subject"], request.json["text"]) == ("Booked", "Hello")
    assert request.headers["webhook-signature"] == signatures(KEY, request)
    assert SECRET not in str(Account.objects.values().get(pk=acme_posts.pk))


def test_an_uncertain_message_goes_again_under_the_same_reference(acme_posts, server):
    server.on("answer", DROP)
    message = accepted(server)
    factories.turn()
    assert factories.fresh(message).status == MessageStatus.UNCERTAIN
    factories.make_due(message)
    factories.turn()
    assert factories.fresh(message).status == MessageStatus.SENT
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1
    assert len({request.body for request in server.requests}) == 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_after_a_429_the_account_sends_nothing_and_others_do(acme_posts, server, form):
    other = factories.Account(kind="webhook", provider="https")
    factories.Outbox(account=other, address="acme-alerts")
    later = datetime.now(UTC) + timedelta(seconds=120)
    server.on("/busy", answer(429, retry_after="120" if form == "seconds" else format_datetime(later, usegmt=True)))
    accepted(server, "/busy", from_address="acme-notifications")
    factories.turn()
    held = AccountHold.objects.get(account=acme_posts.pk)
    # A date has no fractions of a second.
    assert held.not_before >= later - timedelta(seconds=1)
    waiting = accepted(server, "/calm", from_address="acme-notifications")
    sent = accepted(server, "/calm", from_address="acme-alerts")
    factories.turn()
    assert factories.fresh(waiting).status in {MessageStatus.PENDING, MessageStatus.SCHEDULED}
    assert factories.fresh(sent).status == MessageStatus.SENT
    assert [request.target for request in server.requests] == ["/busy", "/calm"]


def test_one_dead_address_does_not_hold_the_others(acme_posts, server):
    for _ in range(10):
        accepted(server, "/").refresh_from_db()
    OutboxMessage.objects.update(to_address="http://127.0.0.1:1/")
    factories.turn()
    message = accepted(server, "/calm")
    factories.turn()
    assert factories.fresh(message).status == MessageStatus.SENT
    assert not AccountHold.objects.exists()
