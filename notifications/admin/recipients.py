"""Whom is written to, what they want, and to whom nothing goes."""

from typing import Any
from uuid import uuid4

from django import forms
from django.contrib import messages
from django.contrib.admin import display
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from unfold.contrib.filters.admin import ChoicesDropdownFilter

from notifications.admin import broadcast
from notifications.admin.broadcast import BroadcastForm, Letter, Result
from notifications.admin.sites import (
    BaseAdmin,
    BoundedPaginator,
    action,
    link,
    moment,
    platform_site,
    redirect,
    tenant_site,
)
from notifications.channels.addresses import InvalidAddress, clean_address
from notifications.models import (
    CommunicationSettings,
    NotificationChannel,
    NotificationPreference,
    Recipient,
    Suppression,
)


def cleaned_address(channel: str, address: str) -> str:
    """An address as messages have it, so that the two are found to be the same.

    Raises:
        ValidationError: it is no address for the channel.
    """
    if not address:
        return ""
    region = CommunicationSettings.objects.values_list("phone_region", flat=True).first()
    try:
        return clean_address(channel, address, region=region or None)
    except InvalidAddress as error:
        raise ValidationError(str(error)) from error


class RecipientForm(forms.ModelForm):  # type: ignore[type-arg]
    """A recipient, with addresses as they are sent to."""

    def clean_email(self) -> str:
        """The e-mail address in its one spelling."""
        return cleaned_address(NotificationChannel.EMAIL, self.cleaned_data["email"])

    def clean_phone(self) -> str:
        """The phone number in its one spelling."""
        return cleaned_address(NotificationChannel.SMS, self.cleaned_data["phone"])

    def clean_external_id(self) -> str | None:
        """None where there is none: an empty one would be taken once."""
        return self.cleaned_data["external_id"] or None


class RecipientAdmin(BaseAdmin):
    """Somebody a tenant writes to."""

    form = RecipientForm
    paginator = BoundedPaginator
    list_display = ("title", "email", "phone", "external_id", "language", "time_zone", "since")
    search_fields = ("=email", "=phone", "=external_id", "name__istartswith")
    search_help_text = "An address or external id, or how the name begins."
    sortable_by = ()
    actions = ("write_to_them",)
    fieldsets = (
        (None, {"fields": (("name", "external_id"), ("email", "phone"), ("language", "time_zone"))}),
        ("Attributes", {"fields": ("attributes",)}),
    )

    def get_urls(self) -> list[URLPattern]:
        """With the page on which a broadcast is written."""
        view = self.admin_site.admin_view(self.write_view)
        urls: list[URLPattern] = super().get_urls()
        return [path("write/", view, name="notifications_recipient_write"), *urls]

    def has_broadcast_permission(self, request: HttpRequest) -> bool:
        """Whether the user may write to many recipients at once."""
        return bool(request.user.has_perm("notifications.broadcast_recipient"))

    @action(description="Write to them", permissions=["broadcast"])
    def write_to_them(self, request: HttpRequest, queryset: QuerySet[Recipient]) -> HttpResponse | None:
        """Show the page on which a message to the selected recipients is written."""
        selected = list(queryset.values_list("pk", flat=True)[: broadcast.AT_ONCE + 1])
        if len(selected) > broadcast.AT_ONCE:
            messages.error(request, broadcast.too_many())
            return None
        if not selected:
            messages.error(request, "The selected recipients are not there any more.")
            return None
        channels = broadcast.open_channels()
        if not channels:
            messages.error(request, "No active outbox can send: add an account and an outbox for it.")
            return None
        default = CommunicationSettings.objects.values_list("default_channel", flat=True).get()
        channel = default if default in channels else channels[0]
        form = BroadcastForm(initial={"token": uuid4(), "recipients": selected, "channel": channel})
        return self._writing(request, form, selected)

    def write_view(self, request: HttpRequest) -> HttpResponse:
        """Send what was written, or show again what is wrong with it; whoever comes otherwise selects first."""
        if not (self.has_view_permission(request) and self.has_broadcast_permission(request)):
            raise PermissionDenied
        form = BroadcastForm(request.POST)
        if request.method != "POST" or not request.POST.get("recipients"):
            return redirect(request, reverse("admin:notifications_recipient_changelist"))
        if form.is_valid():
            given = dict(form.cleaned_data)
            wanted = given.pop("recipients")
            recipients = list(self.get_queryset(request).filter(pk__in=wanted).order_by("pk"))
            letter = Letter(**given)
            result = broadcast.broadcast(wanted, recipients, letter, request.user)
            if result.accepted:
                _tell(request, letter, result)
                return redirect(request, reverse("admin:notifications_recipient_changelist"))
            # What was written is not lost.
            form.add_error(None, f"Nothing was sent: {result.reasons()}.")
        return self._writing(request, form, form.cleaned_data.get("recipients", []))

    def _writing(self, request: HttpRequest, form: BroadcastForm, selected: list[Any]) -> HttpResponse:
        named = self.get_queryset(request).filter(pk__in=selected)[: broadcast.NAMED]
        number = len(selected)
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": f"Write to {_count(number)}",
            "number": _count(number),
            "named": [str(recipient) for recipient in named],
            "unnamed": max(number - broadcast.NAMED, 0),
            "form": form,
            "action": reverse("admin:notifications_recipient_write"),
            "back": reverse("admin:notifications_recipient_changelist"),
        }
        return TemplateResponse(request, "admin/notifications/broadcast.html", context)

    @display(description="Since")
    def since(self, recipient: Recipient) -> Any:
        """When they became known."""
        return moment(recipient.created_at)

    @display(description="Recipient")
    def title(self, recipient: Recipient) -> str:
        """The name, or whatever is known."""
        return str(recipient)


