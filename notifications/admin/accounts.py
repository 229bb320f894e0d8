"""Senders: accounts with providers, the outboxes on them, and a tenant's defaults."""

import zoneinfo
from dataclasses import dataclass
from typing import Any

from django import forms
from django.conf import settings
from django.contrib.admin import display
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import ValidationError
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminPasswordWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from notifications import handlers, routing
from notifications.admin.sites import BaseAdmin, is_public, link, moment, platform_site, tenant_site
from notifications.channels import InvalidSettings, adapter_class
from notifications.channels.registry import ADAPTERS, UnknownProvider
from notifications.dispatch.circuits import State
from notifications.models import Account, CommunicationSettings, NotificationChannel, Outbox
from notifications.vault import SealBroken

_SMTP = "email/smtp"
_NAMES = {
    "smtp": "SMTP server",
    "https": "Addresses of the recipients",
    "django": "The platform's mail server",
    "console": "Log only",
    "fake": "Test double",
}
_LONG_ENOUGH = 8
"""Of a longer secret the last four characters are shown: they tell two apart and give nothing away."""


def providers(kind: str | None = None) -> list[tuple[str, str]]:
    """Choices `channel/provider`, as far as whoever works here may use them: the platform's own are not a tenant's."""
    found = []
    for (channel, provider), adapter in ADAPTERS.items():
        if (kind and channel != kind) or (adapter.platform_only and not is_public()):
            continue
        label = f"{NotificationChannel(channel).label} · {_NAMES.get(provider, provider)}"
        found.append((f"{channel}/{provider}", label))
    return found


@dataclass(frozen=True, slots=True)
class Stored:
    """What an account holds now, its secret included; it never leaves the form's own checks."""

    options: dict[str, Any]
    password: str
    lost: bool = False
    """The secret is there, and no key opens it."""

    @classmethod
    def of(cls, account: Account) -> "Stored":
        """Read an account's settings for SMTP; one of another provider has none."""
        if account._state.adding or account.kind != NotificationChannel.EMAIL or account.provider_name != "smtp":
            return cls({}, "")
        try:
            options = dict(account.adapter_settings())
        except SealBroken:
            open_part = account.settings.get("smtp", account.settings)
            return cls(dict(open_part), "", lost=True)
        return cls(options, str(options.pop("password", "")))

    @property
    def hint(self) -> str:
        """What may be shown of the password."""
        if self.lost:
            return "The stored password cannot be opened any more: type it again."
        if not self.password:
            return "None is set."
        ending = f", ends in …{self.password[-4:]}" if len(self.password) > _LONG_ENOUGH else ""
        return f"Set{ending}. Leave empty to keep it."


