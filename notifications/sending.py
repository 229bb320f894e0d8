"""Accepting messages: everything is checked, then the message and its work are stored in one transaction."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, partial
from typing import Any
from uuid import UUID, uuid4

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import IntegrityError, transaction
from django.utils import timezone

from notifications import crashpoints, delivery, lifecycle, preparing, quotas, recipients, routing, wording
from notifications.channels.addresses import InvalidAddress, clean_display_name
from notifications.channels.headers import InvalidHeader, check_value
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
    Priority,
    Scope,
)
from notifications.quotas import Quota
from notifications.recipients import To
from notifications.wanted import Wanted, check_key
from tenants.connection import connection
from tenants.context import current_tenant_id, on_commit, tenant_context
from tenants.models import Status, Tenant
from tenants.owners import OWNERS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """For whom a call is made."""

    crossed: bool = False
    """It came from another schema: its model instances are not this tenant's."""
    daily_quota: int | None = None
    """The tenant's own; None for none of its own."""

    @property
    def quota(self) -> Quota | None:
        """What is left of the day, to be asked inside the scope; None where there is no quota."""
        return quotas.quota_of(self.daily_quota)


@contextmanager
def scope_of(tenant: Tenant | str | None) -> Iterator[Caller]:
    """The context of the tenant that a call names, or of the one that it is made in.

    Raises:
        TenantRequired: it names none, and is made in none while the platform has tenants; or the tenant is unknown,
            closed or waiting for migrations.
    """
    made_in = connection.schema_name
    if tenant is not None:
        if settings.NOTIFY_TENANT_MODEL is None:
            raise TenantRequired(tenant)
        with tenant_context(_served(tenant)) as served:
            yield Caller(served.schema_name != made_in, served.daily_quota)
        return
    if settings.NOTIFY_TENANT_MODEL is None:
        yield Caller()
        return
    if made_in == "public" and not getattr(connection.tenant, "pk", None):
        raise TenantRequired
    yield Caller(daily_quota=_served(made_in).daily_quota)


def _served(tenant: Tenant | str) -> Tenant:
    # Where migrations are missing, a write would land in public's newer table without an error.
    if not isinstance(tenant, Tenant | str):
        raise TenantRequired(tenant)
    name = tenant if isinstance(tenant, str) else tenant.schema_name
    found = Tenant.objects.up_to_date().exclude(status=Status.CLOSED).filter(schema_name=name).first()
    if found is None:
        raise TenantRequired(tenant)
    return found


def accept(
    wanted: Wanted, *, idempotency_key: str | None = None, quota: Quota | None = None, raise_errors: bool = False
) -> OutboxMessage:
    """Store a message for delivery in the current tenant, once per key.

    Args:
        wanted: what the caller asks for.
        idempotency_key: the same key with the same arguments gives the same message back. Made up when absent.
        quota: what the message counts against.
        raise_errors: in dispatch mode `inline`, raise what the provider answered.

    Raises:
        CommunicationError: one of its kinds, which names the field and the remedy; nothing was stored.
    """
    check_key(idempotency_key)
    fingerprint = wanted.fingerprint()
    if idempotency_key and (earlier := _earlier(idempotency_key, fingerprint)):
        return earlier
    message = _compose(wanted)
    message.idempotency_key = idempotency_key or str(uuid4())
    message.request_hash = fingerprint
    try:
        with one_transaction():
            if message.status in lifecycle.OPEN:
                used = admit(message, 1, quota)
                message.save(force_insert=True)
                count(message, 1, quota, used)
                write_down([message.pk], message)
            else:
                message.save(force_insert=True)
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


@contextmanager
def one_transaction() -> Iterator[None]:
    """The transaction in which messages are stored with their work."""
    with transaction.atomic():
        transaction.on_commit(partial(crashpoints.reached, "after_accept_commit"))
        yield
        crashpoints.reached("before_accept_commit")


def admit(common: OutboxMessage, number: int, quota: Quota | None) -> int:
    """Check that messages may be accepted now: how much of the quota is used already.

    Args:
        common: what they have in common; urgent ones beyond the tenant's rate become high.
        number: how many they are.
        quota: what they count against.

    Raises:
        RateLimitExceeded: the tenant's daily quota has too little left; security messages pass.
    """
    used = quota.check(number, passing=common.security) if quota else 0
    if common.priority == Priority.URGENT and quotas.urgent_is_too_much(number):
        common.priority = Priority.HIGH
    return used