class NotificationPreferenceAdmin(BaseAdmin):
    """What a recipient wants; the row without a recipient is everybody's default."""

    paginator = BoundedPaginator
    list_display = ("title", "preferred_notification_method", "off", "updated_at")
    list_select_related = ("recipient",)
    search_fields = ("=recipient__email", "=recipient__phone", "=recipient__external_id")
    search_help_text = "A recipient's address or external id."
    raw_id_fields = ("recipient",)
    sortable_by = ()
    fieldsets = ((None, {"fields": ("recipient", "preferred_notification_method", "switches")}),)

    @display(description="Preferences of")
    def title(self, preference: NotificationPreference) -> str:
        """Whose they are."""
        return str(preference.recipient or "everybody (defaults)")

    @display(description="Switched off")
    def off(self, preference: NotificationPreference) -> str:
        """Categories, with the channels that are off in them."""
        found = []
        for category, wanted in preference.switches.items():
            if wanted is False:
                found.append(str(category))
            elif isinstance(wanted, dict):
                found += [f"{category} by {channel}" for channel, on in wanted.items() if not on]
        return ", ".join(found) or "–"


class SuppressionForm(forms.ModelForm):  # type: ignore[type-arg]
    """An address that gets nothing more, spelled as messages spell it."""

    def clean(self) -> dict[str, Any]:
        """Check the address for its channel."""
        cleaned: dict[str, Any] = super().clean() or {}
        if cleaned.get("channel") and cleaned.get("address"):
            try:
                cleaned["address"] = cleaned_address(cleaned["channel"], cleaned["address"])
            except ValidationError as error:
                self.add_error("address", error)
        return cleaned


class SuppressionAdmin(BaseAdmin):
    """Addresses that get nothing more: put here and taken away, not rewritten."""

    form = SuppressionForm
    paginator = BoundedPaginator
    list_display = ("address", "channel_shown", "reason_shown", "note", "since", "author")
    list_filter = (("reason", ChoicesDropdownFilter), ("channel", ChoicesDropdownFilter))
    search_fields = ("=address",)
    search_help_text = "A whole address."
    sortable_by = ()
    readonly_fields = ("since", "author")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Suppression]:
        """With who made them."""
        queryset: QuerySet[Suppression] = super().get_queryset(request)
        return queryset.select_related("created_by")

    def get_fieldsets(self, request: HttpRequest, obj: Suppression | None = None) -> Any:  # noqa: ARG002
        """A new one is not made yet."""
        made = (("since", "author"),) if obj else ()
        return ((None, {"fields": (("channel", "address"), ("reason", "note"), *made)}),)

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:  # noqa: ARG002
        """Nobody rewrites one: remove it and add another, both of which are logged."""
        return False

    def save_model(self, request: HttpRequest, obj: Suppression, form: Any, change: bool) -> None:
        """Store it with who made it."""
        obj.created_by_id = request.user.pk
        super().save_model(request, obj, form, change)

    @display(description="Channel")
    def channel_shown(self, suppression: Suppression) -> str:
        """The channel in words."""
        return str(suppression.get_channel_display())

    @display(description="Since")
    def since(self, suppression: Suppression) -> Any:
        """When it was made."""
        return moment(suppression.created_at)

    @display(description="Reason")
    def reason_shown(self, suppression: Suppression) -> str:
        """The reason in words."""
        return str(suppression.get_reason_display())

    @display(description="By")
    def author(self, suppression: Suppression) -> Any:
        """Who made it; nobody when a provider's receipt did."""
        if suppression.created_by_id and suppression.created_by:
            return link("auth.user", suppression.created_by_id, str(suppression.created_by))
        return "–"


def _tell(request: HttpRequest, letter: Letter, result: Result) -> None:
    when = f"go out at {timezone.localtime(letter.send_at):%Y-%m-%d %H:%M}" if letter.send_at else "are on their way"
    messages.success(request, f"Messages to {_count(result.accepted)} {when}.")
    if result.refused:
        messages.warning(request, f"{_count(result.refused.total())} got none: {result.reasons()}.")


def _count(number: int) -> str:
    return "1 recipient" if number == 1 else f"{number:,} recipients"


tenant_site.register(Recipient, RecipientAdmin)
tenant_site.register(NotificationPreference, NotificationPreferenceAdmin)
for _site in (tenant_site, platform_site):
    _site.register(Suppression, SuppressionAdmin)
