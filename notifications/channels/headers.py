"""Headers and file names that senders may add to a mail (RFC 5322, RFC 2183)."""

import re
import unicodedata
from collections.abc import Mapping

NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
LONGEST_VALUE = 998

RESERVED = frozenset(
    {
        "from",
        "to",
        "cc",
        "bcc",
        "sender",
        "reply-to",
        "subject",
        "date",
        "message-id",
        "return-path",
        "received",
        "received-spf",
        "authentication-results",
        "domainkey-signature",
        "auto-submitted",
        "delivered-to",
        "apparently-to",
        "errors-to",
        "return-receipt-to",
        "disposition-notification-to",
        "x-smtpapi",
    }
)
# Who sent it, how it is built, and the switches of providers: a sender who set these would speak as the service.
RESERVED_PREFIXES = (
    "arc-",
    "bimi-",
    "content-",
    "dkim-",
    "list-unsubscribe",
    "mime-",
    "resent-",
    "x-mailgun-",
    "x-mandrill-",
    "x-mc-",
    "x-mj-",
    "x-msys-",
    "x-pm-",
    "x-ses-",
)
SERVICE_PREFIX = "list-unsubscribe"

LONGEST_FILE_NAME = 200
BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class InvalidHeader(ValueError):
    """A header or file name that may not be sent; the text says what to change."""


def check_value(label: str, value: str) -> None:
    """Raise InvalidHeader when a text is not one header line: CR, LF, NUL, another control character, too long."""
    if any(unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} for character in value):
        raise InvalidHeader(f"{label}: remove line breaks and control characters.")
    if len(value.encode()) > LONGEST_VALUE:
        raise InvalidHeader(f"{label}: shorten it to {LONGEST_VALUE} bytes.")


def check_header(name: str, value: str) -> None:
    """Raise InvalidHeader unless a sender may add this header."""
    _check_name(name)
    lower = name.lower()
    if lower in RESERVED or lower.startswith(RESERVED_PREFIXES):
        raise InvalidHeader(f"Header {name}: it is set by the service and cannot be given.")
    check_value(f"Header {name}", value)


def check_headers(headers: Mapping[str, str]) -> None:
    """Raise InvalidHeader for the first header that a sender may not add, and for one given twice."""
    for name, value in headers.items():
        check_header(name, value)
    _check_once(headers)


def check_service_headers(headers: Mapping[str, str]) -> None:
    """As `check_headers`, for what the service adds by itself: List-Unsubscribe and its companion pass too."""
    for name, value in headers.items():
        if name.lower().startswith(SERVICE_PREFIX):
            _check_name(name)
            check_value(f"Header {name}", value)
        else:
            check_header(name, value)
    _check_once(headers)


def check_attachment_name(name: str) -> None:
    """Raise InvalidHeader unless a file name is plain: no path, no control character, nothing that hides its end."""
    if not name.strip() or len(name) > LONGEST_FILE_NAME:
        raise InvalidHeader(f"File name: give one of 1 to {LONGEST_FILE_NAME} characters.")
    check_value("File name", name)
    if "/" in name or "\\" in name or name.startswith("."):
        raise InvalidHeader("File name: give the name alone, without a path or a leading dot.")
    if not BIDI_CONTROLS.isdisjoint(name):
        raise InvalidHeader("File name: remove the characters that turn the writing direction.")


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise InvalidHeader("Header name: use 1 to 64 of the letters A-Z, digits and hyphens.")


def _check_once(headers: Mapping[str, str]) -> None:
    if len({name.lower() for name in headers}) < len(headers):
        raise InvalidHeader("Headers: the same name is given twice.")
