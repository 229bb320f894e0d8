"""What is said: event types, templates and their versions."""

from typing import Any, ClassVar

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.db.models.functions import Lower

from notifications.models.choices import MessageType, NotificationChannel, TemplateType
from notifications.models.fields import one_of, uuid_key
from tenants.scoping import TenantModel, TenantQuerySet


class EventType(TenantModel):
    """Something that can happen, and what holds for its messages on every channel."""

    id = uuid_key()
    key = models.CharField(max_length=100, unique=True, help_text="Such as booking.confirmed.")
    name = models.CharField(max_length=200)
    message_type = models.CharField(max_length=15, choices=MessageType, default=MessageType.TRANSACTIONAL)
    template_type = models.CharField(max_length=25, choices=TemplateType, default=TemplateType.CUSTOM)
    category = models.CharField(
        max_length=50, blank=True, help_text="What recipients can switch off, such as booking; empty: the message type."
    )
    required_placeholders = models.JSONField(default=list, blank=True)
    expires_after = models.DurationField(
        null=True, blank=True, help_text="No attempt is made later than this after acceptance or the scheduled time."
    )
    security = models.BooleanField(default=False, help_text="Codes and password resets: urgent, and past any opt-out.")

    class Meta:
        ordering = ("key",)
        constraints = [
            models.CheckConstraint(condition=one_of("message_type", MessageType), name="event_message_type_known"),
            models.CheckConstraint(condition=one_of("template_type", TemplateType), name="event_template_type_known"),
        ]

    def __str__(self) -> str:
        return self.key


CONTENT_FIELDS = ("subject", "body_text", "body_html")


class TemplateQuerySet(TenantQuerySet["NotificationTemplate"]):
    """Templates; wording changes only through `save`, which makes a version of it."""

    def update(self, **values: Any) -> int:
        """Change other columns of many templates at once.

        Raises:
            ValueError: the wording is among them.
        """
        if changed := set(values) & {*CONTENT_FIELDS, "version"}:
            raise ValueError(f"save each template instead: {', '.join(sorted(changed))} make a version")
        return super().update(**values)

    def bulk_create(self, *_: Any, **__: Any) -> Any:
        """Refuse: each template makes its first version when it is saved.

        Raises:
            ValueError: always.
        """
        raise ValueError("create templates one by one: each makes its first version")


class NotificationTemplate(TenantModel):
    """The wording for one event on one channel in one language.

    In a tenant's schema it is the tenant's own; in public it is the platform's, which tenants without
    one of their own fall back to. Saving changed wording makes a new version; messages keep the version
    that they were accepted with.
    """

    id = uuid_key()
    event_key = models.CharField(max_length=100)
    channel = models.CharField(max_length=10, choices=NotificationChannel)
    language = models.CharField(
        max_length=35, blank=True, help_text="Such as de or pt-br; empty: whatever language the tenant's default is."
    )
    name = models.CharField(max_length=200)
    subject = models.CharField(max_length=500, blank=True)
    body_text = models.TextField(blank=True)
    body_html = models.TextField(blank=True, verbose_name="body HTML")
    is_active = models.BooleanField(default=True, help_text="Inactive: as if it did not exist.")
    muted = models.BooleanField(default=False, help_text="Send nothing for this event on this channel.")
    version = models.PositiveIntegerField(default=0, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects: ClassVar = TemplateQuerySet.as_manager()

    class Meta:
        ordering = ("event_key", "channel", "language")
        constraints = [
            models.UniqueConstraint(fields=["event_key", "channel", "language"], name="template_once_a_language"),
            models.CheckConstraint(condition=one_of("channel", NotificationChannel), name="template_channel_known"),
            models.CheckConstraint(condition=models.Q(language=Lower("language")), name="template_language_lower_case"),
        ]

    def __str__(self) -> str:
        return " · ".join(part for part in (self.event_key, self.channel, self.language) if part)

    def clean(self) -> None:
        """Check that the wording is complete and can be rendered.

        Raises:
            ValidationError: naming the field, the line and the remedy.
        """
        from notifications.rendering import TemplateInvalid, compile_content

        self.language = self.language.lower().replace("_", "-")
        errors = {}
        if not (self.body_text or self.body_html):
            errors["body_text"] = "Write a text or an HTML body."
        if self.channel == NotificationChannel.EMAIL and not self.subject:
            errors["subject"] = "An e-mail needs a subject."
        if self.channel != NotificationChannel.EMAIL and not self.body_text:
            errors["body_text"] = "This channel carries plain text: write a text body."
        for field in CONTENT_FIELDS:
            part = {"subject": "", "text": "", "html": "", field.removeprefix("body_"): getattr(self, field)}
            try:
                compile_content(**part)
            except TemplateInvalid as error:
                errors[field] = str(error)
        if errors:
            raise ValidationError(errors)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Store the template, and a version of its wording when that is new.

        Raises:
            ValidationError: the wording is incomplete or cannot be rendered.
        """
        self.clean()
        with transaction.atomic():
            # The row's lock makes two editors' versions follow one another.
            latest = type(self).objects.select_for_update().filter(pk=self.pk).first()
            written = kwargs.get("update_fields")
            wording = [
                getattr(self if latest is None or written is None or field in written else latest, field)
                for field in CONTENT_FIELDS
            ]
            changed = latest is None or [getattr(latest, field) for field in CONTENT_FIELDS] != wording
            # Counted from the stored row: this object may have been read before another editor's change.
            self.version = (latest.version if latest else 0) + changed
            if written is not None:
                kwargs["update_fields"] = {*written, "version"}
            super().save(*args, **kwargs)
            TemplateVersion.objects.get_or_create(
                template_id=self.pk,
                number=self.version,
                defaults=dict(zip(CONTENT_FIELDS, wording, strict=True)),
            )


class TemplateVersion(TenantModel):
    """Wording as it once was; never changed, and kept when its template is deleted, for messages still to go."""

    id = uuid_key()
    template_id = models.UUIDField()
    number = models.PositiveIntegerField()
    subject = models.CharField(max_length=500, blank=True)
    body_text = models.TextField(blank=True)
    body_html = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, editable=False, related_name="+"
    )

    class Meta:
        ordering = ("template_id", "-number")
        constraints = [models.UniqueConstraint(fields=["template_id", "number"], name="template_version_once")]

    def __str__(self) -> str:
        return f"version {self.number}"
