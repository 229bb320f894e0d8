"""The checks of `channels.addresses` and `channels.headers`, none left out, but settled at a glance or remembered.

Each function gives what its original gives for the same values, and raises what it raises; an e-mail address is checked
for one thing more. What is remembered depends on the value alone, is bounded, and is the same for whoever asks.
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache

from notifications.channels import addresses, headers
from notifications.channels.addresses import InvalidAddress
from notifications.channels.base import Outgoing
from notifications.channels.headers import InvalidHeader

# A dot-atom (RFC 5322, 3.2.3) without % and !, which `addresses.clean_email` refuses.
LOCAL_PART = re.compile(r"(?=.{1,64}\Z)[A-Za-z0-9_#$&'*+/=?^`{|}~-]+(?:\.[A-Za-z0-9_#$&'*+/=?^`{|}~-]+)*")
LONGEST_AT_A_GLANCE = 128
MESSAGE_ID = re.compile(r"<[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,128}@[A-Za-z0-9.-]{1,120}>")
# In UTF-8 a character takes four bytes at most.
LONGEST_BY_COUNT = headers.LONGEST_VALUE // 4


def clean_email(value: str) -> str:
    """As `addresses.clean_email`: most domains were seen before, and a plain local part is plain to see.

    Raises:
        InvalidAddress: as there, or an encoded word is hidden in it. It has no meaning there (RFC 2047, 5), yet readers
            decode it, the standard library among them: `=?utf-8?q?ceo=40bank.test?=@acme.test` is shown as another's.
    """
    if "=?" in value:
        raise InvalidAddress("Write the address as it is, without =?…?= in it.")
    local, at, domain = value.partition("@")
    if at and len(value) <= LONGEST_AT_A_GLANCE and LOCAL_PART.fullmatch(local):
        cleaned = f"{local}@{_clean_domain(domain)}"
        if len(cleaned) <= LONGEST_AT_A_GLANCE:
            return cleaned
    return addresses.clean_email(value)


def clean_display_name(value: str) -> str:
    """As `addresses.clean_display_name`."""
    # What is printable (`str.isprintable`) is neither a control nor a separator other than the space.
    if value.isprintable() and len(value) <= addresses.LONGEST_NAME and "=?" not in value and "  " not in value:
        return value.strip(" ")
    return addresses.clean_display_name(value)


def check_value(label: str, value: str) -> None:
    """As `headers.check_value`."""
    if not value.isprintable() or len(value) > LONGEST_BY_COUNT:
        headers.check_value(label, value)


def check_headers(given: Mapping[str, str], *, service: bool) -> None:
    """As `headers.check_headers`, or as `headers.check_service_headers` for those that the service adds."""
    for name, value in given.items():
        _check_name(name, service)
        check_value(f"Header {name}", value)
    if len({name.lower() for name in given}) < len(given):
        _original(service)(given)


def message_id(message: Outgoing) -> str:
    """The Message-ID of a message, the same on every attempt.

    Raises:
        InvalidHeader: the one given, or the one made of the reference, is none.
    """
    wanted = message.message_id or f"<{message.reference}@{clean_email(message.from_address).rpartition('@')[2]}>"
    if not MESSAGE_ID.fullmatch(wanted):
        raise InvalidHeader("Message-ID: it must read <letters-and-digits@domain>.")
    return wanted


@lru_cache(maxsize=4096)
def _clean_domain(domain: str) -> str:
    return addresses.clean_email(f"a@{domain}").removeprefix("a@")


@lru_cache(maxsize=1024)
def _check_name(name: str, service: bool) -> None:
    _original(service)({name: ""})


def _original(service: bool) -> Callable[[Mapping[str, str]], None]:
    return headers.check_service_headers if service else headers.check_headers
