"""Providers that do as an address tells them: `python -m tests.faults.providers smtp PORT RECEIPTS`.

The recipient's name, or the path of a webhook, is `key` or `key+steps`: what to do at its first attempt, its second,
and so on, with a dot between them, and to take it from then on. A last step with `_` is done for ever.

    450       refuse so, once the whole message is there        s20   with Retry-After of so many seconds: 429s20
    r450      refuse so at RCPT (SMTP)                           d20   with Retry-After as that date: 429d20
    w300      take it after so many milliseconds                 taken take it, and hang up without an answer
    hup       hang up before anything of it is there             lost  forget it, and hang up without an answer
    stall     take it and never answer                           t500  take it, and answer that it failed

Each attempt is noted in RECEIPTS, a line of JSON each, before it is answered. SIGUSR1 takes the provider down, SIGUSR2
up again, SIGTERM ends it.
"""

import argparse
import asyncio
import contextlib
import email
import json
import os
import re
import signal
import ssl
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

from tests.faults.ledger import content_hash

FEATURES = ("PIPELINING", "SIZE 52428800", "8BITMIME")
ANSWERS = {b"AUTH": "535 5.7.8 wrong user name or password", b"QUIT": "221 2.0.0 bye"}
END_OF_DATA = b"\r\n.\r\n"
MOST_BYTES = 64 * 1024 * 1024
STEP = re.compile(r"(?P<taken>t?)(?P<code>[245]\d\d)(?:(?P<after>[sd])(?P<seconds>\d+))?")


class HangUp(Exception):
    """The provider closes the connection."""


