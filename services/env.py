"""Typed readers of the environment: the only way a setting comes in.

Every reader takes the variable's name. A secret may also be given as a file: where `NAME` is not
set, `NAME_FILE` names a file whose content is the value (Docker and Kubernetes mount secrets so).
"""

import ipaddress
import os
from email.utils import parseaddr
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from cryptography.fernet import Fernet

_MISSING = object()
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off", ""}


class SettingsError(Exception):
    """A setting is missing or unreadable; the message is one line that names it and the remedy."""


def text(name: str, default: Any = _MISSING) -> str:
    """The variable's text; without a default it is required.

    Raises:
        SettingsError: it is required and not set.
    """
    value = os.environ.get(name)
    if value is not None:
        return value
    if default is _MISSING:
        raise SettingsError(f"{name} is not set: set it in the environment (.env.example says what it means)")
    return str(default)


def secret(name: str, default: Any = _MISSING) -> str:
    """As `text`, or the content of the file that `NAME_FILE` names, without the white space around it.

    Raises:
        SettingsError: neither is set, or the file cannot be read.
    """
    path = os.environ.get(f"{name}_FILE")
    if name in os.environ or not path:
        value = text(name, "" if default is _MISSING else default)
        if not value and default is _MISSING:
            raise SettingsError(f"{name} is not set: set it, or name a file that holds it in {name}_FILE")
        return value
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"{name}_FILE cannot be read: {error.strerror}: {path}") from error


def flag(name: str, default: bool) -> bool:
    """True for 1, true, yes, on; False for 0, false, no, off and the empty text.

    Raises:
        SettingsError: the value is none of these.
    """
    value = text(name, "1" if default else "0").strip().lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise SettingsError(f"{name} must be 1 or 0, not {value!r}")


def integer(name: str, default: int) -> int:
    """A whole number.

    Raises:
        SettingsError: the value is not one.
    """
    value = text(name, default)
    try:
        return int(value)
    except ValueError:
        raise SettingsError(f"{name} must be a whole number, not {value!r}") from None


def words(name: str, default: str = "") -> list[str]:
    """The parts of a comma-separated list, without empty ones."""
    return [part.strip() for part in text(name, default).split(",") if part.strip()]


def secret_words(name: str) -> list[str]:
    """A required comma-separated list of secrets (see `secret`).

    Raises:
        SettingsError: it is missing or empty.
    """
    found = [part.strip() for part in secret(name).split(",") if part.strip()]
    if not found:
        raise SettingsError(f"{name} is empty: give at least one value")
    return found


def fernet_keys(name: str) -> list[str]:
    """A required comma-separated list of Fernet keys.

    Raises:
        SettingsError: it is missing, or one is no such key.
    """
    found = secret_words(name)
    for number, key in enumerate(found, start=1):
        try:
            Fernet(key)
        except ValueError:
            raise SettingsError(f"{name}: key {number} is no Fernet key (.env.example says how to make one)") from None
    return found


def mailbox(name: str, default: str) -> str:
    """A sender: an e-mail address, alone or as `Name <address>`; empty where the default is empty and nothing is set.

    Raises:
        SettingsError: it is neither.
    """
    value = text(name, default)
    address = parseaddr(value)[1]
    if value and ("@" not in address or any(character in address for character in " \r\n")):
        raise SettingsError(f"{name} must be an address such as no-reply@example.com or Name <no-reply@example.com>")
    return value


def integers(name: str, default: str) -> list[int]:
    """Whole numbers from a comma-separated list; a JSON list is read too.

    Raises:
        SettingsError: a part is not a whole number.
    """
    try:
        return [int(part) for part in text(name, default).strip("[] ").split(",") if part.strip()]
    except ValueError:
        raise SettingsError(f"{name} must be whole numbers with commas between, such as {default}") from None


def choice(name: str, default: str, allowed: list[str]) -> str:
    """One of the allowed words.

    Raises:
        SettingsError: the value is none of them.
    """
    value = text(name, default)
    if value not in allowed:
        raise SettingsError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
    return value


def networks(name: str) -> list[str]:
    """IP networks in CIDR form from a comma-separated list, such as `10.1.0.0/16`.

    Raises:
        SettingsError: a part is not a network.
    """
    found = words(name)
    try:
        for part in found:
            ipaddress.ip_network(part)
    except ValueError as error:
        raise SettingsError(f"{name} must be networks such as 10.1.0.0/16 with commas between: {error}") from None
    return found


def database(name: str) -> dict[str, Any]:
    """Django's connection settings from `postgresql://user:password@host:port/name?option=value`.

    A Unix socket is given as `?host=/folder`. Other query values become options of the driver.

    Raises:
        SettingsError: the value is missing or not such an address.
    """
    address = secret(name)
    # What cannot be read may be a part of the password: no error quotes the address, nor is caused by one that does.
    unreadable = SettingsError(
        f"{name} cannot be read: percent-encode what is special in user and password (/ is %2F, : is %3A, @ is %40)"
    )
    try:
        url = urlsplit(address)
        port = url.port
    except ValueError:
        raise unreadable from None
    if "@" in url.path + url.fragment:
        raise unreadable
    if url.scheme not in {"postgres", "postgresql"} or not url.path.strip("/"):
        raise SettingsError(f"{name} must look like postgresql://user:password@host:5432/name")
    options = dict(parse_qsl(url.query))
    return {
        "NAME": unquote(url.path.lstrip("/")),
        "USER": unquote(url.username or ""),
        "PASSWORD": unquote(url.password or ""),
        "HOST": options.pop("host", url.hostname or ""),
        "PORT": options.pop("port", str(port or "")),
        "OPTIONS": options,
    }
