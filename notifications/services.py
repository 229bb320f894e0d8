"""The public Python API: everything that platform services call, from one import.

    from notifications.services import enqueue_notification

    enqueue_notification(
        event_key="booking.confirmed", to={"email": "ada@example.com"}, context={"name": "Ada"}, tenant=acme
    )

Each call returns the stored `OutboxMessage` (a UUID `id`, a `status`); it is sent by a worker, once the
surrounding transaction commits. Each raises a `CommunicationError` when the message cannot be accepted.
`BulkNotifier` does the same for many recipients at once.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.contrib.contenttypes.models import ContentType
from django.db.models import Model

from notifications import sending
from notifications.adapters import get_adapter
from notifications.bulk import BulkNotifier, Messages
from notifications.exceptions import (
    CommunicationError,
    HandlerNotAllowed,
    IdempotencyConflict,
    InvalidContentError,
    InvalidRecipientError,
    InvalidSenderError,
    MissingPlaceholderError,
    NotCancellable,
    NotRetryable,
    ProviderError,
    RateLimitExceeded,
    TemplateNotFoundError,
    TemplateRenderError,
    TenantRequired,
)
from notifications.handlers import register_handler
from notifications.lifecycle import cancel, requeue, settle
from notifications.models import NotificationChannel, OutboxMessage
from notifications.pages import RecipientsRefused
from notifications.rendering import register_serializer
from notifications.tasks import (
    process_scheduled_notifications,
    retry_failed_notifications,
    send_notification,
    send_notification_task,
)
from notifications.wanted import read
from tenants.models import Tenant
from tenants.scoping import guard

__all__ = [
    "BulkNotifier",
    "CommunicationError",
    "HandlerNotAllowed",
    "IdempotencyConflict",
    "InvalidContentError",
    "InvalidRecipientError",
    "InvalidSenderError",
    "Messages",
    "MissingPlaceholderError",
    "NotCancellable",
    "NotRetryable",
    "ProviderError",
    "RateLimitExceeded",
    "RecipientsRefused",
    "TemplateNotFoundError",
    "TemplateRenderError",
    "TenantRequired",
    "cancel",
    "enqueue_notification",
    "get_adapter",
    "get_messages_for_object",
    "process_scheduled_notifications",
    "register_handler",
    "register_serializer",
    "requeue",
    "retry_failed_notifications",
    "send",
    "send_email",
    "send_notification",
    "send_notification_task",
    "send_push",
    "send_sms",
    "send_whatsapp",
    "settle",
]


def enqueue_notification(
    *,
    event_key: str,
    to: Any,
    channel: str | None = None,
    context: Mapping[str, Any] | None = None,
    tenant: Tenant | str | None = None,
    scheduled_at: datetime | None = None,
    scheduled_for: datetime | None = None,
    idempotency_key: str | None = None,
    priority: str | None = None,
    language: str = "",
    from_address: str | None = None,
    user: Model | None = None,
    metadata: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    related_object: Model | tuple[str, Any] | None = None,
    raise_errors: bool = False,
) -> OutboxMessage:
    """Notify somebody of an event, in the wording that the tenant, else the platform, has for it.

    Args:
        event_key: such as `booking.confirmed`.
        to: an address, `{"email": …, "phone": …, "name": …}`, a user, a `Recipient`, or any object with
            `email` or `phone`.
        channel: `email`, `sms`, …; when absent the event's message type decides, then the tenant's default.
        context: the template's variables: plain values, or objects with a registered serializer.
        tenant: a tenant or its schema's name; may be left out inside a tenant's context.
        scheduled_at: an aware time to send at; a past one means now. `scheduled_for` is the same.
        idempotency_key: up to 200 characters; the same key and arguments give the same message back.
        priority: `urgent`, `high`, `default` or `bulk`; when absent the event decides.
        language: such as `de-AT`; when absent the recipient's, then the tenant's.
        from_address: one of the tenant's active outboxes, or any address at a verified domain.
        user: a user of the tenant whom the message is for.
        metadata: kept with the message, never rendered.
        headers: extra e-mail headers.
        related_object: a model instance, or (type, id) of something elsewhere, such as ("booking", 17).
        raise_errors: in dispatch mode `inline`, raise what the provider answered.

    Raises:
        CommunicationError: one of its kinds; nothing was stored.
    """
    with sending.scope_of(tenant) as caller:
        wanted = read(
            crossed=caller.crossed,
            to=to,
            event_key=event_key,
            channel=channel,
            context=context,
            metadata=metadata,
            headers=headers,
            scheduled_at=scheduled_at or scheduled_for,
            priority=priority,
            language=language,
            from_address=from_address,
            user=user,
            related_object=related_object,
        )
        return sending.accept(wanted, idempotency_key=idempotency_key, quota=caller.quota, raise_errors=raise_errors)


def send(
    *,
    to: Any,
    template_key: str = "",
    context: Mapping[str, Any] | None = None,
    channel: str | None = None,
    subject: str | None = None,
    body_text: str | None = None,
    body_html: str | None = None,
    related_object: Model | tuple[str, Any] | None = None,
    tenant: Tenant | str | None = None,
    from_address: str | None = None,
    reply_to: str = "",
    user: Model | None = None,
    metadata: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    language: str = "",
    priority: str | None = None,
    scheduled_at: datetime | None = None,
    idempotency_key: str | None = None,
    raise_errors: bool = False,
) -> OutboxMessage:
    """Send a message by template, or one written here; what is written here goes before the template's.

    `subject`, `body_text` and `body_html` are sent as they are, never rendered. All else is as for
    `enqueue_notification`, with `template_key` for its `event_key`.

    Raises:
        CommunicationError: one of its kinds; nothing was stored.
    """
    with sending.scope_of(tenant) as caller:
        wanted = read(
            crossed=caller.crossed,
            to=to,
            event_key=template_key,
            channel=channel,
            context=context,
            metadata=metadata,
            headers=headers,
            subject=subject,
            body_text=body_text,
            body_html=body_html,
            scheduled_at=scheduled_at,
            priority=priority,
            language=language,
            from_address=from_address,
            reply_to=reply_to,
            user=user,
            related_object=related_object,
        )
        return sending.accept(wanted, idempotency_key=idempotency_key, quota=caller.quota, raise_errors=raise_errors)


def send_email(
    *,
    to_address: str,
    subject: str,
    message: str,
    html: str | None = None,
    **options: Any,
) -> OutboxMessage:
    """Send an e-mail that is written here.

    Args:
        to_address: one e-mail address.
        subject, message, html: sent as they are.
        options: as for `send`: from_address, user, metadata, scheduled_at, idempotency_key, tenant, …

    Raises:
        CommunicationError: one of its kinds; nothing was stored.
    """
    return send(
        to=to_address,
        channel=NotificationChannel.EMAIL,
        subject=subject,
        body_text=message,
        body_html=html,
        **options,
    )


def send_sms(*, to_address: str, message: str, **options: Any) -> OutboxMessage:
    """Send a text message that is written here.

    Args:
        to_address: a phone number, with its country code unless the tenant has a phone region.
        message: sent as it is.
        options: as for `send`: from_address, user, metadata, scheduled_at, idempotency_key, tenant, …

    Raises:
        CommunicationError: one of its kinds; nothing was stored.
    """
    return send(to=to_address, channel=NotificationChannel.SMS, body_text=message, **options)


def send_whatsapp(*, to_address: str, message: str, **options: Any) -> OutboxMessage:
    """Send a WhatsApp message that is written here; as `send_sms`, over an outbox of a WhatsApp account.

    Raises:
        CommunicationError: one of its kinds; nothing was stored.
    """
    return send(to=to_address, channel=NotificationChannel.WHATSAPP, body_text=message, **options)


def send_push(*, to_address: str, title: str, message: str, **options: Any) -> OutboxMessage:
    """Send a push message that is written here, over an outbox of a push account.

    Args:
        to_address: the device's token.
        title, message: sent as they are.
        options: as for `send`: user, metadata, scheduled_at, idempotency_key, tenant, …

    Raises:
        CommunicationError: one of its kinds; nothing was stored.
    """
    return send(to=to_address, channel=NotificationChannel.PUSH, subject=title, body_text=message, **options)


def get_messages_for_object(obj: Model | tuple[str, Any], *, tenant: Tenant | str | None = None) -> list[OutboxMessage]:
    """The messages that are linked to an object, oldest first.

    Args:
        obj: a model instance, or (type, id) as given to `related_object`.
        tenant: as for `enqueue_notification`.
    """
    with sending.scope_of(tenant):
        guard(obj)
        if isinstance(obj, tuple):
            found = OutboxMessage.objects.filter(related_type=str(obj[0]), related_id=str(obj[1]))
        else:
            content_type = ContentType.objects.get_for_model(obj)
            found = OutboxMessage.objects.filter(related_content_type=content_type, related_object_id=str(obj.pk))
        return list(found.order_by("id"))
