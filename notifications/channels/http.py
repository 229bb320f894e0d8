"""HTTP (RFC 9110, 9112) for adapters: a kept-open client an account, and the one meaning of each answer and fault.

Before a request begins to be written nobody can have taken its message. Once it has begun only an answer tells,
whatever broke since. And an answer is read by its status alone: what follows may be cut off or malformed.

=============================  ============================  =====================================================
what happened                  outcome                       because
=============================  ============================  =====================================================
forbidden address or port      Rejected                      `channels.network`
not found, refused, no TLS     Unavailable                   nothing was sent, and never is without TLS
kept connection gone, unused   once more, on another         RFC 9112, 9.3.1: the request was not begun
broken or silent after that    Uncertain                     it may have been read
2xx                            accepted                      RFC 9110, 15.3
3xx                            Rejected                      a redirect may lead anywhere, to our own network too
401, 403, 407                  Rejected, auth                15.5.2, 15.5.4, 15.5.8. Of the account's own provider
                                                             401 and 407 are Unavailable: another key mends them
404, 410                       Rejected, invalid_recipient   15.5.5, 15.5.11
408, 421, 425                  Unavailable                   15.5.9, 15.5.20 and RFC 8470, 5.2: not processed
409                            Uncertain                     an earlier attempt under the same key is under way
                                                             (draft-ietf-httpapi-idempotency-key-header, 2.7)
429                            Unavailable, throttled        RFC 6585, 4
other 4xx                      Rejected                      15.5: the request itself is wrong
503 with Retry-After           Unavailable                   15.6.4: not now, and from when on
other 5xx, anything else       Uncertain                     it may have been processed half-way
=============================  ============================  =====================================================

None of the far end's own words is passed on, or what listens in our own network could be read with it.

This stands on httpcore, the part of httpx that speaks HTTP. It follows no redirect, keeps no cookie, reads no proxy
from the environment and logs no address, and a request costs half of what it costs through httpx's client.
"""

import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import httpcore

from notifications.channels.addresses import WebAddress
from notifications.channels.base import (
    ErrorClass,
    Failure,
    InvalidSettings,
    Networks,
    Rejected,
    Settings,
    Unavailable,
    Uncertain,
)
from notifications.channels.network import ForbiddenAddress, connect_pinned, readable

HTTPS_PORTS = frozenset({443, 8443})
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 15.0
MOST_SECONDS = 60.0
IDLE_SECONDS = 4.0
"""How long a connection is kept unused: many servers hang up after 5 s, and a request must not cross that."""
LONGEST_ANSWER = 64 * 1024
LONGEST_RETRY_AFTER = timedelta(days=1)

UNREACHABLE = "The address could not be reached."
NOT_FOUND = "The address's host name was not found."
BAD_TLS = "No safe TLS connection could be made: check the certificate, host name and port of the address."
CLEAR_TEXT = "Write the address with https: without TLS only the operator's own networks are reached."
UNWRITABLE = "The request could not be written: a header holds what no header may."
DROPPED = "The connection was closed before the request was written."
UNANSWERED = "The request went out, and no HTTP answer came back."
STALLED = "The request went out, and no answer came in time."

