"""One SMTP conversation at a time: what is said, what the answers mean, and when a kept connection is still good."""

import contextlib
import re
import smtplib
import socket
import ssl
import time
from collections.abc import Buffer, Callable
from ipaddress import ip_address
from typing import Any, Self

from django.core.mail.backends.smtp import EmailBackend

from notifications.channels.base import ErrorClass, Failure, Networks, Rejected, Unavailable, Uncertain
from notifications.channels.email.mime import Mail, to_wire
from notifications.channels.network import ForbiddenAddress, connect_pinned, readable

IDLE_SECONDS = 3.0
PROBE_SECONDS = 5.0
QUIT_SECONDS = 2.0
SLACK_SECONDS = 0.1
"""How late a reply may be cut off: setting a socket's time-out is a system call, and a reply is mostly one read."""
LONGEST_REPLY = 64 * 1024

AUTH_CODES = frozenset({530, 534, 535, 538})
THROTTLED_CODES = frozenset({421, 454})
NO_SUCH_RECIPIENT = frozenset({550, 551, 553})
DEAD_ADDRESS = re.compile(r"\d{3} 5\.1\.(1|2|6|10)\b")
ENHANCED_STATUS = re.compile(r"\d{3} 5\.(\d{1,3})\.\d{1,3}\b")

UNREACHABLE = "The mail server could not be reached, or did not answer as one."
CLEAR_TEXT = "The mail server did not offer TLS, which this account asks for. Nothing was sent."
BAD_TLS = "No safe TLS connection could be made to the mail server: check its certificate, host name and port."
CLEAR_PASSWORD = "The account has a password and TLS is off: turn on STARTTLS or TLS. Nothing was sent."
NOT_LOGGED_IN = "The mail server refused the user name or password."
THROTTLED = "The mail server takes no connection at present."
NOT_FOUND = "The mail server's host name was not found."
DROPPED = "The mail server closed the connection before it took the message."
STALLED = "The mail server stopped answering before it took the message."
UNANSWERED = "The connection broke after the message went out and before the mail server answered."


class Stale(Exception):
    """A connection kept open was gone before any of the message went out; the caller tries a fresh one."""


