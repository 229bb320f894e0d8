"""Addresses as they are stored, sent to and shown: one address, one spelling, nothing hidden in it."""

import re
import unicodedata
from dataclasses import dataclass

import phonenumbers
from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, ValidatedEmail, validate_email

from notifications.channels.headers import BIDI_CONTROLS
from notifications.channels.network import ForbiddenAddress, clean_host

LONGEST_EMAIL = 254
LONGEST_LOCAL_PART = 64
LONGEST_NAME = 100
LONGEST_URL = 2000

DEFAULT_PORTS = {"http": 80, "https": 443}

UNSAFE = frozenset({"Cc", "Cs", "Zl", "Zp"})
# Scripts that are written together (UTS 39, "highly restrictive"); any other mixture may imitate a name.
TOGETHER = (
    {"LATIN", "CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"},
    {"LATIN", "CJK", "BOPOMOFO"},
    {"LATIN", "CJK", "HANGUL"},
)

# The library's own switch for this list is the list. *.localhost is where tenants live on a laptop.
if "localhost" in SPECIAL_USE_DOMAIN_NAMES:
    SPECIAL_USE_DOMAIN_NAMES.remove("localhost")


class InvalidAddress(ValueError):
    """An address or name that cannot be used; the text says what to change."""


def clean_email(value: str) -> str:
    """One e-mail address as an addr-spec (RFC 5322) with its domain in lower-case ASCII (A-labels, RFC 5890).

    Only the syntax is checked: example.com, *.example, *.test and *.localhost (RFC 2606) pass.

    Raises:
        InvalidAddress: anything but one plain address: a display name, two addresses, a quoted or non-ASCII local
            part, a source route (`a%b@c`, `a!b@c`), a control character, more than 254 characters.
    """
    value = value.strip(" ")
    if any(unicodedata.category(character) in UNSAFE for character in value):
        raise InvalidAddress("Remove line breaks and control characters from the address.")
    local, _, _ = value.rpartition("@")
    if not local or any(character in value for character in '<>,;:"()[]\\ ') or "@" in local:
        raise InvalidAddress("Write one address alone, such as name@example.com, without a name or brackets.")
    if not local.isascii():
        raise InvalidAddress("Use only ASCII letters before the @: other addresses cannot be reached by every server.")
    if "=?" in value:
        raise InvalidAddress("Write the address as it is, without =?…?= in it.")
    if "%" in local or "!" in local:
        raise InvalidAddress("Remove % and ! from the address: mail is not routed through other servers.")
    if len(local) > LONGEST_LOCAL_PART:
        raise InvalidAddress(f"Use up to {LONGEST_LOCAL_PART} characters before the @.")
    try:
        checked = _checked(value)
    except EmailNotValidError:
        raise InvalidAddress("This is not an e-mail address. Write it like name@example.com.") from None
    cleaned = f"{local}@{checked.ascii_domain.lower()}"
    if "." not in checked.ascii_domain:
        raise InvalidAddress("Write the address in full, such as name@example.com.")
    if len(cleaned) > LONGEST_EMAIL:
        raise InvalidAddress(f"The address is longer than {LONGEST_EMAIL} characters.")
    return cleaned


def clean_phone(value: str, default_region: str | None = None) -> str:
    """A telephone number in E.164 form, such as +4930901820.

    Args:
        value: the number as somebody typed it; digits of any script.
        default_region: ISO 3166 code of the country meant when there is no +; none means that + is required.

    Raises:
        InvalidAddress: no such number can exist, it has an extension, or calling it costs a premium.
    """
    if any(unicodedata.category(character)[0] in "CL" for character in value):
        raise InvalidAddress("Write the number in digits only, such as +49 30 901820, without an extension.")
    try:
        number = phonenumbers.parse(value, default_region)
    except phonenumbers.NumberParseException:
        raise InvalidAddress("Write the number with its country code, such as +49 30 901820.") from None
    if number.extension or not phonenumbers.is_valid_number(number):
        raise InvalidAddress("There is no such number. Check its country code and its length.")
    if phonenumbers.number_type(number) == phonenumbers.PhoneNumberType.PREMIUM_RATE:
        raise InvalidAddress("This is a premium-rate number, and messages are not sent to those.")
    return str(phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164))


def clean_display_name(value: str) -> str:
    """The name shown beside an address: spaces collapsed, cut to 100 characters.

    Raises:
        InvalidAddress: it has a control character, turns the writing direction, or smuggles an encoded word (RFC 2047).
    """
    if any(unicodedata.category(character) in UNSAFE for character in value) or not BIDI_CONTROLS.isdisjoint(value):
        raise InvalidAddress("Remove line breaks and control characters from the name.")
    if "=?" in value:
        raise InvalidAddress("Write the name as it is read, without =?…?= around it.")
    return re.sub(r"\s+", " ", value).strip()[:LONGEST_NAME].rstrip()


