"""Outgoing messages and the attempts to hand them over."""

from typing import Any

from django.conf import settings
from django.contrib.contenttypes.fields import GenericForeignKey
from django.contrib.contenttypes.models import ContentType
from django.db import models

from notifications.channels import Accepted, Failure, Unavailable
from notifications.exceptions import CommunicationError
from notifications.models.choices import (
    AttemptOutcome,
    MessageStatus,
    MessageType,
    NotificationChannel,
    Priority,
    Scope,
)
from notifications.models.fields import one_of, uuid_key
from notifications.models.recipient import Recipient
from tenants.scoping import TenantModel

CALLERS_FIELDS = ("metadata", "related_type", "related_id")


class OutboxMessage(TenantModel):
    """One message to one recipient on one channel, from acceptance to its last receipt.

    It is the delivery work, the schedule, the log and the audit record in one row. `lifecycle` is the only
    writer of `status`; a trigger refuses moves that `lifecycle.MOVES` does not list.
    """

    id = uuid_key()
    idempotency_key = models.CharField(max_length=200, unique=True)
    request_hash = models.CharField(max_length=64, editable=False)

    channel = models.CharField(max_length=10, choices=NotificationChannel)
    message_type = models.CharField(max_length=15, choices=MessageType, default=MessageType.TRANSACTIONAL)
    category = models.CharField(max_length=50, blank=True)
    security = models.BooleanField(default=False)
    priority = models.CharField(max_length=10, choices=Priority, default=Priority.DEFAULT)
    status = models.CharField(max_length=10, choices=MessageStatus, default=MessageStatus.PENDING)

    event_key = models.CharField(max_length=100, blank=True)
    template_scope = models.CharField(max_length=8, choices=Scope, blank=True)
    template_uuid = models.UUIDField(null=True, blank=True)
    template_version = models.PositiveIntegerField(null=True, blank=True)
    language = models.CharField(max_length=35, blank=True)
    outbox_scope = models.CharField(max_length=8, choices=Scope)
    outbox_uuid = models.UUIDField()

    user = models.ForeignKey(
        settings.NOTIFY_USER_MODEL or settings.AUTH_USER_MODEL,
        models.SET_NULL,
        null=True,
        blank=True,
        db_constraint=False,
        db_index=False,
        related_name="+",
    )
    recipient = models.ForeignKey(
        Recipient, models.SET_NULL, null=True, blank=True, db_constraint=False, db_index=False, related_name="+"
    )
    to_address = models.CharField(max_length=2000)
    to_name = models.CharField(max_length=200, blank=True)
    from_address = models.CharField(max_length=254, blank=True)
    from_name = models.CharField(max_length=100, blank=True)
    from_fixed = models.BooleanField(
        db_default=False, default=False, help_text="The caller named the sender: no other may stand in."
    )
    reply_to = models.CharField(max_length=254, blank=True)

    subject = models.TextField(blank=True)
    body_text = models.TextField(blank=True)
    body_html = models.TextField(blank=True)
    context = models.JSONField(default=dict, blank=True)
    metadata = models.JSONField(default=dict, blank=True)
    headers = models.JSONField(default=dict, blank=True)

    related_content_type = models.ForeignKey(
        ContentType, models.SET_NULL, null=True, blank=True, db_constraint=False, db_index=False, related_name="+"
    )
    related_object_id = models.CharField(max_length=200, blank=True)
    related_object = GenericForeignKey("related_content_type", "related_object_id")
    related_type = models.CharField(max_length=50, blank=True)
    related_id = models.CharField(max_length=200, blank=True)

    scheduled_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField()
    deferral_reason = models.CharField(max_length=200, blank=True)
    attempt_count = models.PositiveSmallIntegerField(default=0)
    max_attempts = models.PositiveSmallIntegerField()
    retry_count = models.PositiveSmallIntegerField(default=0)
    max_retries = models.PositiveSmallIntegerField()

    error_class = models.CharField(max_length=20, blank=True)
    error_message = models.TextField(blank=True)
    external_id = models.CharField(max_length=200, blank=True)
    delivery_status = models.CharField(max_length=50, blank=True)
    provider_response = models.JSONField(default=dict, blank=True)

    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.SET_NULL,
        null=True,
        blank=True,
        db_constraint=False,
        db_index=False,
        related_name="+",
    )
    sent_at = models.DateTimeField(null=True, blank=True)
    delivered_at = models.DateTimeField(null=True, blank=True)
    opened_at = models.DateTimeField(null=True, blank=True)
    clicked_at = models.DateTimeField(null=True, blank=True)
    failed_at = models.DateTimeField(null=True, blank=True)
    dead_lettered_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = "notifications"
        ordering = ("-id",)
        permissions = [
            ("requeue_outboxmessage", "Can send outbox messages again"),
            ("cancel_outboxmessage", "Can cancel outbox messages"),
        ]
        indexes = [
            models.Index(fields=["status", "-id"], name="idx_notifications_status"),
            models.Index(fields=["user", "-id"], name="idx_notifications_user", condition=models.Q(user__isnull=False)),
            models.Index(fields=["to_address", "-id"], name="idx_notifications_address"),
            models.Index(
                fields=["related_content_type", "related_object_id"],
                name="idx_notifications_object",
                condition=models.Q(related_content_type__isnull=False),
            ),
            models.Index(
                fields=["related_type", "related_id"],
                name="idx_notifications_related",
                condition=~models.Q(related_type=""),
            ),
            models.Index(
                fields=["external_id"], name="idx_notifications_external", condition=~models.Q(external_id="")
            ),
            models.Index(
                fields=["failed_at"],
                name="idx_notifications_failed",
                condition=models.Q(status=MessageStatus.FAILED),
            ),
            models.Index(
                fields=["-id"], name="idx_notifications_dead", condition=models.Q(dead_lettered_at__isnull=False)
            ),
        ]
        constraints = [
            models.CheckConstraint(condition=one_of("channel", NotificationChannel), name="message_channel_known"),
            models.CheckConstraint(condition=one_of("message_type", MessageType), name="message_type_known"),
            models.CheckConstraint(condition=one_of("priority", Priority), name="message_priority_known"),
            models.CheckConstraint(condition=one_of("status", MessageStatus), name="message_status_known"),
            models.CheckConstraint(condition=one_of("outbox_scope", Scope), name="message_outbox_scope_known"),
            models.CheckConstraint(
                condition=models.Q(template_uuid__isnull=True)
                | models.Q(template_scope__in=Scope.values, template_version__isnull=False),
                name="message_template_whole",
            ),
            models.CheckConstraint(
                condition=~models.Q(status__in=[MessageStatus.SENT, MessageStatus.DELIVERED])
                | models.Q(sent_at__isnull=False),
                name="message_sent_has_time",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.channel} to {self.to_address}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Store the message; of one that is stored already, only what is the caller's.

        The object may be older than the row: a worker has moved it on meanwhile, and its state is not ours to undo.
        """
        if not self._state.adding:
            kwargs["update_fields"] = {*CALLERS_FIELDS} & {*(kwargs.get("update_fields") or CALLERS_FIELDS)}
        super().save(*args, **kwargs)

    @property
    def message(self) -> str:
        """The plain text, by its other name."""
        return self.body_text

    @property
    def recipient_email(self) -> str:
        """The address, when it is an e-mail address."""
        return self.to_address if self.channel == NotificationChannel.EMAIL else ""

    @property
    def recipient_phone(self) -> str:
        """The address, when it is a phone number."""
        phones = {NotificationChannel.SMS, NotificationChannel.WHATSAPP, NotificationChannel.VOICE}
        return self.to_address if self.channel in phones else ""

    @property
    def is_sent(self) -> bool:
        """Whether the provider took it, and it did not bounce."""
        return self.status in {MessageStatus.SENT, MessageStatus.DELIVERED}

    @property
    def is_failed(self) -> bool:
        """Whether it failed or bounced."""
        return self.status in {MessageStatus.FAILED, MessageStatus.BOUNCED}

    @property
    def can_retry(self) -> bool:
        """Whether `reset_for_retry` would send it again."""
        from notifications import lifecycle

        return lifecycle.retry_allowed(self)

    def reset_for_retry(self) -> None:
        """Send a failed message again.

        Raises:
            NotRetryable: it has not failed, or its retries are used up.
        """
        from notifications import lifecycle

        lifecycle.requeue(self)

    marked: Accepted | Failure | None = None
    """What a handler that hands this message over has said of it; see `handling`."""

    def mark_sending(self) -> None:
        """For handlers: nothing is left to do, for the message is `sending` before one is called.

        Raises:
            CommunicationError: it is not being handed over.
        """
        if self.status != MessageStatus.SENDING:
            raise CommunicationError(f"message {self.pk} is {self.status}: only a handler marks what it is handed")

    def mark_sent(self, message_id: str = "") -> None:
        """For handlers: the message was taken, under the provider's own id. It is written down once they return.

        Raises:
            CommunicationError: it is not being handed over.
        """
        self.mark_sending()
        self.marked = Accepted(provider_id=message_id)

    def mark_failed(self, error: str) -> None:
        """For handlers: the message was certainly not taken, and may be tried again.

        What will never be taken, a handler says by raising `channels.Rejected`; what may have been, `Uncertain`.

        Raises:
            CommunicationError: it is not being handed over.
        """
        self.mark_sending()
        self.marked = Unavailable(error)

    @property
    def error_log(self) -> str:
        """The errors of every attempt, oldest first, a line each."""
        attempts = self.attempts.exclude(error="").order_by("cycle", "number")
        return "\n".join(f"{attempt.finished_at:%Y-%m-%d %H:%M:%S} {attempt.error}" for attempt in attempts)

    def get_metadata_value(self, key: str, default: Any = None) -> Any:
        """One entry of the metadata."""
        return self.metadata.get(key, default)

    @property
    def outbox(self) -> Any:
        """The outbox that it leaves by: the tenant's own, or the platform's."""
        from notifications import routing

        return routing.outbox_of(self)

    @property
    def account(self) -> Any:
        """The account whose credentials it leaves with; None when it is gone."""
        outbox = self.outbox
        return outbox and outbox.account


class Attempt(TenantModel):
    """One hand-over to a provider and how it ended."""

    id = uuid_key()
    message = models.ForeignKey(
        OutboxMessage, models.CASCADE, related_name="attempts", db_constraint=False, db_index=False
    )
    cycle = models.PositiveSmallIntegerField(default=0, help_text="How often the message had been sent again before.")
    number = models.PositiveSmallIntegerField(help_text="Counted from 1 in each cycle.")
    provider = models.CharField(max_length=30)
    outbox_scope = models.CharField(max_length=8, choices=Scope)
    outbox_uuid = models.UUIDField()
    worker = models.CharField(max_length=100, blank=True)
    started_at = models.DateTimeField()
    finished_at = models.DateTimeField()
    outcome = models.CharField(max_length=11, choices=AttemptOutcome)
    error_class = models.CharField(max_length=20, blank=True)
    error = models.TextField(blank=True)
    response = models.CharField(max_length=500, blank=True)

    class Meta:
        ordering = ("message_id", "cycle", "number")
        constraints = [
            models.UniqueConstraint(fields=["message", "cycle", "number"], name="attempt_number_once"),
            models.CheckConstraint(condition=one_of("outcome", AttemptOutcome), name="attempt_outcome_known"),
        ]

    def __str__(self) -> str:
        return f"attempt {self.number}: {self.outcome}"
