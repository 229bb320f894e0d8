"""A mail server for tests: it keeps every byte it is sent, and at each step answers, stalls or hangs up as told."""

import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import threading
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

STALL = "stall"
DROP = "drop"
END_OF_DATA = b"\r\n.\r\n"

DEFAULTS = {
    "banner": "220 test ready",
    "auth": "235 2.7.0 welcome",
    "mail": "250 2.1.0 ok",
    "rcpt": "250 2.1.5 ok",
    "data": "354 go on",
    "payload": "250 2.0.0 queued as TEST",
    "rset": "250 2.0.0 ok",
    "noop": "250 2.0.0 ok",
    "starttls": "220 2.0.0 go on",
    "quit": "221 2.0.0 bye",
}


@dataclass(frozen=True)
class Taken:
    """A message the server took; `raw` is what was on the wire between DATA's reply and the final dot."""

    sender: str
    recipient: str
    raw: bytes

    @property
    def content(self) -> bytes:
        """The message with the doubled dots taken back."""
        return (b"\r\n" + self.raw).replace(b"\r\n..", b"\r\n.")[2:]


class SMTPServer:
    """Listens on a free loopback port while its `with` block lasts."""

    def __init__(self, *, features: Iterable[str] = (), tls: ssl.SSLContext | None = None, implicit_tls: bool = False):
        self.features = list(features)
        self.tls = tls
        self.implicit_tls = implicit_tls
        self.commands: list[str] = []
        self.taken: list[Taken] = []
        self.received: list[bytearray] = []
        """What each connection sent, in clear or after TLS was taken off, byte for byte."""
        self._script: dict[str, deque[str]] = defaultdict(deque)
        self._always: dict[str, str] = {}
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def on(self, step: str, *answers: str) -> None:
        """Answer the next occurrences of a step with these, one each."""
        self._script[step].extend(answers)

    def always(self, step: str, answer: str) -> None:
        """Answer every occurrence of a step with this."""
        self._always[step] = answer

    def drop_idle(self) -> None:
        """Hang up on everybody."""
        with self._lock:
            for connection in self._open:
                _shut(connection)

    @property
    def connections(self) -> int:
        """How many connections were ever made."""
        return len(self.received)

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        _shut(self._listener)
        self.drop_idle()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()

    def _start(self, target, *args) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with self._listener:
            while not self._stopping.is_set():
                try:
                    connection, _ = self._listener.accept()
                except OSError:
                    return
                self.received.append(bytearray())
                self._start(self._serve, connection, self.received[-1])

    def _serve(self, connection: socket.socket, received: bytearray) -> None:
        conversation = _Conversation(self, connection, received)
        with self._lock:
            self._open.append(connection)
        try:
            conversation.hold()
        except (OSError, _HangUp):
            pass
        finally:
            conversation.connection.close()
            with self._lock:
                self._open.remove(connection)
            connection.close()

    def _answer(self, step: str, otherwise: str = "") -> str:
        script = self._script[step]
        return script.popleft() if script else self._always.get(step, otherwise or DEFAULTS.get(step, "500 what?"))


class _HangUp(Exception):
    pass


class _Conversation:
    def __init__(self, server: SMTPServer, connection: socket.socket, received: bytearray) -> None:
        self.server = server
        self.connection = connection
        self.received = received
        self.unread = bytearray()
        self.secure = False
        self.sender = self.recipient = ""

    def hold(self) -> None:
        if self.server.implicit_tls:
            self.begin_tls()
        self.say("banner")
        while True:
            line = self.read_until(b"\r\n").decode("utf-8", "replace")
            self.server.commands.append(line)
            self.obey(line, line.split(" ")[0].lower())

    def obey(self, line: str, verb: str) -> None:
        if verb == "ehlo":
            self.greet()
        elif verb == "starttls":
            if self.say("starttls").startswith("220"):
                self.begin_tls()
        elif verb == "data":
            if self.say("data", "" if self.recipient else "554 5.5.1 no valid recipients").startswith("354"):
                self.take()
        elif verb == "quit":
            self.say("quit")
            raise _HangUp
        elif verb in {"mail", "rcpt", "rset"}:
            self.address(line, verb)
        else:
            self.say(verb)

    def address(self, line: str, verb: str) -> None:
        refusal = "503 5.5.1 MAIL first" if verb == "rcpt" and not self.sender else ""
        taken = self.say(verb, refusal).startswith("250")
        address = line.partition("<")[2].partition(">")[0] if taken else ""
        if verb == "rcpt":
            self.recipient = address or self.recipient
        else:
            self.sender, self.recipient = address, ""

    def greet(self) -> None:
        features = list(self.server.features)
        if self.server.tls and not self.secure and not self.server.implicit_tls:
            features.append("STARTTLS")
        lines = ["test", *features]
        reply = "".join(f"250-{line}\r\n" for line in lines[:-1]) + f"250 {lines[-1]}"
        self.play(self.server._script["ehlo"].popleft() if self.server._script["ehlo"] else reply)

    def take(self) -> None:
        # The line with the dot may come first: the end of DATA's own line counts for it.
        self.unread[:0] = b"\r\n"
        raw = self.read_until(END_OF_DATA)[2:]
        answer = self.server._answer("payload")
        if answer.startswith("2"):
            # Noted before it is said: whoever hears the answer may look at once.
            self.server.taken.append(Taken(self.sender, self.recipient, bytes(raw) + b"\r\n"))
        self.sender = self.recipient = ""
        self.play(answer)

    def say(self, step: str, otherwise: str = "") -> str:
        return self.play(self.server._answer(step, otherwise))

    def play(self, answer: str) -> str:
        if answer == DROP:
            raise _HangUp
        if answer == STALL:
            self.server._stopping.wait(20)
            raise _HangUp
        self.connection.sendall(answer.encode() + b"\r\n")
        return answer

    def begin_tls(self) -> None:
        assert self.server.tls
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.secure = True

    def read_until(self, end: bytes) -> bytearray:
        while (position := self.unread.find(end)) < 0:
            piece = self.connection.recv(65536)
            if not piece:
                raise _HangUp
            self.received += piece
            self.unread += piece
        found = self.unread[:position]
        del self.unread[: position + len(end)]
        return found


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def server_tls(folder: Path, *names: str) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS with a self-signed certificate for these names, and the file of the certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    alternatives = [
        x509.IPAddress(ipaddress.ip_address(name)) if name[0].isdigit() else x509.DNSName(name) for name in names
    ]
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / "server.pem", folder / "server.key"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_file, key_file)
    return context, certificate_file
