"""Whom a message goes to: one answer for an address, a dict, a user, or any object with an address."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import get_user_model

from notifications.channels.addresses import InvalidAddress, clean_address, clean_display_name
from notifications.exceptions import InvalidRecipientError
from notifications.models import NotificationChannel, Recipient

_PHONES = (NotificationChannel.SMS, NotificationChannel.WHATSAPP, NotificationChannel.VOICE)
_KNOWN = ("email", "phone", "name", "address", "external_id", "language")


@dataclass(frozen=True, slots=True)
class To:
    """A recipient as the caller gave it, before its address for a channel is picked."""

    email: str = ""
    phone: str = ""
    address: str = ""
    name: str = ""
    external_id: str = ""
    language: str = ""
    user_id: int | None = None
    recipient_id: Any = None

    def for_channel(self, channel: str, *, region: str = "") -> str:
        """The cleaned address for a channel.

        Args:
            channel: which kind of address is needed.
            region: the country of phone numbers without its code, such as DE.

        Raises:
            InvalidRecipientError: it is missing or invalid.
        """
        field = "email" if channel == NotificationChannel.EMAIL else "phone" if channel in _PHONES else "address"
        raw = getattr(self, field) or self.address
        if not raw:
            raise InvalidRecipientError(f"to has no {field}, which {channel} needs")
        try:
            return clean_address(channel, raw, region=region or None)
        except InvalidAddress as error:
            raise InvalidRecipientError(f"to.{field}: {error}") from error


def resolve_recipient(to: Any) -> To:
    """Read a recipient: an address, a dict, a user, a `Recipient`, or an object with `email` or `phone`.

    Raises:
        InvalidRecipientError: nothing of the kind, or unknown keys.
    """
    if isinstance(to, To):
        return to
    if isinstance(to, str):
        return To(address=to)
    if isinstance(to, Recipient):
        return To(
            email=to.email,
            phone=to.phone,
            name=to.name,
            external_id=to.external_id or "",
            language=to.language,
            recipient_id=to.pk,
        )
    if isinstance(to, Mapping):
        if unknown := sorted(set(to) - {*_KNOWN}):
            raise InvalidRecipientError(
                f"to has unknown keys {', '.join(map(repr, unknown))}; known are {', '.join(_KNOWN)}"
            )
        return _named(**{key: _text(key, to[key]) for key in to})
    values = {key: _text(key, getattr(to, key, "")) for key in ("email", "phone")}
    if not any(values.values()):
        raise InvalidRecipientError(f"to={type(to).__name__} has neither email nor phone")
    name = getattr(to, "name", "") or _full_name(to)
    user_id = to.pk if isinstance(to, get_user_model()) else None
    return To(**values, name=_named(name=_text("name", name)).name, user_id=user_id)


def _full_name(person: Any) -> str:
    full_name = getattr(person, "get_full_name", None)
    return str(full_name()) if callable(full_name) else ""


def _text(key: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidRecipientError(f"to.{key} must be text, not {type(value).__name__}")
    return value.strip()


def _named(**values: Any) -> To:
    try:
        values["name"] = clean_display_name(values.get("name", ""))
    except InvalidAddress as error:
        raise InvalidRecipientError(f"to.name: {error}") from error
    return To(**values)


def known_recipient(to: To, channel: str, address: str) -> Recipient | None:
    """The tenant's recipient that this is, by its key, its external id or its address."""
    if to.recipient_id:
        return Recipient.objects.filter(pk=to.recipient_id).first()
    if to.external_id and (found := Recipient.objects.filter(external_id=to.external_id).first()):
        return found
    if channel == NotificationChannel.EMAIL:
        # Mailboxes do not differ by letter case, and what somebody switched off stays off in either.
        return Recipient.objects.filter(email__iexact=address).order_by("id").first()
    return Recipient.objects.filter(phone=address).first() if channel in _PHONES else None
