"""A mail server that takes everything: `python -m tests.benchmarks.sink PORT`.

Options make it answer later, note when each mail arrived, or never answer at all. SIGTERM ends it.
"""

import argparse
import asyncio
import signal
import time
from typing import TextIO

GREETING = b"220 sink ESMTP\r\n"
FEATURES = b"250-sink\r\n250-PIPELINING\r\n250-SIZE 52428800\r\n250 8BITMIME\r\n"
END_OF_DATA = b"\r\n.\r\n"


class Sink(asyncio.Protocol):
    """One connection."""

    taken = 0

    def __init__(self, options: argparse.Namespace, stamps: TextIO | None) -> None:
        self.options, self.stamps = options, stamps
        self.unread = b""
        self.in_data = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, unless told to stall."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.answer(GREETING)

    def data_received(self, data: bytes) -> None:
        """Answer all whole commands and mails."""
        self.unread += data
        while self.take_mail() if self.in_data else self.take_command():
            pass

    def take_command(self) -> bool:
        line, newline, rest = self.unread.partition(b"\r\n")
        if not newline:
            return False
        self.unread = rest
        match line[:4].upper():
            case b"EHLO":
                self.answer(FEATURES)
            case b"DATA":
                # An empty mail's dot follows this very line: its end is found as any other's.
                self.unread, self.in_data = b"\r\n" + rest, True
                self.answer(b"354 go on\r\n")
            case b"QUIT":
                self.answer(b"221 bye\r\n")
                self.transport.close()
            case _:
                self.answer(b"250 ok\r\n")
        return True

    def take_mail(self) -> bool:
        _, end, rest = self.unread.partition(END_OF_DATA)
        if not end:
            return False
        self.unread, self.in_data = rest, False
        if self.stamps is not None:
            self.stamps.write(f"{time.monotonic():.6f}\n")
            self.stamps.flush()
        Sink.taken += 1
        slow = self.options.slow_every and Sink.taken % self.options.slow_every == 0
        seconds = (self.options.slow_ms if slow else self.options.latency_ms) / 1000
        if seconds:
            asyncio.get_running_loop().call_later(seconds, self.answer, b"250 2.0.0 taken\r\n")
        else:
            self.answer(b"250 2.0.0 taken\r\n")
        return True

    def answer(self, reply: bytes) -> None:
        if not self.options.stall and not self.transport.is_closing():
            self.transport.write(reply)


async def serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    stamps = open(options.stamps, "w", encoding="ascii") if options.stamps else None  # noqa: ASYNC230, PTH123, SIM115
    server = await loop.create_server(lambda: Sink(options, stamps), "127.0.0.1", options.port, backlog=512)
    async with server:
        await ended.wait()


def main() -> None:
    """Read the options, serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="how much later a mail is answered")
    parser.add_argument("--slow-every", type=int, default=0, help="every so many mails, one takes --slow-ms")
    parser.add_argument("--slow-ms", type=float, default=0.0)
    parser.add_argument("--stamps", help="a file that gets each mail's arrival, in monotonic seconds")
    parser.add_argument("--stall", action="store_true", help="accept connections and say nothing")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
