"""A web server for tests: it keeps every request, insists on its form, and answers, stalls or hangs up as told."""

import contextlib
import json
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Any, Self

STALL = "stall"
DROP = "drop"
RESET = "reset"

REQUEST_LINE = re.compile(r"([A-Z]+) (/[!-~]*) HTTP/1\.1")
HEADER_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([\x20-\x7e]*)")


class Slowly(bytes):
    """An answer that comes a byte at a time, a hundred a second."""


def answer(status: int = 200, body: bytes = b"", **headers: str) -> bytes:
    """An answer as it is on the wire; `retry_after="120"` is the header Retry-After."""
    named = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"HTTP/1.1 {status} Whatever", *[f"{name}: {value}" for name, value in named.items()]]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode() + body


@dataclass(frozen=True)
class Request:
    """A request as it came; `connection` counts from 0."""

    method: str
    target: str
    headers: dict[str, str]
    """By lower-case name; none comes twice."""
    body: bytes
    connection: int

    @property
    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)


class HTTPServer:
    """Listens on a free loopback port while its `with` block lasts.

    The steps of an exchange are `accept`, `head` (nothing of the body is read yet) and `answer`; a target, such as
    `/gone`, stands for the answers to it. At each the server sends bytes as they are, stalls, hangs up or resets.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.requests: list[Request] = []
        """What came whole, in the order in which it came."""
        self.heads = 0
        """How many requests began."""
        self.connections = 0
        """How many connections were ever made."""
        self.wrong: list[str] = []
        """What was no request as RFC 9112 has it; leaving the block finds none."""
        self._script: dict[str, deque[bytes | str]] = defaultdict(deque)
        self._always: dict[str, bytes | str] = {}
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def url(self, target: str = "/hook", host: str = "127.0.0.1") -> str:
        """Where it is reached."""
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{target}"

    def on(self, step: str, *answers: bytes | str) -> None:
        """Do these at the next occurrences of a step, one each."""
        self._script[step].extend(answers)

    def always(self, step: str, answer: bytes | str) -> None:
        """Do this at every occurrence of a step."""
        self._always[step] = answer

    def hang_up(self, how: str = DROP) -> None:
        """Hang up on everybody, or reset all connections, and wait until it is done."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            if how == RESET:
                _reset(connection)
            _shut(connection)
        assert self.everybody_left()

    def everybody_left(self) -> bool:
        """Whether all connections are closed, now or within five seconds."""
        deadline = time.monotonic() + 5
        while self._open and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self._open

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        assert self.wrong == []

    def stop(self) -> None:
        """Close the port and every connection."""
        self._stopping.set()
        _shut(self._listener)
        with self._lock:
            for connection in self._open:
                _shut(connection)
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
                with self._lock:
                    self._open.append(connection)
                    self.connections += 1
                self._start(self._serve, connection, self.connections - 1)

    def _serve(self, connection: socket.socket, number: int) -> None:
        secured = connection
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._play(connection, self._next("accept"))
            if self.tls:
                # The plain socket stays, to be shut or reset from elsewhere.
                secured = self.tls.wrap_socket(connection.dup(), server_side=True)
            _Conversation(self, secured, number).hold()
        except (OSError, _HangUp):
            pass
        finally:
            if secured is not connection:
                secured.close()
            connection.close()
            with self._lock:
                self._open.remove(connection)

    def _next(self, *steps: str) -> bytes | str | None:
        with self._lock:
            for step in steps:
                if self._script[step]:
                    return self._script[step].popleft()
            return next((self._always[step] for step in steps if step in self._always), None)

    def _play(self, connection: socket.socket, what: bytes | str | None) -> None:
        if what == STALL:
            left = select.poll()
            left.register(connection, select.POLLRDHUP)
            while not self._stopping.is_set() and not left.poll(20):
                pass
            raise _HangUp
        if what == RESET:
            _reset(connection)
        if what in {DROP, RESET}:
            raise _HangUp
        if isinstance(what, Slowly):
            for byte in what:
                connection.sendall(bytes([byte]))
                self._stopping.wait(0.01)
        elif isinstance(what, bytes):
            connection.sendall(what)


class _HangUp(Exception):
    pass


class _Conversation:
    def __init__(self, server: HTTPServer, connection: socket.socket, number: int) -> None:
        self.server = server
        self.connection = connection
        self.number = number
        self.unread = bytearray()

    def hold(self) -> None:
        while True:
            method, target, headers = self.read_head()
            if early := self.server._next("head"):
                self.server._play(self.connection, early)
                # A server that closes with words unread resets the connection, and its answer may be lost.
                self.connection.shutdown(socket.SHUT_WR)
                while self.connection.recv(65536):
                    pass
                raise _HangUp
            body = self.read(int(headers["content-length"]))
            if self.unread:
                self.refuse("more than a request", bytes(self.unread))
            self.server.requests.append(Request(method, target, headers, body, self.number))
            said = self.server._next(target, "answer") or answer()
            self.server._play(self.connection, said)
            if b"connection: close" in said[:2000].lower():
                raise _HangUp

    def read_head(self) -> tuple[str, str, dict[str, str]]:
        while (end := self.unread.find(b"\r\n\r\n")) < 0:
            self.receive()
        self.server.heads += 1
        first, *lines = self.unread[:end].decode("latin-1").split("\r\n")
        del self.unread[: end + 4]
        line = REQUEST_LINE.fullmatch(first)
        named = [HEADER_LINE.fullmatch(line) for line in lines]
        if line is None or None in named:
            self.refuse("no request", f"{first}\r\n{lines}")
        headers = {found[1].lower(): found[2] for found in named}
        if len(headers) < len(named) or not {"host", "content-length"} <= set(headers):
            self.refuse("a header twice, or none", str(lines))
        if "transfer-encoding" in headers or not headers["content-length"].isdigit():
            self.refuse("a body of unknown length", str(lines))
        return line[1], line[2], headers

    def refuse(self, why: str, what: object) -> None:
        self.server.wrong.append(f"{why}: {what!r}")
        raise _HangUp

    def read(self, size: int) -> bytes:
        while len(self.unread) < size:
            self.receive()
        found = bytes(self.unread[:size])
        del self.unread[:size]
        return found

    def receive(self) -> None:
        piece = self.connection.recv(65536)
        if not piece:
            raise _HangUp
        self.unread += piece


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
