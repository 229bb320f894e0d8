"""What callers ask for, as plain checked values: the one form in which a call goes on."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from django.contrib.contenttypes.models import ContentType
from django.db.models import Model
from django.utils import timezone

from notifications import recipients
from notifications.channels.addresses import InvalidAddress, clean_email
from notifications.channels.headers import InvalidHeader, check_attachment_name, check_headers, check_value
from notifications.exceptions import CommunicationError, InvalidContentError
from notifications.rendering import freeze
from tenants.scoping import guard

LONGEST_KEY = 200
LATEST_YEAR = 9000
LONGEST_RELATED_TYPE = 50
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A message as its caller asks for it."""

    to: recipients.To
    event_key: str = ""
    channel: str | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    subject: str | None = None
    body_text: str | None = None
    body_html: str | None = None
    language: str = ""
    from_address: str | None = None
    reply_to: str = ""
    priority: str | None = None
    scheduled_at: datetime | None = None
    related: tuple[str, str] | None = None
    related_object: tuple[int, str] | None = None
    user_id: int | None = None

    def fingerprint(self) -> str:
        """The SHA-256 of everything asked for, in hex: what tells a repeated call from another one."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True, default=str).encode()).hexdigest()


def read(
    *,
    crossed: bool,
    to: Any,
    context: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    related_object: Model | tuple[str, Any] | None = None,
    user: Model | None = None,
    headers: Mapping[str, str] | None = None,
    scheduled_at: datetime | None = None,
    **plain: Any,
) -> Wanted:
    """Turn what a caller gave into plain values.

    Args:
        crossed: the call comes from another schema, whose users and objects have other keys here.

    Raises:
        CommunicationError: a value is of the wrong kind; the message names it.
        WrongTenant: an object is another tenant's.
    """
    _check_kinds(user=user, related_object=related_object, scheduled_at=scheduled_at, **plain)
    _check_origin(crossed, to=to, user=user, related_object=related_object)
    given_metadata = freeze(metadata or {}, name="metadata")
    given_headers = dict(headers or {})
    if not all(isinstance(text, str) for pair in given_headers.items() for text in pair):
        raise InvalidContentError("headers must hold text under text")
    try:
        check_headers(given_headers)
        check_value("subject", plain.get("subject") or "")
        for name in _attachment_names(given_metadata):
            check_attachment_name(name)
    except InvalidHeader as error:
        raise InvalidContentError(str(error)) from error
    if plain.get("reply_to"):
        try:
            plain["reply_to"] = clean_email(plain["reply_to"])
        except InvalidAddress as error:
            raise InvalidContentError(f"reply_to: {error}") from error
    recipient = recipients.resolve_recipient(to)
    wanted = Wanted(
        to=replace(recipient, user_id=None) if crossed else recipient,
        context=freeze(context or {}),
        metadata=given_metadata,
        headers=given_headers,
        scheduled_at=scheduled_at,
        user_id=user.pk if user is not None else None,
        **plain,
    )
    if isinstance(related_object, tuple):
        wanted = replace(wanted, related=_elsewhere(*related_object))
    elif related_object is not None:
        content_type = ContentType.objects.get_for_model(related_object)
        wanted = replace(wanted, related_object=(content_type.pk, str(related_object.pk)))
    check_text(asdict(wanted), "")
    return wanted


def check_key(idempotency_key: Any) -> None:
    """Refuse what cannot be an idempotency key.

    Raises:
        CommunicationError: it is no text, or too long.
    """
    if idempotency_key is not None and not isinstance(idempotency_key, str):
        raise CommunicationError(f"idempotency_key must be text, not {type(idempotency_key).__name__}")
    if idempotency_key and len(idempotency_key) > LONGEST_KEY:
        raise CommunicationError(f"idempotency_key has more than {LONGEST_KEY} characters")
    check_text(idempotency_key, "idempotency_key")


def _check_kinds(*, user: Any, related_object: Any, scheduled_at: Any, **texts: Any) -> None:
    """Refuse values of the wrong kind by their name, where Python would say something about their insides."""
    for name, given in texts.items():
        if given is not None and not isinstance(given, str):
            raise CommunicationError(f"{name} must be text, not {type(given).__name__}")
    if scheduled_at is not None:
        if not isinstance(scheduled_at, datetime):
            raise CommunicationError(f"scheduled_at must be a datetime, not {type(scheduled_at).__name__}")
        if timezone.is_naive(scheduled_at):
            raise CommunicationError("scheduled_at has no time zone: give an aware datetime")
        if scheduled_at.year > LATEST_YEAR:
            raise CommunicationError(f"scheduled_at is after the year {LATEST_YEAR}")
    if user is not None and not isinstance(user, Model):
        raise CommunicationError(f"user must be a user of the tenant, not {type(user).__name__}")
    pair = isinstance(related_object, tuple) and len(related_object) == 2
    if related_object is not None and not pair and not isinstance(related_object, Model):
        raise CommunicationError("related_object must be a model instance, or (type, id) such as ('booking', 17)")


def _check_origin(crossed: bool, **objects: Any) -> None:
    for name, given in objects.items():
        guard(given)
        if crossed and isinstance(given, Model) and name != "to":
            raise CommunicationError(
                f"{name} is an object of the schema that the call is made in: "
                "call inside tenant_context(tenant), or give related_object=(type, id)"
            )


def _elsewhere(kind: Any, key: Any) -> tuple[str, str]:
    kind, key = str(kind), str(key)
    if len(kind) > LONGEST_RELATED_TYPE or len(key) > LONGEST_KEY:
        raise CommunicationError(
            f"related_object may have {LONGEST_RELATED_TYPE} characters in its type and {LONGEST_KEY} in its id"
        )
    return kind, key


def check_text(value: Any, path: str) -> None:
    """Refuse what PostgreSQL holds in no text: NUL, and half a character (a lone surrogate).

    Args:
        value: text, or what holds text at any depth.
        path: what it is called in the error.

    Raises:
        InvalidContentError: naming the path.
    """
    if isinstance(value, str):
        if _UNSTORABLE.search(value):
            raise InvalidContentError(f"{path} holds a NUL or half a character: remove it")
    elif isinstance(value, Mapping):
        for name, item in value.items():
            check_text(name, f"a name in {path}")
            check_text(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            check_text(item, f"{path}.{position}")


def _attachment_names(metadata: Mapping[str, Any]) -> Sequence[str]:
    names = metadata.get("attachments", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidContentError("metadata['attachments'] must be a list of file names")
    return names