def count(common: OutboxMessage, number: int, quota: Quota | None, used: int) -> None:
    """Count messages that were stored, in their transaction; `used` is what `admit` answered."""
    if common.priority == Priority.URGENT:
        quotas.count_urgent(number)
    if quota and quota.count(number, used=used):
        on_commit(_warn_owners, quota)


def write_down(ids: Sequence[UUID], common: OutboxMessage) -> None:
    """Put messages on the ledger, and have them delivered once the transaction commits.

    Args:
        ids: their keys.
        common: what they have in common: priority, sender, time.
    """
    tenant_id = current_tenant_id()
    lane_id = lanes.lane_for(
        tenant_id=tenant_id,
        queue=common.priority,
        outbox_scope=common.outbox_scope,
        outbox_uuid=common.outbox_uuid,
    )
    manual = not settings.NOTIFY_SEND_IMMEDIATELY
    ledger.add(ids, tenant_id=tenant_id, lane_id=lane_id, due_at=common.scheduled_at, manual=manual)
    if manual:
        return
    if common.scheduled_at:
        bells.plan_on_commit(common.priority, common.scheduled_at)
    elif settings.NOTIFY_DISPATCH_MODE == "inline":
        for message_id in ids:
            deliver = partial(delivery.deliver_one, message_id, lane_id, schema_name=connection.schema_name)
            transaction.on_commit(deliver, robust=True)
    else:
        bells.ring_on_commit(common.priority)


def _warn_owners(quota: Quota) -> None:
    """Tell the log and the tenant's owners, once a day, that the quota is nearly used up."""
    with transaction.atomic():
        if not quota.begin_warning():
            return
        share = f"{quotas.WARNING_AT:.0%}"
        schema_name = connection.schema_name
        logger.warning(
            "%s of the daily quota are used", share, extra={"schema": schema_name, "daily_quota": quota.most}
        )
        text = (
            f"{share} of the {quota.most:,} messages that may be accepted in a day are used. "
            "What goes beyond them is refused until midnight UTC; codes and password resets still go out.\n"
        )
        day = f"{timezone.now():%Y-%m-%d}"
        for owner in get_user_model()._default_manager.filter(groups__name=OWNERS, is_active=True).exclude(email=""):
            wanted = Wanted(
                to=To(email=owner.email, user_id=owner.pk),
                channel=NotificationChannel.EMAIL,
                subject=f"{share} of today's messages are used",
                body_text=text,
                priority=Priority.HIGH,
            )
            try:
                accept(wanted, idempotency_key=f"quota-warning-{day}-{owner.pk}")
            except CommunicationError as error:
                logger.warning("owner not warned of the quota: %s", error, extra={"schema": schema_name})


