"""Secrets at rest: encrypted under a list of keys, and bound to the place they are stored in.

Encryption is Fernet (AES-128-CBC with HMAC-SHA256, https://github.com/fernet/spec). The first key of
`FIELD_ENCRYPTION_KEYS` encrypts, all of them decrypt, so a new key is put in front and the old ones
are removed after `manage.py rotate_secrets`.
"""

import json
import re
from collections.abc import Set
from functools import lru_cache
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings

# Providers' own spellings: api_key, apiKey, APIKEY, x-api-key. What is long and plain enough may also end a word.
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9]+")
_SECRET_NAME = re.compile(
    r"(password|passwd|passphrase|passcode|secret|token|authorization)$"
    r"|(api|private|signing|access|secret|auth|shared|master|encryption|account|server|service|webhook)_?key$"
    r"|(^|_)(pass|pwd|pin|credentials?|service_?account(_?(json|info|key))?)$"
)


class SealBroken(Exception):
    """A sealed value cannot be opened: its key is gone, or it was moved here from somewhere else."""


@lru_cache(maxsize=4)
def _fernet(keys: tuple[str, ...]) -> MultiFernet:
    return MultiFernet([Fernet(key) for key in keys])


def _cipher() -> MultiFernet:
    return _fernet(tuple(settings.FIELD_ENCRYPTION_KEYS))


def seal(value: Any, *, purpose: str) -> str:
    """Encrypt a JSON value for one place, named by `purpose` (schema/table/key/field)."""
    return _cipher().encrypt(json.dumps([purpose, value]).encode()).decode()


def unseal(sealed: str, *, purpose: str) -> Any:
    """Decrypt what `seal` made for the same purpose.

    Raises:
        SealBroken: no key fits, or it was sealed for another place.
    """
    try:
        found, value = json.loads(_cipher().decrypt(sealed.encode()))
    except (InvalidToken, ValueError) as error:
        raise SealBroken(f"no key of FIELD_ENCRYPTION_KEYS opens {purpose}") from error
    if found != purpose:
        raise SealBroken(f"the secret in {purpose} was sealed for another place; enter it again")
    return value


def rotate(sealed: str) -> str:
    """Encrypt again under the first key, whatever key it is under now.

    Raises:
        SealBroken: no key fits.
    """
    try:
        return _cipher().rotate(sealed.encode()).decode()
    except InvalidToken as error:
        raise SealBroken("no key of FIELD_ENCRYPTION_KEYS opens this value") from error


def is_secret(name: str, also: Set[str] = frozenset()) -> bool:
    """Whether a setting of this name holds a secret: one of those given, or one that sounds like it."""
    return name in also or bool(_SECRET_NAME.search(_HUMP.sub("_", name).lower()))


def split(value: dict[str, Any], also: Set[str] = frozenset()) -> tuple[dict[str, Any], dict[str, Any]]:
    """A nested dict's open and secret entries, each in the same nesting; `also` names secrets that sound open."""
    public: dict[str, Any] = {}
    secret: dict[str, Any] = {}
    for name, item in value.items():
        if is_secret(name, also):
            secret[name] = item
        elif isinstance(item, dict):
            public[name], hidden = split(item, also)
            if hidden:
                secret[name] = hidden
        elif isinstance(item, list) and _has_secret(item, also):
            # The parts of a list have no names to join them by, so it is hidden as a whole.
            secret[name] = item
        else:
            public[name] = item
    return public, secret


def _has_secret(value: Any, also: Set[str]) -> bool:
    if isinstance(value, dict):
        return any(is_secret(name, also) or _has_secret(item, also) for name, item in value.items())
    return isinstance(value, list) and any(_has_secret(item, also) for item in value)


def join(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two nested dicts as one; where both have an entry the other's counts."""
    joined = dict(one)
    for name, item in other.items():
        mine = joined.get(name)
        # A secret may be a dict itself, such as a service account's key: it is replaced as a whole.
        if isinstance(mine, dict) and isinstance(item, dict) and not is_secret(name):
            joined[name] = join(mine, item)
        else:
            joined[name] = item
    return joined


def still_placed(secret: dict[str, Any], public: dict[str, Any], also: Set[str] = frozenset()) -> dict[str, Any]:
    """The secret entries of a `split` whose place is still among the open ones: the same dicts around them."""
    placed: dict[str, Any] = {}
    for name, item in secret.items():
        if is_secret(name, also) or not isinstance(item, dict):
            placed[name] = item
        elif isinstance(around := public.get(name), dict):
            placed[name] = still_placed(item, around, also)
    return placed


def without_empty(value: dict[str, Any]) -> dict[str, Any]:
    """The dict without empty entries, at every depth: an emptied secret is a removed one."""
    cleaned = {name: without_empty(item) if isinstance(item, dict) else item for name, item in value.items()}
    return {name: item for name, item in cleaned.items() if item not in ("", None, {})}