# RFC 3986 without user name and fragment, and nothing that readers take in different ways: no `\`, tab or lone %.
_CHARACTER = r"[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2}"
_URL = re.compile(
    r"(https?)://(\[(?=[0-9A-F.]*:)[0-9A-F:.]+\]|[^\[\]:/?#@\\]+)(?::([0-9]{1,5}))?"
    rf"((?:/(?:{_CHARACTER})*)?)((?:\?(?:{_CHARACTER}|\?)*)?)",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class WebAddress:
    """An http or https URL taken apart; as text it is the one spelling of it."""

    scheme: str
    host: str
    """A name in ASCII, a dotted quad or an IPv6 address without brackets."""
    port: int
    target: str
    """Path and query (RFC 9112, 3.2.1), as they are sent."""

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them (RFC 9110, 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def read_url(value: str) -> WebAddress:
    """Take an http or https URL apart; its host is in lower-case ASCII (A-labels, RFC 5890) afterwards.

    Where it leads is checked when it is connected to, by `channels.network`.

    Raises:
        InvalidAddress: anything but one plain URL (RFC 3986): a user name, a fragment, another scheme, a host in
            disguise (`2130706433`, `127.1`), a control character, more than 2000 characters.
    """
    value = value.strip(" ")
    if len(value) > LONGEST_URL:
        raise InvalidAddress(f"The address is longer than {LONGEST_URL} characters.")
    if any(unicodedata.category(character) in UNSAFE for character in value):
        raise InvalidAddress("Remove line breaks and control characters from the address.")
    if "#" in value:
        raise InvalidAddress("Remove # and what follows it from the address: it is never sent.")
    parts = _URL.fullmatch(value)
    if parts is None:
        if "@" in value.partition("//")[2].partition("/")[0]:
            raise InvalidAddress("Remove the user name and password from the address.")
        raise InvalidAddress(
            "Write an address such as https://hooks.example.com/notify, with anything unusual in it percent-encoded."
        )
    scheme = parts[1].lower()
    port = int(parts[3] or DEFAULT_PORTS[scheme])
    if not 1 <= port <= 65535:
        raise InvalidAddress("There is no such port: use one from 1 to 65535, or none.")
    try:
        host = clean_host(_ascii_host(parts[2]))
    except (EmailNotValidError, ForbiddenAddress):
        raise InvalidAddress("This is no host: write a name such as hooks.example.com.") from None
    address = WebAddress(scheme, host, port, (parts[4] or "/") + parts[5])
    if len(str(address)) > LONGEST_URL:
        raise InvalidAddress(f"The address is longer than {LONGEST_URL} characters.")
    return address


def clean_url(value: str) -> str:
    """An http or https URL in its one spelling: `HTTPS://Straße.example:443` is `https://xn--strae-oqa.example/`.

    Raises:
        InvalidAddress: as `read_url`.
    """
    return str(read_url(value))


def display(address: str) -> str:
    """A stored e-mail address for people to read: the domain in its own script, unless scripts are mixed.

    `a@xn--mnchen-3ya.de` is shown as `a@münchen.de`; a domain that mixes Cyrillic and Latin letters stays in
    punycode, as it may imitate another one. The whole domain counts, its last label too.
    """
    local, _, domain = address.rpartition("@")
    if "xn--" not in domain:
        return address
    try:
        shown = _checked(address).domain
    except EmailNotValidError:
        return address
    scripts = {unicodedata.name(character, "?").split()[0] for character in shown if character.isalpha()}
    if len(scripts) == 1 or any(scripts <= together for together in TOGETHER):
        return f"{local}@{shown}"
    return address


_PHONE_CHANNELS = frozenset({"sms", "whatsapp", "voice"})
_SENDER_ID = re.compile(r"\+?[0-9]{3,15}|(?=.*[A-Za-z])[A-Za-z0-9 ]{1,11}")


def clean_address(channel: str, value: str, *, region: str | None = None) -> str:
    """A recipient's address in the form that the channel stores.

    Args:
        channel: "email", "sms", …
        value: the address as somebody typed it.
        region: the country of phone numbers without its code, such as DE.

    Raises:
        InvalidAddress: the channel cannot reach it.
    """
    if channel == "email":
        return clean_email(value)
    if channel in _PHONE_CHANNELS:
        return clean_phone(value, region)
    if channel == "webhook":
        return clean_url(value)
    return clean_display_name(value)


def clean_sender(channel: str, value: str) -> str:
    """A sender's address.

    For e-mail an e-mail address; for calls and text messages a number with or without +, or a name of up to 11 letters
    and digits; for webhooks any name of 1 to 100 characters, as it is no more than a word in the request.

    Raises:
        InvalidAddress: the channel cannot send from it.
    """
    if channel == "email":
        return clean_email(value)
    if channel in _PHONE_CHANNELS and not _SENDER_ID.fullmatch(value):
        raise InvalidAddress(
            "Write a number such as +4930901820, a short code, or a name of up to 11 letters and digits."
        )
    cleaned = clean_display_name(value)
    if channel == "webhook" and not 1 <= len(value.strip()) <= LONGEST_NAME:
        raise InvalidAddress(f"Write a name of 1 to {LONGEST_NAME} characters, such as acme-notifications.")
    return cleaned


def _checked(address: str) -> ValidatedEmail:
    return validate_email(address, allow_smtputf8=False, check_deliverability=False, test_environment=True)


def _ascii_host(host: str) -> str:
    """A host with its name as A-labels.

    Raises:
        EmailNotValidError: it is not ASCII and no domain either.
    """
    if host.startswith("["):
        return host[1:-1]
    return host if host.isascii() else _checked(f"a@{host}").ascii_domain
