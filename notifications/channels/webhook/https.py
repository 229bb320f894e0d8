"""A POST request with JSON to the recipient's address, under one idempotency reference, signed by Standard Webhooks.

The far end tells attempts of one message by `Idempotency-Key`, and whoever has the secret tells that the request is
ours (https://www.standardwebhooks.com): `webhook-signature` is the HMAC-SHA256 of `id.timestamp.body`.
"""

import hmac
import json
import re
import time
from base64 import b64decode, b64encode
from dataclasses import dataclass, field, fields
from typing import Any, Self

from notifications.channels import http
from notifications.channels.addresses import InvalidAddress, read_url
from notifications.channels.base import (
    Accepted,
    Adapter,
    InvalidSettings,
    Networks,
    Outgoing,
    Rejected,
    Settings,
    read_connections,
    refuse_unknown,
)

REFERENCE = re.compile(r"[A-Za-z0-9._:-]{1,200}")
PROVIDER_ID = re.compile(r"[!-~]{1,100}")
SECRET = "whsec_"
KEY_BYTES = range(24, 65)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """An account's settings, checked; times in seconds."""

    secret: tuple[bytes, ...] = field(default=(), repr=False)
    """The keys to sign with: none, one, or two while one replaces the other."""
    timeout: float = http.CONNECT_SECONDS
    """For connecting, and again for TLS."""
    data_timeout: float = http.ANSWER_SECONDS
    """For writing the request, and again for the answer."""
    connections: int = 8

    @classmethod
    def read(cls, settings: Settings) -> Self:
        """Read settings as stored.

        Raises:
            InvalidSettings: names the first field that cannot be used.
        """
        refuse_unknown(settings, [option.name for option in fields(cls)])
        return cls(
            secret=_keys(settings),
            timeout=http.read_seconds(settings, "timeout", http.CONNECT_SECONDS),
            data_timeout=http.read_seconds(settings, "data_timeout", http.ANSWER_SECONDS),
            connections=read_connections(settings, default=8),
        )


class HTTPS(Adapter):
    """An account that posts to its recipients' own addresses: what one of them does is held against no other.

    Only a 429 pauses the account, as it says that the account sends too much.
    """

    provider = "https"
    secret_settings = frozenset({"secret"})

    def __init__(self, settings: Settings, *, allowed_networks: Networks = ()) -> None:
        options = Options.read(settings)
        self.connections = options.connections
        self._keys = options.secret
        self._client = http.Client(
            allowed=allowed_networks,
            connections=options.connections,
            connect_seconds=options.timeout,
            answer_seconds=options.data_timeout,
            account_wide=False,
        )

    def __repr__(self) -> str:
        return "<HTTPS webhooks>"

    @classmethod
    def check_settings(cls, settings: Settings) -> None:
        """Raise InvalidSettings naming the first field that cannot be used."""
        Options.read(settings)

    def send(self, message: Outgoing) -> Accepted:
        """Post one message; the provider's id is what the answer calls it, if that is short and printable.

        Raises:
            Rejected: the address or the message cannot be sent, is forbidden, or the far end refused it for good.
            Unavailable: the far end could not be reached, or certainly did not process it.
            Uncertain: the request went out, and no answer says what became of it.
        """
        try:
            address = read_url(message.to)
            body = write_body(message)
        except UnicodeEncodeError:
            raise Rejected("The message holds characters that cannot be written as UTF-8: remove them.") from None
        except InvalidAddress as error:
            raise Rejected(str(error), error_class="invalid_recipient") from None
        if not REFERENCE.fullmatch(message.reference):
            raise Rejected("The message's reference cannot be written in a header.")
        headers = {"Content-Type": "application/json", "Idempotency-Key": message.reference}
        if self._keys:
            headers |= signature(self._keys, message.reference, int(time.time()), body)
        answer = self._client.post(address, headers=headers, body=body)
        failure = http.failure_of(answer, account_wide=False)
        if failure is not None:
            raise failure
        return Accepted(provider_id=provider_id(answer), response=str(answer))

    def close(self) -> None:
        """Close the connections; requests on their way end first."""
        self._client.close()


def write_body(message: Outgoing) -> bytes:
    """The message as JSON in UTF-8, the same bytes on every attempt.

    The headers that the sender asked for are part of it, and none of the request's.

    Raises:
        UnicodeEncodeError: it holds half a character (a lone surrogate).
    """
    content: dict[str, Any] = {
        "id": message.reference,
        "from": message.from_address,
        "from_name": message.from_name,
        "to_name": message.to_name,
        "reply_to": message.reply_to,
        "subject": message.subject,
        "text": message.text,
        "html": message.html,
        "headers": {**message.headers, **message.service_headers},
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def signature(keys: tuple[bytes, ...], reference: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of Standard Webhooks, with a signature for each key.

    Args:
        keys: as many as the far end may know.
        reference: the message's id.
        timestamp: Unix seconds of this attempt.
        body: as it is sent.
    """
    signed = f"{reference}.{timestamp}.".encode() + body
    digests = [b64encode(hmac.digest(key, signed, "sha256")).decode() for key in keys]
    return {
        "webhook-id": reference,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{digest}" for digest in digests),
    }


def provider_id(answer: http.Answer) -> str:
    """What an answer calls the message: `id` in its JSON object, else its X-Request-Id, else nothing."""
    try:
        content = json.loads(answer.body)
    except (ValueError, RecursionError):
        content = None
    named = content.get("id") if isinstance(content, dict) else None
    for found in (named, answer.headers.get("x-request-id")):
        if isinstance(found, str | int) and not isinstance(found, bool) and PROVIDER_ID.fullmatch(str(found)):
            return str(found)
    return ""


def _keys(settings: Settings) -> tuple[bytes, ...]:
    """The keys of the secret; its error never holds it."""
    secret = settings.get("secret", "")
    wrong = InvalidSettings(
        "secret", "give whsec_ and 24 to 64 bytes in base64; two with a space while one is replaced."
    )
    if not isinstance(secret, str):
        raise wrong
    keys = []
    for part in secret.split():
        try:
            keys.append(b64decode(part.removeprefix(SECRET), validate=True))
        except ValueError:
            raise wrong from None
        if not part.startswith(SECRET) or len(keys[-1]) not in KEY_BYTES:
            raise wrong
    if len(keys) > 2:
        raise wrong
    return tuple(keys)