BROKEN = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError)
"""What httpcore raises once there is a connection."""
NOT_PROCESSED = frozenset({408, 421, 425})
AUTH = frozenset({401, 403, 407})
OWN_KEY = frozenset({401, 407})
GONE = frozenset({404, 410})
UNDER_WAY = 409


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. Only its status is fit to be shown to a tenant, and that is its text: `200 OK`."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """By lower-case name; the last of several with one name."""
    body: bytes = field(default=b"", repr=False)
    """Empty when it was cut off, malformed or longer than 64 KB."""

    def __str__(self) -> str:
        try:
            return f"{self.status} {HTTPStatus(self.status).phrase}"
        except ValueError:
            return str(self.status)


class Stale(Exception):
    """A connection kept open was gone before the request began to be written: another one tells the truth."""


class Client:
    """Makes requests over kept-open connections, from several threads at once.

    A host is resolved at each connect, every address of it is checked, and the connection goes to what was checked;
    the certificate is checked against the host's name. Without TLS only allowed networks are reached.
    """

    def __init__(
        self,
        *,
        allowed: Networks = (),
        connections: int = 8,
        connect_seconds: float = CONNECT_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
        account_wide: bool = True,
    ) -> None:
        """Load the certificates to trust; nothing is connected yet.

        Args:
            allowed: private networks the operator lets accounts reach; never a tenant's to set.
            connections: so many requests at once, and as many connections kept.
            connect_seconds: for connecting to all of a host's addresses together, and again for TLS.
            answer_seconds: for writing the whole request, and again for the whole answer.
            account_wide: whether the far end is the account's provider, whose faults meet the next message too;
                False where each message has a far end of its own.
        """
        self.account_wide = account_wide
        self._connections = connections
        self._timeouts = {
            "pool": connect_seconds,
            "connect": connect_seconds,
            "write": answer_seconds,
            "read": answer_seconds,
        }
        context = ssl.create_default_context()
        # With no port to go to, only allowed networks are left.
        ports = {"https": HTTPS_PORTS, "http": frozenset[int]()}
        self._pools = {
            scheme: httpcore.ConnectionPool(
                ssl_context=context,
                max_connections=connections,
                keepalive_expiry=IDLE_SECONDS,
                network_backend=_Pinned(allowed, ports[scheme]),
            )
            for scheme in ports
        }
        self._lock = threading.Lock()
        self._in_use = 0
        self._closed = False

    def post(self, address: WebAddress, *, headers: Mapping[str, str], body: bytes) -> Answer:
        """Make one POST request; its answer may be a refusal, which `failure_of` tells.

        Args:
            address: where to.
            headers: in ASCII, besides Host, User-Agent, Accept-Encoding and Content-Length.
            body: sent as it is.

        Raises:
            Rejected: the address is forbidden, or a header cannot be written.
            Unavailable: the request was not begun.
            Uncertain: no answer came to it.
        """
        request = _request(address, headers, body, self._timeouts)
        failure: Failure = Unavailable(DROPPED, account_wide=self.account_wide)
        with self._lent(address.scheme) as pool:
            # A stale connection is closed, so that after all of them there is a fresh one.
            for _ in range(self._connections + 1):
                try:
                    return _exchange(pool, request)
                except Stale:
                    continue
                except (ForbiddenAddress, OSError, *BROKEN) as error:
                    failure = self._meaning(error, address)
                    break
        # Here, so that it does not carry along what led to it.
        raise failure

    def close(self) -> None:
        """Close every connection once no request is on its way; a later request opens one, and closes it after."""
        with self._lock:
            self._closed = True
            self._hang_up()

    @contextmanager
    def _lent(self, scheme: str) -> Iterator[httpcore.ConnectionPool]:
        with self._lock:
            self._in_use += 1
        try:
            yield self._pools[scheme]
        finally:
            with self._lock:
                self._in_use -= 1
                self._hang_up()

    def _hang_up(self) -> None:
        # The pool would cut off requests on their way as well.
        if self._closed and not self._in_use:
            for pool in self._pools.values():
                pool.close()

    def _meaning(self, error: Exception, address: WebAddress) -> Failure:
        """What a request that got no answer means."""
        match error:
            case ForbiddenAddress():
                return Rejected(CLEAR_TEXT if address.scheme == "http" else str(error))
            case httpcore.LocalProtocolError():
                return Rejected(UNWRITABLE)
            case OSError() | httpcore.PoolTimeout():
                tls, unknown = isinstance(error, ssl.SSLError), isinstance(error, socket.gaierror)
                text = BAD_TLS if tls else NOT_FOUND if unknown else UNREACHABLE
                return Unavailable(text, account_wide=self.account_wide)
            case httpcore.TimeoutException():
                return Uncertain(STALLED, account_wide=self.account_wide)
        return Uncertain(UNANSWERED, account_wide=self.account_wide)


def failure_of(answer: Answer, *, account_wide: bool = True, now: datetime | None = None) -> Failure | None:
    """What an answer means by its status, as in the table above; None when the message was taken.

    Args:
        answer: what came back.
        account_wide: whether it is the account's provider that answered, as in `Client`.
        now: the time that dates are compared with; unless given the answer's own, as far as it has a Date.
    """
    status, text, code = answer.status, f"The address answered {answer}.", str(answer.status)
    wait = retry_after(answer.headers.get("retry-after", ""), now or _said_at(answer) or datetime.now(UTC))
    if 200 <= status < 300:
        return None
    if status == 429:
        return Unavailable(text, error_class="throttled", code=code, retry_after=wait)
    if status in NOT_PROCESSED or (status == 503 and wait is not None):
        return Unavailable(text, code=code, retry_after=wait, account_wide=account_wide)
    if status in OWN_KEY and account_wide:
        return Unavailable(text, error_class="auth", code=code)
    if 300 <= status < 500 and status != UNDER_WAY:
        more = " Redirects are not followed: give the final address." if status < 400 else ""
        return Rejected(text + more, error_class=_class_of(status), code=code)
    return Uncertain(text, code=code, account_wide=account_wide)


def _class_of(status: int) -> ErrorClass:
    return "auth" if status in AUTH else "invalid_recipient" if status in GONE else "permanent"


def _said_at(answer: Answer) -> datetime | None:
    """When the far end says that it answered (RFC 9110, 6.6.1): its dates go by the same clock."""
    try:
        said_at = parsedate_to_datetime(answer.headers.get("date", ""))
    except (ValueError, OverflowError):
        return None
    return said_at if said_at.tzinfo else said_at.replace(tzinfo=UTC)


def retry_after(header: str, now: datetime) -> timedelta | None:
    """How long a Retry-After header (RFC 9110, 10.2.3) asks to wait, from none to a day; None when it says nothing.

    Args:
        header: seconds, or a date in any of the three forms of RFC 9110 (5.6.7).
        now: aware; the time that a date is compared with.
    """
    header = header.strip()
    if header.isascii() and header.isdigit():
        # Of more digits than that no number is made: it may have thousands.
        return min(timedelta(seconds=int(header[:9])), LONGEST_RETRY_AFTER) if len(header) < 10 else LONGEST_RETRY_AFTER
    try:
        until = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    # An HTTP date is in GMT, and one form does not say so.
    wait = (until if until.tzinfo else until.replace(tzinfo=UTC)) - now
    return min(max(wait, timedelta()), LONGEST_RETRY_AFTER)


def read_seconds(settings: Settings, name: str, default: float) -> float:
    """A time-out of an account's settings, in seconds.

    Raises:
        InvalidSettings: it is no number above 0 and up to 60.
    """
    seconds = settings.get(name, default)
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds <= MOST_SECONDS:
        raise InvalidSettings(name, f"give a number of seconds up to {MOST_SECONDS:.0f}.")
    return float(seconds)


def _request(
    address: WebAddress, headers: Mapping[str, str], body: bytes, timeouts: dict[str, float]
) -> httpcore.Request:
    every = {
        "Host": address.authority,
        "User-Agent": "Carillon",
        # Or an answer of a few bytes could unfold to gigabytes.
        "Accept-Encoding": "identity",
        **headers,
        "Content-Length": str(len(body)),
    }
    return httpcore.Request(
        b"POST",
        httpcore.URL(
            scheme=address.scheme.encode(),
            host=address.host.encode(),
            port=address.port,
            target=address.target.encode(),
        ),
        headers=[(name.encode("ascii"), value.encode("ascii")) for name, value in every.items()],
        content=body,
        extensions={"timeout": timeouts},
    )


def _exchange(pool: httpcore.ConnectionPool, request: httpcore.Request) -> Answer:
    response = pool.handle_request(request)
    try:
        stream = response.extensions.get("network_stream")
        if isinstance(stream, _Stream) and not stream.heard:
            # It came after the answer before, and was read with it: it answers something else.
            raise httpcore.RemoteProtocolError("answered before it was asked")
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        return Answer(response.status, headers, _read(response))
    finally:
        response.close()


def _read(response: httpcore.Response) -> bytes:
    body = bytearray()
    try:
        for piece in response.iter_stream():
            body += piece
            if len(body) > LONGEST_ANSWER:
                return b""
    except BROKEN:
        return b""
    return bytes(body)


class _Pinned(httpcore.NetworkBackend):
    """Connects to addresses that were checked, and to no other."""

    def __init__(self, allowed: Networks, ports: frozenset[int]) -> None:
        self._allowed = tuple(allowed)
        self._ports = ports

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        seconds = CONNECT_SECONDS if timeout is None else timeout
        return _Stream(connect_pinned(host, port, seconds, allowed=self._allowed, ports=self._ports))


class _Stream(httpcore.NetworkStream):
    """A socket that knows how far a request went, and whose time-outs are for a whole request and a whole answer.

    Without that a far end of a tenant's choice could hold a thread for hours, by a byte now and then.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._writing = False
        self._deadline = 0.0
        self._used = False
        self.heard = True
        """Whether anything was read since the request."""

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Begin TLS.

        Raises:
            OSError: there is none, or none that is safe; the socket is closed.
        """
        try:
            self._socket.settimeout(timeout)
            return _Stream(ssl_context.wrap_socket(self._socket, server_hostname=server_hostname))
        except BaseException:
            self._socket.close()
            raise

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write a part of a request, its head first.

        Raises:
            Stale: its head did not go out, on a connection that was used before.
            OSError: its head did not go out.
            httpcore.WriteError, httpcore.WriteTimeout: another part of it did not.
        """
        if not buffer:
            return
        begins = not self._writing
        if begins:
            self._writing, self.heard, self._deadline = True, False, time.monotonic() + (timeout or ANSWER_SECONDS)
        try:
            self._limit()
            self._socket.sendall(buffer)
        except OSError as error:
            if begins and self._used:
                raise Stale from None
            if begins:
                raise
            raise _kind(error, httpcore.WriteTimeout, httpcore.WriteError) from None

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read a piece of the answer; nothing is its end.

        Raises:
            httpcore.ReadError, httpcore.ReadTimeout: the connection broke, or the answer's time is over.
        """
        if self._writing:
            self._writing, self._used, self._deadline = False, True, time.monotonic() + (timeout or ANSWER_SECONDS)
        try:
            self._limit()
            received = self._socket.recv(max_bytes)
        except OSError as error:
            raise _kind(error, httpcore.ReadTimeout, httpcore.ReadError) from None
        self.heard = True
        return received

    def _limit(self) -> None:
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("timed out")
        self._socket.settimeout(seconds)

    def close(self) -> None:
        """Close the socket, without a word."""
        self._socket.close()

    def get_extra_info(self, info: str) -> Any:
        """Whether an idle connection has something to read, which is its end or nothing that was asked for."""
        if info == "is_readable":
            return readable(self._socket)
        return None


def _kind(
    error: OSError, late: type[httpcore.TimeoutException], broken: type[httpcore.NetworkError]
) -> httpcore.TimeoutException | httpcore.NetworkError:
    return (late if isinstance(error, TimeoutError) else broken)()
