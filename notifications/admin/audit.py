"""The audit log, to be read."""

from typing import Any

from auditlog.models import LogEntry
from auditlog.registry import auditlog
from django.contrib.admin import display
from django.contrib.contenttypes.models import ContentType
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import ChoicesDropdownFilter, RelatedDropdownFilter

from notifications.admin.messages import DayFilter
from notifications.admin.sites import ReadOnlyAdmin, moment, platform_site, readable_json, tenant_site, tone
from notifications.models import OutboxMessage

_TONES = {
    LogEntry.Action.CREATE: "success",
    LogEntry.Action.UPDATE: "info",
    LogEntry.Action.DELETE: "danger",
    LogEntry.Action.ACCESS: "",
}


class LoggedModelFilter(RelatedDropdownFilter):  # type: ignore[misc]
    """By what was changed, out of what is logged."""

    def field_choices(self, field: Any, request: HttpRequest, model_admin: Any) -> list[tuple[Any, str]]:  # noqa: ARG002
        """The logged models, in words."""
        logged = [*auditlog.get_models(), OutboxMessage]
        types = ContentType.objects.get_for_models(*logged)
        return sorted(((found.pk, str(model._meta.verbose_name)) for model, found in types.items()), key=lambda c: c[1])


class LogEntryAdmin(ReadOnlyAdmin):
    """Who changed what, when and from where."""

    list_display = ("at", "actor_shown", "action_shown", "kind", "object_shown", "summary")
    list_filter = (
        ("timestamp", DayFilter),
        ("action", ChoicesDropdownFilter),
        ("content_type", LoggedModelFilter),
    )
    list_select_related = ("actor", "content_type")
    search_fields = ("=object_pk", "=actor_email", "=actor__username", "object_repr")
    search_help_text = "An object's id or name, or who changed it."
    ordering = ("-timestamp", "-id")
    sortable_by = ()
    fieldsets = (
        (None, {"fields": (("at", "action_shown"), ("actor_shown", "origin"), ("kind", "object_whole"))}),
        ("Changes", {"fields": ("changes_shown", "more")}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[LogEntry]:
        """With what its columns name."""
        queryset: QuerySet[LogEntry] = super().get_queryset(request)
        return queryset.select_related("actor", "content_type")

    @display(description="When")
    def at(self, entry: LogEntry) -> SafeString:
        """When it happened."""
        return moment(entry.timestamp)

    @display(description="Who")
    def actor_shown(self, entry: LogEntry) -> str:
        """Who did it; the system itself when nobody was logged in."""
        return str(entry.actor or entry.actor_email or "system")

    @display(description="Did")
    def action_shown(self, entry: LogEntry) -> SafeString:
        """What they did."""
        event = (entry.additional_data or {}).get("event") if isinstance(entry.additional_data, dict) else None
        return tone(str(event or entry.get_action_display()), _TONES.get(entry.action, ""))

    @display(description="To")
    def kind(self, entry: LogEntry) -> str:
        """What kind of thing."""
        return str(entry.content_type.name)

    @display(description="Object")
    def object_shown(self, entry: LogEntry) -> str:
        """Which one, shortened."""
        return entry.object_repr if len(entry.object_repr) <= 50 else f"{entry.object_repr[:50]}…"

    @display(description="Object")
    def object_whole(self, entry: LogEntry) -> str:
        """Which one, with its key."""
        return f"{entry.object_repr} ({entry.object_pk})"

    @display(description="Fields")
    def summary(self, entry: LogEntry) -> str:
        """The fields that changed."""
        names = ", ".join(entry.changes_dict)
        return f"{names[:60]}…" if len(names) > 60 else names or "–"

    @display(description="From")
    def origin(self, entry: LogEntry) -> str:
        """The address it came from."""
        return entry.remote_addr or "–"

    @display(description="Changes")
    def changes_shown(self, entry: LogEntry) -> SafeString | str:
        """Each field before and after."""
        rows = [_row(name, change) for name, change in entry.changes_dict.items()]
        if not rows:
            return "–"
        cell = '<td class="align-top pr-6 py-1 break-words">{}</td>'
        body = format_html_join("", f"<tr>{cell * 3}</tr>", rows)
        return format_html(
            '<table><tr class="text-subtle text-left"><th class="pr-6">Field</th><th>Before</th><th>After</th></tr>'
            "{}</table>",
            body,
        )

    @display(description="More")
    def more(self, entry: LogEntry) -> SafeString | str:
        """The reason, and whatever else was noted."""
        return readable_json(entry.additional_data)


def _row(name: str, change: Any) -> tuple[str, str, str]:
    """A field with its two values; of a relation, what was added or removed."""
    if isinstance(change, dict):
        objects = ", ".join(map(str, change.get("objects", ())))
        return (
            (name, "", f"added: {objects}") if change.get("operation") == "add" else (name, f"removed: {objects}", "")
        )
    before, after = (*change, "", "")[:2]
    return name, "" if before == "None" else str(before), "" if after == "None" else str(after)


for _site in (tenant_site, platform_site):
    _site.register(LogEntry, LogEntryAdmin)