class Provider:
    """What all conversations of a provider share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.attempts: Counter[str] = Counter()
        self.noted = 0
        self.down = False
        self.connections: set[asyncio.StreamWriter] = set()
        self._receipts = os.open(options.receipts, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def step(self, name: str) -> str:
        """What to do with this attempt for a recipient; '' is to take it."""
        steps = name.partition("+")[2].split(".")
        number = self.attempts[name]
        self.attempts[name] += 1
        if number < len(steps):
            return steps[number].removesuffix("_")
        return steps[-1][:-1] if steps[-1].endswith("_") else ""

    def note(self, *, to: str, sender: str, reference: str, content: str, taken: bool, answer: str) -> None:
        """Write an attempt down, in one write, so that nothing cuts it in two."""
        self.noted += 1
        line = {
            "seq": self.noted,
            "at": time.time(),
            "to": to,
            "sender": sender,
            "id": reference,
            "sha": content,
            "taken": taken,
            "answer": answer,
        }
        os.write(self._receipts, json.dumps(line).encode() + b"\n")

    async def hold(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until somebody hangs up."""
        self.connections.add(writer)
        try:
            await self.converse(reader, writer)
        except (HangUp, OSError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
            pass
        finally:
            self.connections.discard(writer)
            with contextlib.suppress(Exception):
                writer.transport.abort() if self.down else writer.close()

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Speak the protocol."""
        raise NotImplementedError

    async def stall(self, reader: asyncio.StreamReader) -> None:
        """Say nothing until the other end gives up."""
        while await reader.read(65536):
            pass
        raise HangUp


class SMTP(Provider):
    """Takes e-mails."""

    tls: ssl.SSLContext | None = None

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Speak SMTP (RFC 5321) with pipelining."""
        await self.greet(reader, writer)
        sender = recipient = step = ""
        while line := await reader.readline():
            if self.down:
                raise HangUp
            verb = line[:4].upper()
            if verb == b"EHLO":
                await self.tell_features(writer)
            elif verb == b"STAR" and self.tls:
                await self.say(writer, "220 2.0.0 go on")
                await writer.start_tls(self.tls)
            elif verb == b"MAIL":
                sender, recipient = _address(line), ""
                await self.say(writer, "250 2.1.0 ok")
            elif verb == b"RCPT":
                recipient = _address(line)
                step = self.step(recipient.partition("@")[0])
                if not await self.allow(writer, sender, recipient, step):
                    recipient = ""
            elif verb == b"DATA":
                if not recipient:
                    await self.say(writer, "554 5.5.1 no valid recipients")
                    continue
                await self.say(writer, "354 go on")
                await self.take(reader, writer, sender, recipient, step)
                sender = recipient = step = ""
            else:
                await self.say(writer, ANSWERS.get(verb, "250 2.0.0 ok"))

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Say who is there, or nothing."""
        if self.options.mode == "mute":
            await self.stall(reader)
        await self.say(writer, "421 4.3.2 not now" if self.options.mode == "busy" else "220 faults ESMTP")

    async def tell_features(self, writer: asyncio.StreamWriter) -> None:
        """Answer EHLO."""
        more = {"self-signed": ["STARTTLS"], "no-auth": ["AUTH PLAIN LOGIN"]}.get(self.options.mode, [])
        *lines, last = ["faults", *FEATURES, *more]
        for feature in lines:
            await self.say(writer, f"250-{feature}")
        await self.say(writer, f"250 {last}")

    async def allow(self, writer: asyncio.StreamWriter, sender: str, recipient: str, step: str) -> bool:
        """Answer RCPT; whether the recipient is taken."""
        if step == "hup":
            raise HangUp
        if step.startswith("r"):
            self.note(to=recipient, sender=sender, reference="", content="", taken=False, answer=step)
            await self.say(writer, _reply(step[1:]))
            return False
        await self.say(writer, "250 2.1.5 ok")
        return True

    async def take(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sender: str, recipient: str, step: str
    ) -> None:
        """Read the mail, note it, and answer as told."""
        raw = await reader.readuntil(END_OF_DATA)
        mail = email.message_from_bytes((b"\r\n" + raw).replace(b"\r\n..", b"\r\n.")[2 : -len(END_OF_DATA)])
        text = next((part for part in mail.walk() if part.get_content_type() == "text/plain"), mail)
        body = text.get_payload(decode=True)
        content = content_hash(str(mail["Subject"]), body.decode("utf-8", "replace") if isinstance(body, bytes) else "")
        reference = str(mail["Message-ID"]).strip("<>").partition("@")[0]
        code = STEP.fullmatch(step)
        taken = step != "lost" and (code is None or bool(code["taken"]))
        self.note(to=recipient, sender=sender, reference=reference, content=content, taken=taken, answer=step or "250")
        if step in {"taken", "lost"}:
            raise HangUp
        if step == "stall":
            await self.stall(reader)
        await _wait(step, self.options.delay_ms)
        await self.say(writer, _reply(code["code"]) if code else "250 2.0.0 taken")
        if code and code["code"] == "421":
            raise HangUp

    async def say(self, writer: asyncio.StreamWriter, reply: str) -> None:
        """Answer a line."""
        writer.write(reply.encode() + b"\r\n")
        await writer.drain()


class HTTP(Provider):
    """Takes webhooks."""

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Speak HTTP/1.1 (RFC 9112), a request after the other."""
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            if self.down:
                raise HangUp
            first, *lines = head.split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            name = first.split(" ")[1].lstrip("/")
            step = self.step(name)
            if step == "hup":
                raise HangUp
            content: dict[str, Any] = json.loads(await reader.readexactly(int(headers["content-length"])))
            code = STEP.fullmatch(step)
            taken = step != "lost" and (code is None or bool(code["taken"]))
            self.note(
                to=f"http://127.0.0.1:{self.options.port}/{name}",
                sender=content["from"],
                reference=headers["idempotency-key"],
                content=content_hash(content["subject"], content["text"]),
                taken=taken,
                answer=step or "200",
            )
            if step in {"taken", "lost"}:
                raise HangUp
            if step == "stall":
                await self.stall(reader)
            await _wait(step, self.options.delay_ms)
            writer.write(_http_answer(code))
            await writer.drain()


def _address(line: bytes) -> str:
    return line.decode("utf-8", "replace").partition("<")[2].partition(">")[0]


def _reply(code: str) -> str:
    return f"{code} {code[0]}.1.1 as the address told" if code == "550" else f"{code} {code[0]}.3.0 as the address told"


async def _wait(step: str, delay_ms: float) -> None:
    told = int(step[1:]) if step.startswith("w") else delay_ms
    if told:
        await asyncio.sleep(told / 1000)


def _http_answer(code: re.Match[str] | None) -> bytes:
    status = code["code"] if code else "200"
    lines = [f"HTTP/1.1 {status} As told", "Content-Length: 0", f"Date: {formatdate(usegmt=True)}"]
    if code and code["after"] == "s":
        lines.append(f"Retry-After: {code['seconds']}")
    elif code and code["after"] == "d":
        lines.append(f"Retry-After: {formatdate(time.time() + int(code['seconds']), usegmt=True)}")
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


@contextlib.contextmanager
def _own_certificate() -> Iterator[ssl.SSLContext]:
    from tests.smtp_server import server_tls

    with tempfile.TemporaryDirectory() as folder:
        yield server_tls(Path(folder), "localhost", "127.0.0.1")[0]


async def serve(provider: Provider) -> None:
    """Serve until SIGTERM."""
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    ended = False

    def end() -> None:
        nonlocal ended
        ended = True
        changed.set()

    def turn(down: bool) -> None:
        provider.down = down
        changed.set()

    loop.add_signal_handler(signal.SIGTERM, end)
    loop.add_signal_handler(signal.SIGUSR1, turn, True)
    loop.add_signal_handler(signal.SIGUSR2, turn, False)
    while not ended:
        if provider.down:
            for writer in list(provider.connections):
                writer.transport.abort()
            await changed.wait()
        else:
            options = provider.options
            server = await asyncio.start_server(
                provider.hold, "127.0.0.1", options.port, backlog=512, limit=MOST_BYTES, reuse_address=True
            )
            await changed.wait()
            server.close()
        changed.clear()


def main() -> None:
    """Read the options, serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["smtp", "http"])
    parser.add_argument("port", type=int)
    parser.add_argument("receipts", type=Path)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="how much later each message is answered")
    parser.add_argument(
        "--mode",
        default="",
        choices=["", "mute", "busy", "no-auth", "self-signed"],
        help="mute: no greeting; busy: 421 for one; no-auth: no password is right; self-signed: STARTTLS with that",
    )
    options = parser.parse_args()
    if options.kind == "http":
        asyncio.run(serve(HTTP(options)))
        return
    provider = SMTP(options)
    if options.mode == "self-signed":
        with _own_certificate() as provider.tls:
            asyncio.run(serve(provider))
        return
    asyncio.run(serve(provider))


if __name__ == "__main__":
    main()
