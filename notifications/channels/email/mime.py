"""The bytes of a mail (RFC 5322, RFC 2045) and of its way over the wire (RFC 5321)."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from email.headerregistry import Address
from email.message import Message
from email.policy import EmailPolicy

from django.core.mail import EmailMultiAlternatives

from notifications.channels.addresses import InvalidAddress, clean_display_name, clean_email
from notifications.channels.base import Outgoing
from notifications.channels.headers import InvalidHeader, check_headers, check_service_headers, check_value

LINE_END = re.compile(r"\r\n|\r|\n")
LINE_END_BYTES = re.compile(rb"\r\n|\r|\n")
LONGEST_LINE = 78
LONGEST_TOKEN = 70
MESSAGE_ID = re.compile(r"<[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,128}@[A-Za-z0-9.-]{1,120}>")


class WirePolicy(EmailPolicy):
    """The standard policy, save that a long ASCII word stays as it is.

    The standard one turns a word that does not fit on a line into encoded words (RFC 2047). In List-Unsubscribe
    nothing decodes these, so that one-click unsubscribing (RFC 8058) would fail for every long link.
    """

    def _plain(self, name: str, value: str) -> str | None:
        text = str(value)
        words = text.split(" ")
        if not (text.isascii() and text.isprintable()) or "=?" in text or max(map(len, words)) <= LONGEST_TOKEN:
            return None
        lines = [f"{name}:"]
        for word in words:
            # The first word stays beside the name: a line of white space alone ends the headers for some readers.
            if len(lines[-1]) + 1 + len(word) > LONGEST_LINE and lines != [f"{name}:"] and word:
                lines.append("")
            lines[-1] += f" {word}"
        return "".join(f"{line}\r\n" for line in lines)

    def fold(self, name: str, value: str) -> str:
        """One header as text, with its line ends."""
        return self._plain(name, value) or super().fold(name, value)

    def fold_binary(self, name: str, value: str) -> bytes:
        """One header as bytes, with its line ends."""
        plain = self._plain(name, value)
        return plain.encode("ascii") if plain else super().fold_binary(name, value)


# 7 bits, as not every server takes 8BITMIME and the bytes are the same for all.
POLICY: EmailPolicy = WirePolicy(linesep="\r\n", cte_type="7bit", max_line_length=LONGEST_LINE)


@dataclass(frozen=True, slots=True)
class Mail:
    """A composed mail and its envelope; addresses are plain ASCII addr-specs."""

    sender: str
    recipient: str
    message_id: str
    content: bytes
    """Headers and body, every line ended by CRLF, not yet dot-stuffed."""


class ChannelMessage(EmailMultiAlternatives):
    """Django's message, composed under our policy whichever backend asks."""

    def message(self, *, policy: EmailPolicy = POLICY) -> Message:  # type: ignore[override]  # noqa: ARG002
        """The message object; the policy a backend asks for is ours already, only stricter."""
        compose_under: Callable[..., Message] = super().message
        return compose_under(policy=POLICY)


def django_message(message: Outgoing) -> EmailMultiAlternatives:
    """A message as Django's backends take it: every header and address checked.

    Raises:
        InvalidAddress: an address or a name beside it cannot be used.
        InvalidHeader: the subject or a header may not be sent.
    """
    sender, recipient = clean_email(message.from_address), clean_email(message.to)
    check_value("Subject", message.subject)
    check_headers(message.headers)
    check_service_headers(message.service_headers)
    mail = ChannelMessage(
        subject=message.subject,
        body=clean_text(message.text),
        from_email=_mailbox(message.from_name, sender),
        to=[_mailbox(message.to_name, recipient)],
        reply_to=[clean_email(message.reply_to)] if message.reply_to else None,
        headers={
            "Message-ID": message_id(message),
            "Auto-Submitted": "auto-generated",
            **message.headers,
            **message.service_headers,
        },
    )
    if message.html:
        mail.attach_alternative(clean_text(message.html), "text/html")
    return mail


def compose(message: Outgoing) -> Mail:
    """The bytes of a mail and its envelope.

    Raises:
        ValueError: an address, a name, the subject, a header or a character of the body cannot be sent.
    """
    content = django_message(message).message().as_bytes()
    return Mail(
        sender=clean_email(message.from_address),
        recipient=clean_email(message.to),
        message_id=message_id(message),
        content=normalise(content),
    )


def message_id(message: Outgoing) -> str:
    """The Message-ID of a message, the same on every attempt.

    Raises:
        InvalidHeader: the one given, or the one made of the reference, is none.
    """
    wanted = message.message_id or f"<{message.reference}@{clean_email(message.from_address).rpartition('@')[2]}>"
    if not MESSAGE_ID.fullmatch(wanted):
        raise InvalidHeader("Message-ID: it must read <letters-and-digits@domain>.")
    return wanted


def clean_text(text: str) -> str:
    """A body without NUL, its lines ended by LF as the standard library expects."""
    return LINE_END.sub("\n", text.replace("\0", ""))


def normalise(content: bytes) -> bytes:
    """Bytes without NUL whose every line end is CRLF: a lone CR or LF is where SMTP smuggling begins."""
    return LINE_END_BYTES.sub(b"\r\n", content.replace(b"\0", b""))


def to_wire(content: bytes) -> bytes:
    """What follows DATA (RFC 5321, 4.5.2): normalised, dots doubled at line starts, ended by a line of one dot."""
    lines = normalise(content)
    if not lines.endswith(b"\r\n"):
        lines += b"\r\n"
    stuffed = lines.replace(b"\r\n.", b"\r\n..")
    return (b"." if stuffed.startswith(b".") else b"") + stuffed + b".\r\n"


def _mailbox(name: str, address: str) -> str:
    local, _, domain = address.rpartition("@")
    return str(Address(display_name=clean_display_name(name), username=local, domain=domain))


__all__ = ["InvalidAddress", "InvalidHeader", "Mail", "compose", "django_message", "normalise", "to_wire"]
