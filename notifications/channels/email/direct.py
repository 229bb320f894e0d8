"""The common mail written as bytes at once, some forty times as fast as through the standard library's objects.

Common is: text, HTML or both, and headers of ASCII or encoded words. What is unusual in any way is left to the standard
library, and what is written here reads like what it would have written: tests/unit/test_fast_mime.py holds them equal.
"""

import os
import re
import time
from binascii import b2a_base64, b2a_qp
from collections.abc import Iterator
from datetime import UTC, datetime
from email.headerregistry import HeaderRegistry
from email.utils import format_datetime
from functools import lru_cache

from notifications.channels.base import Outgoing
from notifications.channels.email.checks import (
    check_headers,
    check_value,
    clean_display_name,
    clean_email,
    message_id,
)

LONGEST_LINE = 78
"""What a line should have at most (RFC 5322, 2.1.1)."""
HARD_LIMIT = 998
"""What a line may have at most, by the same; servers refuse or cut longer ones."""
LONGEST_ENCODED_LINE = 76
"""What a line with an encoded word (RFC 2047, 2) or of an encoded body (RFC 2045, 6.7 and 6.8) may have at most."""

ENCODED_WORD = "=?utf-8?b?{}?="
CHROME = len(ENCODED_WORD) - len("{}")
LEAST_ROOM = 24
ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]*")
# What the standard library reads as more than text: dates, addresses, parameters.
STRUCTURED = frozenset(HeaderRegistry().registry) - {"subject", "message-id"}


class Unusual(Exception):
    """The standard library has to write this mail."""


def write(message: Outgoing) -> bytes | None:
    """The content of a common mail, every line ended by CRLF and none longer than 998 bytes; None for an unusual one.

    Raises:
        ValueError: an address, a name, the subject, a header or a character of the body cannot be sent.
    """
    sender, recipient = clean_email(message.from_address), clean_email(message.to)
    check_value("Subject", message.subject)
    check_headers(message.headers, service=False)
    check_headers(message.service_headers, service=True)
    from_name, to_name = clean_display_name(message.from_name), clean_display_name(message.to_name)
    reply_to = clean_email(message.reply_to) if message.reply_to else ""
    own_id = message_id(message)
    try:
        return "".join(
            (
                text_header("Subject", message.subject),
                sender_header(from_name, sender),
                mailbox_header("To", to_name, recipient),
                mailbox_header("Reply-To", "", reply_to) if reply_to else "",
                date_header(int(time.time())),
                text_header("Message-ID", own_id),
                "Auto-Submitted: auto-generated\r\n",
                *[text_header(name, value) for name, value in {**message.headers, **message.service_headers}.items()],
            )
        ).encode("ascii") + write_bodies(message.text, message.html)
    except Unusual:
        return None


def text_header(name: str, value: str) -> str:
    """A header of free text (RFC 5322, 2.2.1), folded.

    Raises:
        Unusual: white space around it or an encoded word in it, which readers treat each in their own way; it cannot
            be folded; its name promises more than text.
    """
    if "=?" in value or value.strip() != value or name.lower() in STRUCTURED:
        raise Unusual
    if value.isascii():
        line = f"{name}: {value}\r\n"
        return line if len(line) <= LONGEST_LINE + 2 else fold(name, value, LONGEST_LINE)
    return fold(name, encoded_words(value, LONGEST_ENCODED_LINE - len(name) - 2), LONGEST_ENCODED_LINE)


def mailbox_header(name: str, display_name: str, address: str) -> str:
    """A header of one mailbox (RFC 5322, 3.4), checked; its name is atoms, a quoted string or encoded words."""
    limit = LONGEST_LINE
    if not display_name:
        value = address
    elif not display_name.isascii():
        limit = LONGEST_ENCODED_LINE
        value = f"{encoded_words(display_name, limit - len(name) - 2)} <{address}>"
    elif ATOMS.fullmatch(display_name):
        value = f"{display_name} <{address}>"
    else:
        quoted = display_name.replace("\\", "\\\\").replace('"', '\\"')
        value = f'"{quoted}" <{address}>'
    return fold(name, value, limit)


@lru_cache(maxsize=1024)
def sender_header(display_name: str, address: str) -> str:
    """The From header, remembered: a sender writes to many."""
    return mailbox_header("From", display_name, address)


@lru_cache(maxsize=2)
def date_header(seconds: int) -> str:
    """The Date header of a second, in UTC (RFC 5322, 3.3)."""
    return f"Date: {format_datetime(datetime.fromtimestamp(seconds, UTC))}\r\n"