class AccountForm(forms.ModelForm):  # type: ignore[type-arg]
    """An account with a field for each setting of its provider; the stored JSON is never shown."""

    service = forms.ChoiceField(label="Provider", widget=UnfoldAdminSelectWidget)
    smtp_host = forms.CharField(
        label="Host", required=False, widget=UnfoldAdminTextInputWidget, help_text="Such as smtp.example.com."
    )
    smtp_port = forms.IntegerField(label="Port", required=False, initial=587, widget=UnfoldAdminIntegerFieldWidget)
    smtp_username = forms.CharField(
        label="User name",
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"autocomplete": "off"}),
    )
    smtp_password = forms.CharField(
        label="Password",
        required=False,
        strip=False,
        widget=UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"}),
    )
    smtp_remove_password = forms.BooleanField(
        label="Remove the password", required=False, widget=UnfoldBooleanSwitchWidget
    )
    smtp_use_tls = forms.BooleanField(
        label="STARTTLS",
        required=False,
        initial=True,
        widget=UnfoldBooleanSwitchWidget,
        help_text="Encrypts after connecting, usually on port 587.",
    )
    smtp_use_ssl = forms.BooleanField(
        label="TLS from the start",
        required=False,
        widget=UnfoldBooleanSwitchWidget,
        help_text="Instead of STARTTLS, usually on port 465.",
    )
    smtp_connections = forms.IntegerField(
        label="Connections",
        required=False,
        initial=8,
        widget=UnfoldAdminIntegerFieldWidget,
        help_text="How many mails may be handed over at once, 1 to 64.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        account: Account = self.instance
        self.stored = Stored.of(account)
        self.new_settings: dict[str, Any] | None = None
        adding = account._state.adding
        # A channel is not changed any more: outboxes have addresses of its kind.
        service: Any = self.fields["service"]
        service.choices = providers(None if adding else account.kind)
        if not adding:
            current = f"{account.kind}/{account.provider_name}"
            self.initial["service"] = current
            if current not in dict(service.choices):
                service.choices = [*service.choices, (current, f"{account.provider_name} (not available)")]
        self._show_stored()

    def _show_stored(self) -> None:
        if self.stored.options:
            encrypted = bool(self.stored.options.get("use_ssl"))
            shown = {"port": 465 if encrypted else 587, "use_tls": not encrypted, "connections": 8}
            for name, value in {**shown, **self.stored.options}.items():
                self.initial[f"smtp_{name}"] = value
        self.fields["smtp_password"].help_text = self.stored.hint
        if not self.stored.password and not self.stored.lost:
            self.fields["smtp_remove_password"].widget = forms.HiddenInput()

    def clean(self) -> dict[str, Any]:
        """Check the settings as the provider's adapter will read them."""
        cleaned: dict[str, Any] = super().clean() or {}
        service = cleaned.get("service", "")
        kind, _, provider = service.partition("/")
        if not kind:
            return cleaned
        account: Account = self.instance
        kept = not account._state.adding and (account.kind, account.provider_name) == (kind, provider)
        account.kind, account.provider = kind, provider
        if service == _SMTP:
            self.new_settings = {"smtp": self._smtp(cleaned)}
            checked = self.new_settings["smtp"]
        else:
            self.new_settings = None if kept else {}
            checked = {}
        if not self.errors and (service == _SMTP or not kept):
            self._check(kind, provider, checked)
        return cleaned

    def _smtp(self, cleaned: dict[str, Any]) -> dict[str, Any]:
        options = {
            name: value
            for name in ("host", "port", "username", "use_tls", "use_ssl", "connections")
            if (value := cleaned.get(f"smtp_{name}")) not in {None, ""}
        }
        # What the form does not show, such as time-outs, stays as it is.
        kept = {name: value for name, value in self.stored.options.items() if f"smtp_{name}" not in self.fields}
        password = cleaned.get("smtp_password") or ""
        if cleaned.get("smtp_remove_password"):
            if password:
                self.add_error("smtp_password", "Type a new password, or remove the old one: not both.")
            return {**kept, **options}
        if not password and self.stored.password:
            if changed := self._moved(options):
                self.add_error(
                    "smtp_password", f"Type the password again: the old one is not sent elsewhere ({changed} changed)."
                )
            password = self.stored.password
        return {**kept, **options, **({"password": password} if password else {})}

    def _moved(self, options: dict[str, Any]) -> str:
        """What would take the stored password to another place, or there unencrypted."""
        labels = {"host": "host", "port": "port", "username": "user name"}
        changed = [
            label for name, label in labels.items() if options.get(name, "") != (self.initial.get(f"smtp_{name}") or "")
        ]
        was_encrypted = self.initial.get("smtp_use_tls") or self.initial.get("smtp_use_ssl")
        if was_encrypted and not (options.get("use_tls") or options.get("use_ssl")):
            changed.append("encryption")
        return ", ".join(changed)

    def _check(self, kind: str, provider: str, options: dict[str, Any]) -> None:
        try:
            adapter_class(kind, provider).check_settings(options)
        except InvalidSettings as error:
            name = f"smtp_{error.field}"
            text = error.message[:1].upper() + error.message[1:]
            self.add_error(name if name in self.fields else None, text)
        except UnknownProvider as error:
            self.add_error("service", str(error))

    def save(self, commit: bool = True) -> Any:
        """Store the account; settings that did not change are not sealed again, which would look like a change."""
        before = {**self.stored.options, **({"password": self.stored.password} if self.stored.password else {})}
        if self.new_settings is not None and (self.new_settings != {"smtp": before} or self.stored.lost):
            # Whole, so that no secret of an earlier provider stays behind.
            self.instance.sealed = ""
            self.instance.settings = self.new_settings
        return super().save(commit)


class AccountAdmin(BaseAdmin):
    """Credentials with one provider: secrets go in and never come out."""

    form = AccountForm
    list_display = ("title", "channel", "provider_shown", "domain", "verified", "state", "is_active", "updated_shown")
    sortable_by = ("title", "updated_shown")
    list_filter = ("kind", "is_active")
    search_fields = ("name", "domain", "provider")
    readonly_fields = ("verified", "channel", "provider_shown", "server", "state")
    fieldsets = (
        (None, {"fields": ("name", "service", "domain", "verified", "state", "group", "is_active")}),
        (
            "SMTP server",
            {
                "fields": (
                    ("smtp_host", "smtp_port"),
                    ("smtp_username", "smtp_password"),
                    "smtp_remove_password",
                    ("smtp_use_tls", "smtp_use_ssl"),
                    "smtp_connections",
                )
            },
        ),
    )
    conditional_fields = {
        f"smtp_{name}": f"service == '{_SMTP}'"
        for name in (
            "host",
            "port",
            "username",
            "password",
            "remove_password",
            "use_tls",
            "use_ssl",
            "connections",
        )
    }

    def get_fieldsets(self, request: HttpRequest, obj: Account | None = None) -> Any:
        """Who may only look sees what the account is; the provider's fields belong to the form."""
        if obj is None or self.has_change_permission(request, obj):
            return super().get_fieldsets(request, obj)
        shown = ("name", "channel", "provider_shown", "server", "domain", "verified", "state", "group", "is_active")
        return ((None, {"fields": shown}),)

    @display(description="Server")
    def server(self, account: Account) -> str:
        """Where mail is handed over."""
        options = account.settings.get("smtp", {})
        return f"{options.get('host', '')}:{options.get('port', '')}" if options else "–"

    @display(description="Account", ordering="name")
    def title(self, account: Account) -> str:
        """The account's name, or what it is."""
        return str(account)

    @display(description="Channel", ordering="kind")
    def channel(self, account: Account) -> str:
        """The channel in words."""
        return str(account.get_kind_display())

    @display(description="Provider")
    def provider_shown(self, account: Account) -> str:
        """The provider in words."""
        return _NAMES.get(account.provider_name, account.provider_name)

    @display(description="Domain verified")
    def verified(self, account: Account) -> Any:
        """Since when any address at the domain may send."""
        return moment(account.domain_verified_at) if account.domain_verified_at else "–"

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        """The list, with how each account is doing from one query."""
        changes: ChangeList = super().get_changelist_instance(request)
        states = routing.states_of([account.pk for account in changes.result_list])
        for account in changes.result_list:
            account.state_now = states[account.pk]
        return changes

    @display(description="State")
    def state(self, account: Account) -> Any:
        """Whether its provider takes messages, and until when it is left alone if not."""
        if account._state.adding:
            return "–"
        return state_shown(getattr(account, "state_now", None) or routing.states_of([account.pk])[account.pk])

    def save_model(self, request: HttpRequest, obj: Account, form: Any, change: bool) -> None:
        """Store the account; one that was paused is tried at once, as it may have been mended."""
        super().save_model(request, obj, form, change)
        if change:
            routing.try_again(obj)

    @display(description="Updated", ordering="updated_at")
    def updated_shown(self, account: Account) -> Any:
        """When it was last changed."""
        return moment(account.updated_at)


def state_shown(state: State) -> Any:
    """How an account is doing, in words."""
    if state.until is None:
        return "Being tried again" if state.half_open else "Works"
    return format_html("Paused until {}: {}", moment(state.until), state.reason)


def window_shown() -> str:
    """How far back a limit counts, in words."""
    seconds: int = settings.NOTIFICATION_SETTINGS["RATE_LIMIT_WINDOW"]
    names = {3600: "hour", 86400: "day", 60: "minute"}
    return f"the last {names.get(seconds) or f'{seconds} seconds'}"


class OutboxForm(forms.ModelForm):  # type: ignore[type-arg]
    """A sender's address; handlers are chosen from those the platform registered."""

    handler = forms.ChoiceField(
        required=False,
        widget=UnfoldAdminSelectWidget,
        help_text="A registered handler, instead of the provider.",
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field: Any = self.fields["handler"]
        known = handlers.names()
        if (current := self.instance.handler) and current not in known:
            known.append(current)
        field.choices = [("", "None: the account's provider"), *((name, name) for name in known)]


class OutboxAdmin(BaseAdmin):
    """A sender's address on an account."""

    form = OutboxForm
    list_display = ("shown", "state", "limit_use", "account_shown", "priority", "is_active", "updated_shown")
    sortable_by = ("shown", "priority")
    readonly_fields = ("state", "limit_use")
    list_filter = ("account__kind", "is_active")
    list_select_related = ("account",)
    search_fields = ("address", "name", "account__name")
    fieldsets = (
        (None, {"fields": ("account", ("address", "name"), "reply_to", "is_active")}),
        ("Now", {"fields": (("state", "limit_use"),)}),
        ("Delivery", {"fields": (("rate_limit", "priority"), "handler", "group")}),
    )

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        """The list, with how each sender is doing from two queries."""
        changes: ChangeList = super().get_changelist_instance(request)
        outboxes = changes.result_list
        states, used = routing.states_of({o.account_id for o in outboxes}), routing.limits_used(outboxes)
        for outbox in outboxes:
            outbox.state_now, outbox.used_now = states[outbox.account_id], used.get(outbox.pk, 0)
        return changes

    @display(description="State")
    def state(self, outbox: Outbox) -> Any:
        """Whether its account's provider takes messages, and until when it is left alone if not."""
        if outbox._state.adding:
            return "–"
        if outbox.handler:
            return "By its handler"
        key = outbox.account_id
        return state_shown(getattr(outbox, "state_now", None) or routing.states_of([key])[key])

    @display(description="Limit")
    def limit_use(self, outbox: Outbox) -> str:
        """How much of its limit is used."""
        if outbox._state.adding or outbox.rate_limit is None:
            return "No limit of its own"
        used = getattr(outbox, "used_now", None)
        used = routing.limits_used([outbox]).get(outbox.pk, 0) if used is None else used
        return f"{used:,} of {outbox.rate_limit:,} used in {window_shown()}"

    @display(description="Updated")
    def updated_shown(self, outbox: Outbox) -> Any:
        """When it was last changed."""
        return moment(outbox.updated_at)

    @display(description="Sender", ordering="address")
    def shown(self, outbox: Outbox) -> str:
        """The address with its name."""
        return str(outbox)

    @display(description="Account", ordering="account__name")
    def account_shown(self, outbox: Outbox) -> Any:
        """The account, to go to."""
        return link("notifications.account", outbox.account_id, str(outbox.account))


class CommunicationSettingsForm(forms.ModelForm):  # type: ignore[type-arg]
    """A tenant's defaults, chosen from what there is."""

    time_zone = forms.ChoiceField(widget=UnfoldAdminSelectWidget)
    email_provider = forms.ChoiceField(label="E-mail provider", required=False, widget=UnfoldAdminSelectWidget)
    sms_provider = forms.ChoiceField(label="SMS provider", required=False, widget=UnfoldAdminSelectWidget)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        zones: Any = self.fields["time_zone"]
        zones.choices = [(zone, zone.replace("_", " ")) for zone in sorted(zoneinfo.available_timezones())]
        for name in ("email", "sms"):
            field: Any = self.fields[f"{name}_provider"]
            known = [(value.partition("/")[2], label) for value, label in providers(name)]
            current = getattr(self.instance, f"{name}_provider")
            if current and current not in dict(known):
                known.append((current, f"{current} (not available)"))
            field.choices = [("", "The account's own"), *known]

    def clean_default_language(self) -> str:
        """A language tag as templates have it."""
        return str(self.cleaned_data["default_language"]).strip().lower().replace("_", "-")

    def clean_phone_region(self) -> str:
        """A country that phone numbers can be of."""
        import phonenumbers

        region = str(self.cleaned_data["phone_region"]).strip().upper()
        if region and region not in phonenumbers.SUPPORTED_REGIONS:
            raise ValidationError("Give a country's two letters, such as DE, or leave it empty.")
        return region


class CommunicationSettingsAdmin(BaseAdmin):
    """The one row of defaults, which always exists. Of the platform's own only failover means anything."""

    form = CommunicationSettingsForm
    fieldsets = (
        (None, {"fields": ("default_channel", ("default_language", "time_zone"), "phone_region")}),
        ("E-mail", {"fields": ("email_provider", ("email_from_address", "email_from_name"))}),
        ("SMS", {"fields": ("sms_provider",)}),
        ("When a provider fails", {"fields": ("failover",)}),
    )

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """A tenant's all; the platform's own where its shared senders look."""
        fieldsets = super().get_fieldsets(request, obj)
        return fieldsets[-1:] if is_public() else fieldsets

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """With the fields that are there, and no checks of others."""
        if is_public():
            kwargs["form"] = forms.ModelForm
        return super().get_form(request, obj, change, **kwargs)

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002
        """It exists."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:  # noqa: ARG002
        """It always exists."""
        return False

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """A list of one row is that row's page."""
        if not self.has_view_or_change_permission(request):
            response: HttpResponse = super().changelist_view(request, extra_context)
            return response
        return HttpResponseRedirect(reverse("admin:notifications_communicationsettings_change", args=[1]))


for _site in (tenant_site, platform_site):
    _site.register(Account, AccountAdmin)
    _site.register(Outbox, OutboxAdmin)
    _site.register(CommunicationSettings, CommunicationSettingsAdmin)
