"""The bytes of a mail (RFC 5322, RFC 2045) and of its way over the wire (RFC 5321)."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from email.headerregistry import Address, AddressHeader
from email.message import Message
from email.policy import EmailPolicy

from django.core.mail import EmailMultiAlternatives

from notifications.channels.addresses import InvalidAddress, clean_display_name
from notifications.channels.base import Outgoing
from notifications.channels.email import direct
from notifications.channels.email.checks import clean_email, message_id
from notifications.channels.headers import InvalidHeader, check_headers, check_service_headers, check_value

LINE_END = re.compile(r"\r\n|\r|\n")
LINE_END_BYTES = re.compile(rb"\r\n|\r|\n")
LONGEST_TOKEN = 70


class WirePolicy(EmailPolicy):
    """The standard policy, save for two kinds of header that it breaks.

    It turns an ASCII word that does not fit on a line into encoded words (RFC 2047). In List-Unsubscribe nothing
    decodes these, so that one-click unsubscribing (RFC 8058) would fail for every long link. And where it folds a
    quoted name it may lose the quotes, so that `"long name, ceo@bank.test" <a@b.test>` becomes two addresses.
    """

    def _written(self, name: str, value: str) -> str | None:
        if isinstance(value, AddressHeader) and len(value.addresses) == 1:
            (mailbox,) = value.addresses
            return direct.mailbox_header(name, mailbox.display_name, mailbox.addr_spec)
        text = str(value)
        if not (text.isascii() and text.isprintable()) or "=?" in text:
            return None
        if max(map(len, text.split(" "))) <= LONGEST_TOKEN:
            return None
        try:
            return direct.fold(name, text, direct.LONGEST_LINE)
        except direct.Unusual:
            return None

    def fold(self, name: str, value: str) -> str:
        """One header as text, with its line ends."""
        return self._written(name, value) or super().fold(name, value)

    def fold_binary(self, name: str, value: str) -> bytes:
        """One header as bytes, with its line ends."""
        written = self._written(name, value)
        return written.encode("ascii") if written else super().fold_binary(name, value)


# 7 bits, as not every server takes 8BITMIME and the bytes are the same for all.
POLICY: EmailPolicy = WirePolicy(linesep="\r\n", cte_type="7bit", max_line_length=direct.LONGEST_LINE)


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
        composed = compose_under(policy=POLICY)
        if "MIME-Version" not in composed:
            # Missing beside HTML alone, without which readers may show the source (RFC 2045, 4).
            composed["MIME-Version"] = "1.0"
        return composed


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
    return Mail(
        sender=clean_email(message.from_address),
        recipient=clean_email(message.to),
        message_id=message_id(message),
        content=direct.write(message) or write_by_library(message),
    )


def write_by_library(message: Outgoing) -> bytes:
    """The content of any mail, as the standard library writes it; the judge of what `direct` writes.

    Raises:
        ValueError: as `compose`.
    """
    return normalise(django_message(message).message().as_bytes())


def clean_text(text: str) -> str:
    """A body without NUL, its lines ended by LF as the standard library expects."""
    return LINE_END.sub("\n", text.replace("\0", ""))


def normalise(content: bytes) -> bytes:
    """Bytes without NUL whose every line end is CRLF: a lone CR or LF is where SMTP smuggling begins."""
    if b"\0" not in content and content.count(b"\r\n") == content.count(b"\r") == content.count(b"\n"):
        return content
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


__all__ = ["InvalidAddress", "InvalidHeader", "Mail", "compose", "django_message", "message_id", "normalise", "to_wire"]