class Session(smtplib.SMTP):
    """The standard library's client, made safe against a server we do not choose.

    Its socket goes to a checked address, and a reply is bounded in size and, as a whole, in time: the standard
    library waits anew for every byte and keeps as many lines as it is sent.
    """

    def __init__(self, *args: Any, allowed: Networks, **kwargs: Any) -> None:
        self._prepare(allowed)
        super().__init__(*args, **kwargs)

    def _prepare(self, allowed: Networks) -> None:
        self._allowed = allowed
        self._unread = bytearray()
        self.used = False
        """Whether a mail was handed over on it before, so that it may have gone stale since."""
        self.doubtful = False
        """Whether the last conversation ended half-way, so that the next begins with RSET."""
        self.idle_since = time.monotonic()

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return connect_pinned(host, port, timeout, allowed=self._allowed)

    def getreply(self, seconds: float | None = None) -> tuple[int, bytes]:
        """Read one reply (RFC 5321, 4.2).

        Args:
            seconds: the time for the whole of it; the session's time-out unless given.

        Returns:
            its code, -1 when it has none, and its text.

        Raises:
            TimeoutError: it did not come in time; the connection is closed.
            SMTPServerDisconnected: the connection is gone, or the reply was beyond measure.
        """
        deadline = time.monotonic() + (seconds or self.timeout)
        texts: list[bytes] = []
        size = 0
        while True:
            line = self._read_line(deadline)
            size += len(line)
            if size > LONGEST_REPLY:
                self.close()
                raise smtplib.SMTPServerDisconnected("reply too long")
            texts.append(line[4:].strip(b" \t\r\n"))
            if not line[:3].isdigit():
                return -1, b"\n".join(texts)
            if line[3:4] != b"-":
                return int(line[:3]), b"\n".join(texts)

    def _read_line(self, deadline: float) -> bytes:
        while (end := self._unread.find(b"\n")) < 0:
            if len(self._unread) > LONGEST_REPLY:
                self.close()
                raise smtplib.SMTPServerDisconnected("reply too long")
            self._unread += self._receive(deadline)
        line = bytes(self._unread[: end + 1])
        del self._unread[: end + 1]
        return line

    def _receive(self, deadline: float) -> bytes:
        if self.sock is None:
            raise smtplib.SMTPServerDisconnected("not connected")
        try:
            if (seconds := deadline - time.monotonic()) <= 0:
                raise TimeoutError("timed out")  # noqa: TRY301
            if seconds <= (self.sock.gettimeout() or 0) <= seconds + SLACK_SECONDS:
                received = self.sock.recv(4096)
            else:
                self.sock.settimeout(seconds)
                received = self.sock.recv(4096)
                self.sock.settimeout(self.timeout)
        except TimeoutError:
            self.close()
            raise
        except OSError:
            self.close()
            raise smtplib.SMTPServerDisconnected("connection lost") from None
        if not received:
            self.close()
            raise smtplib.SMTPServerDisconnected("connection closed")
        return received

    def send(self, s: Buffer | str) -> None:
        """Write commands, within the session's time-out whatever the last read or write was given."""
        self._limit(self.timeout)
        super().send(s)

    def _limit(self, seconds: float) -> None:
        if self.sock is not None and self.sock.gettimeout() != seconds:
            self.sock.settimeout(seconds)

    def starttls(self, *, context: ssl.SSLContext | None = None) -> tuple[int, bytes]:
        """Begin TLS (RFC 3207), or raise Unavailable: there is no going on in clear."""
        try:
            reply = super().starttls(context=context)
        except smtplib.SMTPServerDisconnected:
            raise
        except (smtplib.SMTPNotSupportedError, smtplib.SMTPResponseException) as error:
            code = getattr(error, "smtp_code", 0)
            error_class: ErrorClass = "throttled" if code in THROTTLED_CODES else "transient"
            raise Unavailable(CLEAR_TEXT, error_class=error_class, account_wide=True) from None
        if self._unread:
            # Bytes sent in clear must not be taken for replies under TLS (CVE-2021-38371 and its kin).
            self.close()
            raise _down(BAD_TLS)
        return reply

    def login(self, user: str, password: str, *, initial_response_ok: bool = True) -> tuple[int, bytes]:
        """Log in (RFC 4954), or raise Unavailable; the server's words on it are not passed on.

        A password crosses networks that the operator does not vouch for under TLS only.
        """
        if not isinstance(self.sock, ssl.SSLSocket) and not self._vouched_for():
            raise Unavailable(CLEAR_PASSWORD, error_class="auth")
        try:
            return super().login(user, password, initial_response_ok=initial_response_ok)
        except smtplib.SMTPServerDisconnected:
            raise
        except smtplib.SMTPException as error:
            code = getattr(error, "smtp_code", 0)
            throttled = code in THROTTLED_CODES
            raise Unavailable(
                THROTTLED if throttled else NOT_LOGGED_IN,
                error_class="throttled" if throttled else "auth",
                code=str(code or ""),
            ) from None

    def _vouched_for(self) -> bool:
        peer = ip_address(self.sock.getpeername()[0]) if self.sock is not None else None
        return peer is not None and any(peer in network for network in self._allowed)

    def alive(self) -> bool:
        """Whether the server still listens; asked only after a pause, a doubt, or words nobody asked for."""
        quiet = not self._unread and not readable(self.sock)
        if quiet and not self.doubtful and time.monotonic() - self.idle_since < IDLE_SECONDS:
            return self.sock is not None
        try:
            self.putcmd("rset")
            code, _ = self.getreply(min(PROBE_SECONDS, self.timeout))
        except OSError:
            return False
        self.doubtful = False
        return code == 250 and not self._unread

    def hand_over(self, mail: Mail, data_timeout: float) -> str:
        """One mail transaction (RFC 5321, 3.3); returns the server's acceptance.

        Raises:
            Rejected, Unavailable: the server said no; the session may be used again.
            Uncertain: the answer to the whole message did not come.
            SMTPServerDisconnected, TimeoutError: the session ended before the message went out.
        """
        self.ehlo_or_helo_if_needed()
        payload = to_wire(mail.content)
        options = [f"size={len(payload)}"] if self.has_extn("size") else []
        if self.has_extn("pipelining"):
            self._ask_at_once(mail, options, data_timeout)
        else:
            self._expect_mail(*self.mail(mail.sender, options))
            _expect(2, "RCPT", *self.rcpt(mail.recipient))
            _expect(3, "DATA", *self.docmd("data"))
        self._send_payload(payload, data_timeout)
        try:
            code, reply = self.getreply(data_timeout)
        except OSError:
            raise Uncertain(UNANSWERED) from None
        if not 200 <= code < 300 and not 400 <= code < 600:
            raise Uncertain(UNANSWERED)
        _expect(2, "DATA", code, reply)
        return _quote(code, reply)

    def _ask_at_once(self, mail: Mail, options: list[str], data_timeout: float) -> None:
        """MAIL, RCPT and DATA in one write, their three replies read after it (RFC 2920, 3.1).

        After a refusal the other replies are read too: the next mail's would be taken for them.
        """
        sender = " ".join([f"MAIL FROM:<{mail.sender}>", *options])
        commands = f"{sender}\r\nRCPT TO:<{mail.recipient}>\r\nDATA\r\n"
        if commands.count("\r") != 3 or commands.count("\n") != 3:
            raise ValueError("There is a line break in an address.")
        self.send(commands.encode("ascii"))
        try:
            self._expect_mail(*self.getreply())
        except Failure as refused:
            self._skip(refused, 2, data_timeout)
            raise
        try:
            _expect(2, "RCPT", *self._next_reply())
        except Failure as refused:
            self._skip(refused, 1, data_timeout)
            raise
        _expect(3, "DATA", *self._next_reply())

    def _next_reply(self) -> tuple[int, bytes]:
        """Another reply to what was written at once.

        A server that does not gather its replies, as RFC 2920 (3.2) wants, may hold each until the one before is
        acknowledged (RFC 896), which Linux puts off for 40 ms.
        """
        if not self._unread and self.sock is not None and hasattr(socket, "TCP_QUICKACK"):
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return self.getreply()

    def _expect_mail(self, code: int, reply: bytes) -> None:
        if code == 421 and self.used:
            # The server is done with this connection, be it idle or worn out, and not yet with us.
            raise smtplib.SMTPServerDisconnected("closing")
        _expect(2, "MAIL", code, reply)

    def _skip(self, refused: Failure, replies: int, data_timeout: float) -> None:
        """Read the replies after a refusal; a server that waits for a message all the same (354) gets none.

        Where it took the sender and refused the one recipient, a dot alone ends what goes to nobody, as RFC 2920 (3.1)
        says. Where it refused the sender it may hold the recipient, and a dot could send him an empty mail; without
        one nothing is sent (RFC 5321, 4.1.1.4), so the connection is closed.
        """
        if refused.code == "421":
            return
        try:
            codes = [self._next_reply()[0] for _ in range(replies)]
            if codes == [354]:
                self.send(b".\r\n")
                codes = [self.getreply(data_timeout)[0]]
        except OSError:
            self.close()
        else:
            if not 400 <= codes[-1] < 600:
                self.close()

    def _send_payload(self, payload: bytes, seconds: float) -> None:
        try:
            if self.sock is None:
                raise smtplib.SMTPServerDisconnected("not connected")
            self._limit(seconds)
            self.sock.sendall(payload)
        except OSError as error:
            # The line with the dot is the last to go, so a server that saw it cannot be at the other end.
            self.close()
            # Hanging up in the middle may be about this mail's size or words; to stop reading is no answer to any mail.
            raise Unavailable(DROPPED, account_wide=isinstance(error, TimeoutError)) from None

    def quit(self) -> tuple[int, bytes]:
        """Say goodbye, without waiting long for an answer."""
        self.timeout = QUIT_SECONDS
        try:
            return super().quit()
        except TimeoutError:
            raise smtplib.SMTPServerDisconnected("no goodbye") from None


