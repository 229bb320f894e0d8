"""Addresses as they are stored, sent to and shown: one address, one spelling, nothing hidden in it."""

import re
import unicodedata

import phonenumbers
from email_validator import SPECIAL_USE_DOMAIN_NAMES, EmailNotValidError, ValidatedEmail, validate_email

from notifications.channels.headers import BIDI_CONTROLS

LONGEST_EMAIL = 254
LONGEST_LOCAL_PART = 64
LONGEST_NAME = 100

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
    return clean_display_name(value)


def clean_sender(channel: str, value: str) -> str:
    """A sender's address: an e-mail address, a number with or without +, or a name of up to 11 letters and digits.

    Raises:
        InvalidAddress: the channel cannot send from it.
    """
    if channel == "email":
        return clean_email(value)
    if channel in _PHONE_CHANNELS and not _SENDER_ID.fullmatch(value):
        raise InvalidAddress(
            "Write a number such as +4930901820, a short code, or a name of up to 11 letters and digits."
        )
    return clean_display_name(value)


def _checked(address: str) -> ValidatedEmail:
    return validate_email(address, allow_smtputf8=False, check_deliverability=False, test_environment=True)
