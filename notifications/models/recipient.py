"""Whom a tenant writes to, and what they want."""

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models.functions import Upper

from notifications.channels.addresses import InvalidAddress, clean_address
from notifications.models.choices import NotificationChannel, SuppressionReason
from notifications.models.fields import one_of, uuid_key
from tenants.scoping import TenantModel


class Recipient(TenantModel):
    """Somebody a tenant writes to."""

    id = uuid_key()
    external_id = models.CharField(max_length=200, null=True, blank=True, unique=True)
    name = models.CharField(max_length=200, blank=True)
    email = models.CharField(max_length=254, blank=True)
    phone = models.CharField(max_length=16, blank=True)
    language = models.CharField(max_length=35, blank=True)
    time_zone = models.CharField(max_length=64, blank=True)
    attributes = models.JSONField(default=dict, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("name", "email")
        permissions = [("broadcast_recipient", "Can write to many recipients at once")]
        indexes = [
            models.Index(Upper("email"), name="recipient_email"),
            models.Index(fields=["phone"], name="recipient_phone", condition=~models.Q(phone="")),
        ]

    def __str__(self) -> str:
        return self.name or self.email or self.phone or self.external_id or str(self.pk)

    def clean(self) -> None:
        """Write the addresses as messages have them, so that a message finds its recipient.

        Raises:
            ValidationError: naming the field and the remedy.
        """
        for field, channel in (("email", NotificationChannel.EMAIL), ("phone", NotificationChannel.SMS)):
            if given := getattr(self, field):
                try:
                    setattr(self, field, clean_address(channel, given))
                except InvalidAddress as error:
                    raise ValidationError({field: str(error)}) from error

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Store the recipient.

        Raises:
            ValidationError: an address cannot be used.
        """
        self.clean()
        super().save(*args, **kwargs)


type Switches = Mapping[str, Mapping[str, bool] | bool]


def allowed_by(switches: Switches, category: str, channel: str) -> bool:
    """Whether off switches by category and channel let a message pass; `*` stands for every category."""
    for name in (category, "*"):
        wanted = switches.get(name)
        if isinstance(wanted, dict) and channel in wanted:
            return bool(wanted[channel])
        if isinstance(wanted, bool):
            return wanted
    return True


class NotificationPreference(TenantModel):
    """What a recipient wants to get; the row without a recipient holds the tenant's defaults."""

    id = uuid_key()
    recipient = models.OneToOneField(Recipient, models.CASCADE, null=True, blank=True, related_name="preference")
    switches = models.JSONField(
        default=dict, blank=True, help_text='Off switches by category and channel: {"booking": {"sms": false}}.'
    )
    preferred_notification_method = models.CharField(max_length=10, blank=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["recipient"], nulls_distinct=False, name="preference_once_a_recipient"),
        ]

    def __str__(self) -> str:
        return f"Preferences of {self.recipient or 'everybody'}"

    def clean(self) -> None:
        """Check the switches' shape.

        Raises:
            ValidationError: they are no switches by category and channel.
        """
        rows = self.switches.values() if isinstance(self.switches, dict) else [None]
        flags = [flag for row in rows for flag in (row.values() if isinstance(row, dict) else [row])]
        if not all(isinstance(flag, bool) for flag in flags):
            raise ValidationError(
                {"switches": 'Write true or false by category and channel: {"booking": {"sms": false}}.'}
            )

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Store the preferences.

        Raises:
            ValidationError: the switches are no switches.
        """
        self.clean()
        super().save(*args, **kwargs)

    def allows(self, category: str, channel: str) -> bool:
        """Whether messages of the category may come on the channel; `*` stands for every category."""
        return allowed_by(self.switches, category, channel)


class Suppression(TenantModel):
    """An address that gets nothing more; in public, it gets nothing from any tenant."""

    id = uuid_key()
    channel = models.CharField(max_length=10, choices=NotificationChannel)
    address = models.CharField(max_length=254)
    reason = models.CharField(max_length=15, choices=SuppressionReason, default=SuppressionReason.MANUAL)
    note = models.CharField(max_length=300, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, editable=False, related_name="+"
    )

    class Meta:
        ordering = ("-created_at",)
        constraints = [
            models.UniqueConstraint(fields=["channel", "address"], name="suppression_once_an_address"),
            models.CheckConstraint(condition=one_of("channel", NotificationChannel), name="suppression_channel_known"),
        ]

    def __str__(self) -> str:
        return f"{self.address} ({self.get_reason_display()})"

    def clean(self) -> None:
        """Write the address as it is compared: mailboxes do not differ by letter case.

        Raises:
            ValidationError: the address cannot be one of the channel's.
        """
        try:
            self.address = clean_address(self.channel, self.address).lower()
        except InvalidAddress as error:
            raise ValidationError({"address": str(error)}) from error

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Store the entry.

        Raises:
            ValidationError: the address cannot be one of the channel's.
        """
        self.clean()
        super().save(*args, **kwargs)