def fold(name: str, value: str, limit: int) -> str:
    """A header in lines of at most `limit` characters where its words permit (RFC 5322, 2.2.3).

    Raises:
        Unusual: a word makes a line of more than 998.
    """
    if len(name) + 2 + len(value) <= limit:
        return f"{name}: {value}\r\n"
    # The first word stays beside the name: a line of white space alone ends the headers for some readers.
    first, *words = value.split(" ")
    lines = [f"{name}: {first}"]
    for word in words:
        # An empty word is one of several spaces, and no line may have nothing else.
        if word and len(lines[-1]) + 1 + len(word) > limit:
            lines.append("")
        lines[-1] += f" {word}"
    if max(map(len, lines)) > HARD_LIMIT:
        raise Unusual
    return "\r\n".join(lines) + "\r\n"


def encoded_words(text: str, room: int) -> str:
    """A text as encoded words of at most 75 characters (RFC 2047), no character torn apart.

    Args:
        text: what to encode; its white space becomes part of the words, as that between words is lost.
        room: the characters left on the first line.

    Raises:
        Unusual: the first line has no room for a word.
    """
    if room < LEAST_ROOM:
        raise Unusual
    return " ".join(ENCODED_WORD.format(b2a_base64(piece, newline=False).decode()) for piece in _pieces(text, room))


def _pieces(text: str, room: int) -> Iterator[bytes]:
    encoded = text.encode()
    start = 0
    while start < len(encoded):
        end = start + (room - CHROME) // 4 * 3
        # Bytes that begin with the bits 10 go on with a character (RFC 3629, 3).
        while end < len(encoded) and encoded[end] & 0xC0 == 0x80:
            end -= 1
        yield encoded[start:end]
        # A continued line begins with a space.
        start, room = end, LONGEST_ENCODED_LINE - 1


def write_bodies(text: str, html: str) -> bytes:
    """The rest of the headers, the empty line and the bodies, the plainest first (RFC 2046, 5.1.4)."""
    if not html:
        return b"MIME-Version: 1.0\r\n" + write_part(b"plain", text)
    parts = [write_part(b"plain", text)] if text else []
    parts.append(write_part(b"html", html))
    boundary = new_boundary()
    while any(boundary in part for part in parts):
        boundary = new_boundary()
    return b"".join(
        (
            b'MIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary="%s"\r\n\r\n' % boundary,
            *[b"--%s\r\n%s\r\n" % (boundary, part) for part in parts],
            b"--%s--\r\n" % boundary,
        )
    )


def write_part(kind: bytes, text: str) -> bytes:
    """One body with its headers, in an encoding that a 7-bit server takes (RFC 2045, 6)."""
    encoding, encoded = encode_body(clean_body(text))
    return b'Content-Type: text/%s; charset="utf-8"\r\nContent-Transfer-Encoding: %s\r\n\r\n%s' % (
        kind,
        encoding,
        encoded,
    )


def clean_body(text: str) -> str:
    """A body without NUL, every line ended by CRLF, the last one too: `b2a_qp` passes a lone CR as it is."""
    if "\0" in text:
        text = text.replace("\0", "")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return (text if text.endswith("\n") else f"{text}\n").replace("\n", "\r\n")


def encode_body(text: str) -> tuple[bytes, bytes]:
    """The name of the encoding and the body in it; dots at line starts are left to `to_wire`."""
    body = text.encode()
    if len(body) == len(text) and max(map(len, text.split("\r\n"))) <= LONGEST_LINE:
        return b"7bit", body
    # A byte beyond ASCII becomes three in quoted-printable, and any three bytes four in base64: equal at one in six,
    # which is one character in twelve bytes where a character has two. The standard library tries the first ten lines.
    if (len(body) - len(text)) * 12 <= len(body):
        quoted = b2a_qp(body)
        # `b2a_qp` makes a line of 77 where it writes the space at its end as =20.
        if max(map(len, quoted.split(b"\r\n"))) <= LONGEST_ENCODED_LINE:
            return b"quoted-printable", quoted
    encoded = b2a_base64(body, newline=False)
    lines = [encoded[at : at + LONGEST_ENCODED_LINE] for at in range(0, len(encoded), LONGEST_ENCODED_LINE)]
    return b"base64", b"\r\n".join([*lines, b""])


def new_boundary() -> bytes:
    """A line that no encoded body has (RFC 2045, 6.7: `=_`) and nobody can guess."""
    return b"=_%s" % os.urandom(12).hex().encode()