class SecureSession(smtplib.SMTP_SSL, Session):
    """The same, with TLS from the start; the certificate is checked against the host's name, not its address."""

    def __init__(self, *args: Any, allowed: Networks, **kwargs: Any) -> None:
        self._prepare(allowed)
        smtplib.SMTP_SSL.__init__(self, *args, **kwargs)


class Connection(EmailBackend):
    """Django's SMTP backend as one kept connection: it opens, secures and logs in; the mail is ours to hand over."""

    connection: Session | None
    _partial_connection: Session | None

    def __init__(self, *, data_timeout: float, allowed: Networks, **options: Any) -> None:
        # Without an alias Django fills in what is missing from its settings: the platform's own password.
        super().__init__(alias="channel", **options)
        self._options = {**options, "data_timeout": data_timeout, "allowed": allowed}
        self._allowed = allowed
        self._data_timeout = data_timeout

    def another(self) -> Self:
        """A connection to the same server, which shares the TLS context: loading certificates takes its time."""
        other = type(self)(**self._options)
        if self.use_tls or self.use_ssl:
            other.__dict__["ssl_context"] = self.ssl_context
        return other

    @property
    def connection_class(self) -> Callable[..., Session]:  # type: ignore[override]
        """What Django calls to connect."""

        def connect(host: str, port: int, **options: Any) -> Session:
            kind = SecureSession if self.use_ssl else Session
            return kind(host, port, allowed=self._allowed, **options)

        return connect

    def hand_over(self, mail: Mail) -> str:
        """Hand one mail over on the kept connection, or on a new one; returns the server's acceptance.

        Raises:
            Stale: the kept connection was gone, nothing was sent, and another call opens a new one.
            Rejected, Unavailable, Uncertain: as `Adapter.send`.
        """
        session = self._kept() or self._connected()
        kept = session.used
        try:
            response = session.hand_over(mail, self._data_timeout)
        except Uncertain:
            self.drop()
            raise
        except Failure as failure:
            session.used = session.doubtful = True
            if failure.code == "421" or session.sock is None:
                self.drop()
            raise
        except smtplib.SMTPServerDisconnected:
            self.drop()
            raise (Stale() if kept else _down(DROPPED)) from None
        except TimeoutError:
            self.drop()
            raise _down(STALLED) from None
        except smtplib.SMTPException as error:
            self.drop()
            raise _unreachable(error) from None
        except BaseException:
            # Whatever cut in, a conversation left in the middle must not be taken up again.
            self.drop()
            raise
        session.used = True
        session.idle_since = time.monotonic()
        return response

    def drop(self) -> None:
        """Close the socket without a word."""
        for session in (self.connection, self._partial_connection):
            if session is not None:
                session.close()
        self.connection = self._partial_connection = None

    def close(self) -> None:
        """Say goodbye if the server still listens, and close."""
        try:
            super().close()
        except OSError:
            pass
        finally:
            self.drop()

    def _kept(self) -> Session | None:
        if self.connection is not None and not self.connection.alive():
            self.drop()
        return self.connection

    def _connected(self) -> Session:
        failure: Failure = _down(UNREACHABLE)
        try:
            self.open()
        except (ForbiddenAddress, Failure, OSError) as error:
            failure = _unreachable(error)
        finally:
            if self.connection is None:
                self.drop()
        if self.connection is None:
            raise failure
        return self.connection