class Terms:
    """What holds for every message of one call, whoever it goes to. Each part is looked up once, when it is needed."""

    def __init__(self, wanted: Wanted, *, otherwise: str | None = None) -> None:
        """Read the defaults and the event, and choose the channel; the sender and the wording come later.

        Args:
            wanted: what the caller asks for; to whom is left aside.
            otherwise: the priority when the call has none; when absent too, the event decides.

        Raises:
            CommunicationError: the channel does not exist.
        """
        self.wanted = wanted
        self.defaults = CommunicationSettings.objects.get()
        self.event = _event_type(wanted.event_key)
        given = self.event.message_type if self.event else MessageType.TRANSACTIONAL if wanted.event_key else None
        self.message_type = given or MessageType.TRANSACTIONAL
        self.channel = routing.choose_channel(wanted.channel, given, self.defaults)
        self._otherwise = otherwise
        self._wordings: dict[str, dict[str, Any]] = {}

    @cached_property
    def columns(self) -> dict[str, Any]:
        """The columns that are the same in every message.

        Raises:
            InvalidSenderError: the sender may not send.
            CommunicationError: nobody can send on the channel, or the priority does not exist.
        """
        wanted, event = self.wanted, self.event
        sender = routing.choose_sender(self.channel, wanted.from_address, self.defaults)
        now = ledger.database_time()
        later = wanted.scheduled_at if wanted.scheduled_at and wanted.scheduled_at > now else None
        lifetime = (event and event.expires_after) or timedelta(seconds=settings.NOTIFY_EXPIRY_SECONDS)
        security = bool(event and event.security)
        priority = _priority(wanted) or self._otherwise
        return {
            "channel": self.channel,
            "message_type": self.message_type,
            "category": (event and event.category) or self.message_type,
            "security": security,
            "priority": routing.choose_priority(priority, self.message_type, security=security),
            "status": MessageStatus.SCHEDULED if later else MessageStatus.PENDING,
            "event_key": wanted.event_key,
            "outbox_scope": sender.scope,
            "outbox_uuid": sender.outbox.pk,
            "from_address": sender.address,
            "from_name": clean_name(sender.name),
            "from_fixed": bool(wanted.from_address),
            "reply_to": wanted.reply_to or sender.outbox.reply_to,
            "subject": wanted.subject or "",
            "body_text": wanted.body_text or "",
            "body_html": wanted.body_html or "",
            "context": wanted.context,
            "metadata": wanted.metadata,
            "headers": wanted.headers,
            "related_type": wanted.related[0] if wanted.related else "",
            "related_id": wanted.related[1] if wanted.related else "",
            "related_content_type_id": wanted.related_object[0] if wanted.related_object else None,
            "related_object_id": wanted.related_object[1] if wanted.related_object else "",
            "scheduled_at": later,
            "expires_at": (later or now) + lifetime,
            "max_attempts": settings.NOTIFY_MAX_ATTEMPTS,
            "max_retries": settings.NOTIFICATION_SETTINGS["MAX_RETRY_ATTEMPTS"],
        }

    def wording(self, language: str) -> dict[str, Any]:
        """The columns that pin the template for a language; none without an event.

        Raises:
            TemplateNotFoundError: there is none.
        """
        if not self.wanted.event_key:
            return {}
        if language not in self._wordings:
            ref = wording.find(self.wanted.event_key, self.channel, language, self.defaults.default_language)
            self._wordings[language] = {
                "template_scope": ref.scope,
                "template_uuid": ref.uuid,
                "template_version": ref.version,
                "language": ref.language,
                **({"status": MessageStatus.SUPPRESSED, "error_message": "the template is muted"} if ref.muted else {}),
            }
        return self._wordings[language]

    def check_placeholders(self, context: Mapping[str, Any]) -> None:
        """Refuse a context that lacks what the event requires.

        Raises:
            MissingPlaceholderError: naming what is missing.
        """
        required = self.event.required_placeholders if self.event else []
        if missing := [name for name in required if name not in context]:
            raise MissingPlaceholderError(f"context lacks {', '.join(missing)}, which {self.event} requires")


def _compose(wanted: Wanted) -> OutboxMessage:
    """The message, checked and not yet stored."""
    terms = Terms(wanted)
    to_address = wanted.to.for_channel(terms.channel, region=terms.defaults.phone_region)
    known = recipients.known_recipient(wanted.to, terms.channel, to_address)
    language = wanted.language or wanted.to.language or (known.language if known else "")
    columns = {**terms.columns, **terms.wording(language)}
    terms.check_placeholders(wanted.context)
    message = OutboxMessage(
        **columns,
        user_id=wanted.user_id or wanted.to.user_id,
        recipient=known,
        to_address=to_address,
        to_name=clean_name(wanted.to.name or (known.name if known else "")),
    )
    check_content(message)
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


def clean_name(name: str) -> str:
    """A name as it is shown beside an address.

    Raises:
        InvalidContentError: it cannot be shown.
    """
    try:
        return clean_display_name(name) if name else ""
    except InvalidAddress as error:
        raise InvalidContentError(f"the message cannot be sent so: {error}") from error


def check_content(message: OutboxMessage) -> None:
    """Render once, so that what cannot be rendered or sent is refused now.

    Raises:
        CommunicationError: one of its kinds.
    """
    subject, text, html = preparing.content_of(message)
    try:
        check_value("subject", subject)
    except InvalidHeader as error:
        raise InvalidContentError(f"the message cannot be sent so: {error}") from error
    if not (text.strip() or html.strip()):
        raise InvalidContentError("the message is empty: give body_text, body_html or a template with a body")
    if message.channel == NotificationChannel.EMAIL and not subject.strip():
        raise InvalidContentError("subject is empty: an e-mail needs one")
    if message.channel != NotificationChannel.EMAIL and not text.strip():
        raise InvalidContentError(f"body_text is empty: {message.channel} carries plain text")
