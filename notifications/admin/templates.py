"""Content: what can happen, and how it is put."""

from typing import Any
from uuid import UUID

from django import forms
from django.conf import settings
from django.contrib.admin import display
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.widgets import UnfoldAdminTextInputWidget

from notifications.admin.sites import BaseAdmin, is_public, moment, platform_site, preformatted, tenant_site, tone
from notifications.models import EventType, NotificationChannel, NotificationTemplate, TemplateVersion
from notifications.models.template import CONTENT_FIELDS
from tenants.context import public_context

_IDENTITY = ("event_key", "channel", "language")


class WordsField(forms.CharField):
    """A list of words, written with commas."""

    widget = UnfoldAdminTextInputWidget

    def prepare_value(self, value: Any) -> Any:
        """The list as text."""
        return ", ".join(map(str, value)) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        """The text as a list."""
        return [word for part in (super().to_python(value) or "").split(",") if (word := part.strip())]

    def has_changed(self, initial: Any, data: Any) -> bool:
        """Whether other words are written than before."""
        return bool((initial or []) != self.to_python(data))


class EventTypeForm(forms.ModelForm):  # type: ignore[type-arg]
    """An event type; its placeholders are written as words."""

    required_placeholders = WordsField(
        required=False, help_text="Separated by commas, such as name, room. A call without one of them is refused."
    )


class EventTypeAdmin(BaseAdmin):
    """Something that can happen."""

    form = EventTypeForm
    list_display = ("key", "name", "message_type", "category", "placeholders", "security")
    list_filter = (("message_type", ChoicesDropdownFilter), "security")
    search_fields = ("key", "name", "category")
    fieldsets = (
        (None, {"fields": (("key", "name"), ("message_type", "template_type"), "category")}),
        ("Rules", {"fields": ("required_placeholders", "expires_after", "security")}),
    )

    @display(description="Placeholders")
    def placeholders(self, event: EventType) -> str:
        """What a call must give."""
        return ", ".join(map(str, event.required_placeholders)) or "–"


class NotificationTemplateAdmin(BaseAdmin):
    """The wording for one event on one channel in one language, with every version that it had."""

    list_display = ("event_key", "channel_shown", "language_shown", "name", "state", "version_shown", "updated_shown")
    sortable_by = ("event_key", "name", "updated_shown")
    list_filter = (("channel", ChoicesDropdownFilter), "is_active", "muted")
    search_fields = ("event_key", "name", "subject")
    readonly_fields = ("version_shown", "versions")
    list_after_template = "admin/notifications/platform_templates.html"
    fieldsets = (
        (None, {"fields": (("event_key", "name"), ("channel", "language"), ("is_active", "muted"))}),
        ("Wording", {"fields": ("subject", "body_text", "body_html")}),
        ("Versions", {"fields": ("version_shown", "versions")}),
    )

    def get_fieldsets(self, request: HttpRequest, obj: NotificationTemplate | None = None) -> Any:
        """A new template has no versions yet."""
        fieldsets = super().get_fieldsets(request, obj)
        return fieldsets if obj else fieldsets[:-1]

    def get_readonly_fields(self, request: HttpRequest, obj: NotificationTemplate | None = None) -> Any:
        """What a template is for stays: messages and the platform's fallback are found by it."""
        readonly = super().get_readonly_fields(request, obj)
        return (*readonly, *_IDENTITY) if obj else readonly

    @display(description="Channel", ordering="channel")
    def channel_shown(self, template: NotificationTemplate) -> str:
        """The channel in words."""
        return str(template.get_channel_display())

    @display(description="Language", ordering="language")
    def language_shown(self, template: NotificationTemplate) -> str:
        """The language, or that it serves for any."""
        return template.language or "any"

    @display(description="State")
    def state(self, template: NotificationTemplate) -> SafeString:
        """Whether it is used."""
        if template.muted and template.is_active:
            return tone("Muted", "warning")
        return tone("Active", "success") if template.is_active else tone("Inactive", "")

    @display(description="Version", ordering="version")
    def version_shown(self, template: NotificationTemplate) -> str:
        """The number of the wording in use."""
        return str(template.version)

    @display(description="Updated", ordering="updated_at")
    def updated_shown(self, template: NotificationTemplate) -> SafeString:
        """When it was last changed."""
        return moment(template.updated_at)

    @display(description="Every wording")
    def versions(self, template: NotificationTemplate) -> SafeString | str:
        """The wordings, newest first, as they were sent."""
        found = TemplateVersion.objects.filter(template_id=template.pk).select_related("created_by")[:50]
        return format_html_join("", "{}", ((_version(version),) for version in found)) or "–"

    def save_model(self, request: HttpRequest, obj: NotificationTemplate, form: Any, change: bool) -> None:
        """Store the template, and who wrote the version that this makes."""
        with transaction.atomic():
            super().save_model(request, obj, form, change)
            TemplateVersion.objects.filter(
                template_id=obj.pk, number=obj.version, created_by=None, created_at__gte=obj.updated_at
            ).update(created_by=request.user.pk)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """A new template begins with the platform's wording when it is asked for."""
        initial: dict[str, Any] = super().get_changeform_initial_data(request)
        wanted = initial.pop("platform", None)
        return {**initial, **(_platform_wording(wanted) if wanted else {})}

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The tenant's own templates, and below them those that the platform puts in their place."""
        offered = [] if is_public() or not settings.NOTIFY_ALLOW_GLOBAL_TEMPLATE_FALLBACK else _offered()
        add = reverse("admin:notifications_notificationtemplate_add") if self.has_add_permission(request) else ""
        response: HttpResponse = super().changelist_view(
            request, {**(extra_context or {}), "platform_templates": offered, "add_url": add}
        )
        return response


def _version(version: TemplateVersion) -> SafeString:
    parts = (
        ("Subject", version.subject),
        ("Text", version.body_text),
        ("HTML", version.body_html),
    )
    return format_html(
        '<details class="mb-2"><summary class="cursor-pointer">Version {} · {}{}</summary>{}</details>',
        version.number,
        moment(version.created_at),
        f" · {version.created_by}" if version.created_by else "",
        format_html_join(
            "",
            '<div class="mt-2 text-subtle">{}</div>{}',
            ((label, preformatted(text)) for label, text in parts if text),
        ),
    )


def _offered() -> list[dict[str, Any]]:
    """The platform's active templates that the tenant has none of its own for."""
    own = set(NotificationTemplate.objects.values_list(*_IDENTITY))
    with public_context():
        rows = list(NotificationTemplate.objects.filter(is_active=True).values("id", "name", "version", *_IDENTITY))
    return [
        {**row, "channel_shown": NotificationChannel(row["channel"]).label}
        for row in rows
        if tuple(row[name] for name in _IDENTITY) not in own
    ]


def _platform_wording(wanted: str) -> dict[str, Any]:
    try:
        pk = UUID(wanted)
    except ValueError:
        return {}
    with public_context():
        found = NotificationTemplate.objects.filter(pk=pk, is_active=True).values("name", *_IDENTITY, *CONTENT_FIELDS)
        return found.first() or {}


for _site in (tenant_site, platform_site):
    _site.register(EventType, EventTypeAdmin)
    _site.register(NotificationTemplate, NotificationTemplateAdmin)