def _unreachable(error: Exception) -> Failure:
    """What a failure to connect means; nothing the far end said is repeated, or ports could be scanned with it."""
    match error:
        case Failure():
            # The frames it came through hold the password.
            error.__context__ = None
            return error.with_traceback(None)
        case ForbiddenAddress():
            return Rejected(str(error))
        case smtplib.SMTPResponseException(smtp_code=code) if code in THROTTLED_CODES:
            return Unavailable(THROTTLED, error_class="throttled", code=str(code))
        case ssl.SSLError():
            return _down(BAD_TLS)
        case socket.gaierror():
            return _down(NOT_FOUND)
    return _down(UNREACHABLE)


def _down(text: str) -> Unavailable:
    """What does not depend on the mail: the server said nothing about it, and will meet the next one likewise.

    That holds for silence and for hanging up before the mail's content went out, too. It may be the one address that
    makes a server do so, but then it answers other mails, and only failures in a row count against the account.
    """
    return Unavailable(text, account_wide=True)


def _expect(first_digit: int, step: str, code: int, reply: bytes) -> None:
    """Raise what a reply means unless its code begins as expected."""
    if code // 100 == first_digit:
        return
    if not 400 <= code < 600:
        raise smtplib.SMTPServerDisconnected("out of step")
    raise refusal(step, code, reply)


def refusal(step: str, code: int, reply: bytes) -> Failure:
    """What a 4xx or 5xx reply to MAIL, RCPT or DATA means (RFC 5321, 4.2)."""
    text = _quote(code, reply)
    if code in AUTH_CODES:
        return Unavailable(text, error_class="auth", code=str(code))
    if code >= 500:
        # A mail has one recipient, so that an enhanced status after its content is about that one, too.
        dead = step != "MAIL" and _dead(text)
        unknown = dead or (step == "RCPT" and _no_such_recipient(code, text))
        error_class: ErrorClass = "invalid_recipient" if unknown else "permanent"
        return Rejected(text, error_class=error_class, code=str(code), dead_address=dead)
    return Unavailable(text, error_class="throttled" if code in THROTTLED_CODES else "transient", code=str(code))


def _no_such_recipient(code: int, text: str) -> bool:
    """Whether a refusal is about the recipient (RFC 3463, 5.1.x) and not about policy (5.7.x), such as relaying."""
    status = ENHANCED_STATUS.match(text)
    if status is None:
        return code in NO_SUCH_RECIPIENT
    return status[1] == "1" or (code in NO_SUCH_RECIPIENT and status[1] != "7")


def _dead(text: str) -> bool:
    """Whether the mailbox or its host does not exist (RFC 3463, 5.1.1, 5.1.2 and 5.1.6; RFC 7505, 5.1.10).

    A bare 550 may be about anything, and is held against the one message only.
    """
    return DEAD_ADDRESS.match(text) is not None


def _quote(code: int, reply: bytes) -> str:
    text = reply.decode("utf-8", "replace").replace("\n", " ")
    if not text.isprintable():
        text = "".join(character for character in text if character.isprintable())
    return f"{code} {text[:200]}".strip()
