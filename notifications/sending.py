"""Accepting messages: everything is checked, then the message and its work are stored in one transaction."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

from django.conf import settings
from django.contrib.contenttypes.models import ContentType
from django.db import IntegrityError, transaction
from django.db.models import Model
from django.utils import timezone

from notifications import delivery, lifecycle, recipients, routing, wording
from notifications.channels.addresses import InvalidAddress, clean_display_name, clean_email
from notifications.channels.headers import InvalidHeader, check_attachment_name, check_headers, check_value
from notifications.dispatch import bells, lanes, ledger
from notifications.exceptions import (
    CommunicationError,
    IdempotencyConflict,
    InvalidContentError,
    MissingPlaceholderError,
    ProviderError,
    TenantRequired,
)
from notifications.models import (
    CommunicationSettings,
    EventType,
    MessageStatus,
    MessageType,
    NotificationChannel,
    OutboxMessage,
    Scope,
)
from notifications.rendering import freeze
from tenants.connection import connection
from tenants.context import current_tenant_id, tenant_context
from tenants.models import Status, Tenant
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


@contextmanager
def scope_of(tenant: Tenant | str | None) -> Iterator[bool]:
    """The context of the tenant that a call names, or of the one that it is made in.

    Yields whether the call came from another schema: its model instances are then not this tenant's.

    Raises:
        TenantRequired: it names none, and is made in none while the platform has tenants; or the tenant is unknown,
            closed or waiting for migrations.
    """
    made_in = connection.schema_name
    if tenant is not None:
        if settings.NOTIFY_TENANT_MODEL is None:
            raise TenantRequired(tenant)
        with tenant_context(_served(tenant)) as served:
            yield served.schema_name != made_in
        return
    if settings.NOTIFY_TENANT_MODEL:
        if made_in == "public" and not getattr(connection.tenant, "pk", None):
            raise TenantRequired
        _served(made_in)
    yield False


def _served(tenant: Tenant | str) -> Tenant:
    # Where migrations are missing, a write would land in public's newer table without an error.
    if not isinstance(tenant, Tenant | str):
        raise TenantRequired(tenant)
    name = tenant if isinstance(tenant, str) else tenant.schema_name
    found = Tenant.objects.up_to_date().exclude(status=Status.CLOSED).filter(schema_name=name).first()
    if found is None:
        raise TenantRequired(tenant)
    return found


def accept(wanted: Wanted, *, idempotency_key: str | None = None, raise_errors: bool = False) -> OutboxMessage:
    """Store a message for delivery in the current tenant, once per key.

    Args:
        wanted: what the caller asks for.
        idempotency_key: the same key with the same arguments gives the same message back. Made up when absent.
        raise_errors: in dispatch mode `inline`, raise what the provider answered.

    Raises:
        CommunicationError: one of its kinds, which names the field and the remedy; nothing was stored.
    """
    if idempotency_key is not None and not isinstance(idempotency_key, str):
        raise CommunicationError(f"idempotency_key must be text, not {type(idempotency_key).__name__}")
    if idempotency_key and len(idempotency_key) > LONGEST_KEY:
        raise CommunicationError(f"idempotency_key has more than {LONGEST_KEY} characters")
    _check_text(idempotency_key, "idempotency_key")
    fingerprint = wanted.fingerprint()
    if idempotency_key and (earlier := _earlier(idempotency_key, fingerprint)):
        return earlier
    message = _compose(wanted)
    message.idempotency_key = idempotency_key or str(uuid4())
    message.request_hash = fingerprint
    try:
        with transaction.atomic():
            message.save(force_insert=True)
            if message.status in lifecycle.OPEN:
                _write_down(message)
    except IntegrityError:
        if idempotency_key and (earlier := _earlier(idempotency_key, fingerprint)):
            return earlier
        raise
    if settings.NOTIFY_DISPATCH_MODE == "inline":
        message.refresh_from_db()
        if raise_errors and message.error_class:
            raise ProviderError(message.error_message)
    return message


def _earlier(key: str, fingerprint: str) -> OutboxMessage | None:
    earlier = OutboxMessage.objects.filter(idempotency_key=key).first()
    if earlier and earlier.request_hash != fingerprint:
        raise IdempotencyConflict(f"idempotency_key={key!r} was used before, for other arguments: use a new key")
    return earlier


def _write_down(message: OutboxMessage) -> None:
    tenant_id = current_tenant_id()
    lane_id = lanes.lane_for(
        tenant_id=tenant_id,
        queue=message.priority,
        outbox_scope=message.outbox_scope,
        outbox_uuid=message.outbox_uuid,
    )
    manual = not settings.NOTIFY_SEND_IMMEDIATELY
    ledger.add([message.pk], tenant_id=tenant_id, lane_id=lane_id, due_at=message.scheduled_at, manual=manual)
    if manual or message.status == MessageStatus.SCHEDULED:
        return
    if settings.NOTIFY_DISPATCH_MODE == "inline":
        deliver = partial(delivery.deliver_one, message.pk, lane_id, schema_name=connection.schema_name)
        transaction.on_commit(deliver, robust=True)
    else:
        bells.ring_on_commit(message.priority)


def _compose(wanted: Wanted) -> OutboxMessage:
    """The message, checked and not yet stored."""
    defaults = CommunicationSettings.objects.get()
    event = _event_type(wanted.event_key)
    message_type = event.message_type if event else MessageType.TRANSACTIONAL if wanted.event_key else None
    channel = routing.choose_channel(wanted.channel, message_type, defaults)
    to_address = wanted.to.for_channel(channel, region=defaults.phone_region)
    known = recipients.known_recipient(wanted.to, channel, to_address)
    sender = routing.choose_sender(channel, wanted.from_address, defaults)
    language = wanted.language or wanted.to.language or (known.language if known else "")
    now = timezone.now()
    later = wanted.scheduled_at if wanted.scheduled_at and wanted.scheduled_at > now else None
    lifetime = (event and event.expires_after) or timedelta(seconds=settings.NOTIFY_EXPIRY_SECONDS)
    security = bool(event and event.security)
    message_type = message_type or MessageType.TRANSACTIONAL
    message = OutboxMessage(
        channel=channel,
        message_type=message_type,
        category=(event and event.category) or message_type,
        security=security,
        priority=routing.choose_priority(_priority(wanted), message_type, security=security),
        status=MessageStatus.SCHEDULED if later else MessageStatus.PENDING,
        event_key=wanted.event_key,
        outbox_scope=sender.scope,
        outbox_uuid=sender.outbox.pk,
        user_id=wanted.user_id or wanted.to.user_id,
        recipient=known,
        to_address=to_address,
        to_name=wanted.to.name or (known.name if known else ""),
        from_address=sender.address,
        from_name=sender.name,
        reply_to=wanted.reply_to or sender.outbox.reply_to,
        subject=wanted.subject or "",
        body_text=wanted.body_text or "",
        body_html=wanted.body_html or "",
        context=wanted.context,
        metadata=wanted.metadata,
        headers=wanted.headers,
        related_type=wanted.related[0] if wanted.related else "",
        related_id=wanted.related[1] if wanted.related else "",
        related_content_type_id=wanted.related_object[0] if wanted.related_object else None,
        related_object_id=wanted.related_object[1] if wanted.related_object else "",
        scheduled_at=later,
        expires_at=(later or now) + lifetime,
        max_attempts=settings.NOTIFY_MAX_ATTEMPTS,
        max_retries=settings.NOTIFICATION_SETTINGS["MAX_RETRY_ATTEMPTS"],
    )
    _give_wording(message, event, language, defaults.default_language)
    return message


def _event_type(event_key: str) -> EventType | None:
    if not event_key:
        return None
    found = EventType.objects.filter(key=event_key).first()
    if found is None and connection.schema_name != "public":
        with routing.in_scope(Scope.PLATFORM):
            found = EventType.objects.filter(key=event_key).first()
    return found


def _priority(wanted: Wanted) -> str | None:
    if wanted.priority:
        return wanted.priority
    asked = wanted.metadata.get("priority")
    return asked if asked in ("high", "default", "bulk") else None


def _give_wording(message: OutboxMessage, event: EventType | None, language: str, default_language: str) -> None:
    """Pin the template, and render once so that what cannot be rendered is refused now."""
    if message.event_key:
        ref = wording.find(message.event_key, message.channel, language, default_language)
        message.template_scope, message.template_uuid = ref.scope, ref.uuid
        message.template_version, message.language = ref.version, ref.language
        missing = [name for name in (event.required_placeholders if event else []) if name not in message.context]
        if missing:
            raise MissingPlaceholderError(f"context lacks {', '.join(missing)}, which {message.event_key} requires")
        if ref.muted:
            message.status = MessageStatus.SUPPRESSED
            message.error_message = "the template is muted"
    subject, text, html = delivery.content_of(message)
    try:
        check_value("subject", subject)
        message.to_name, message.from_name = clean_display_name(message.to_name), clean_display_name(message.from_name)
    except (InvalidHeader, InvalidAddress) as error:
        raise InvalidContentError(f"the message cannot be sent so: {error}") from error
    if not (text.strip() or html.strip()):
        raise InvalidContentError("the message is empty: give body_text, body_html or a template with a body")
    if message.channel == NotificationChannel.EMAIL and not subject.strip():
        raise InvalidContentError("subject is empty: an e-mail needs one")
    if message.channel != NotificationChannel.EMAIL and not text.strip():
        raise InvalidContentError(f"body_text is empty: {message.channel} carries plain text")


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
    _check_text(asdict(wanted), "")
    return wanted


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


def _check_text(value: Any, path: str) -> None:
    """Refuse what PostgreSQL holds in no text: NUL, and half a character (a lone surrogate)."""
    if isinstance(value, str):
        if _UNSTORABLE.search(value):
            raise InvalidContentError(f"{path} holds a NUL or half a character: remove it")
    elif isinstance(value, Mapping):
        for name, item in value.items():
            _check_text(name, f"a name in {path}")
            _check_text(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _check_text(item, f"{path}.{position}")


def _attachment_names(metadata: Mapping[str, Any]) -> Sequence[str]:
    names = metadata.get("attachments", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidContentError("metadata['attachments'] must be a list of file names")
    return names
