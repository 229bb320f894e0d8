"""The platform's operators see who the tenants are, and stop, resume and end them.

A tenant is made, and its schema dropped, by commands only: neither belongs in a web request.
"""

from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin import display
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.db.models import BooleanField, Case, Model, QuerySet, Value, When
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import ChoicesDropdownFilter
from unfold.enums import ActionVariant
from unfold.forms import BaseDialogForm
from unfold.widgets import UnfoldAdminIntegerFieldWidget, UnfoldAdminTextInputWidget

from notifications import quotas
from notifications.admin.sites import BaseAdmin, action, link, moment, platform_site, redirect, tone
from tenants import hosts, onboarding
from tenants.models import Domain, Status, Tenant, up_to_date
from tenants.onboarding import OnboardingError

QUOTA_LIMIT = 2_147_483_647
"""What the column holds at most."""
_TONES = {Status.ACTIVE: "success", Status.SUSPENDED: "warning", Status.CLOSED: ""}


class SuspendForm(BaseDialogForm):  # type: ignore[misc]
    """Why a tenant is stopped."""

    reason = forms.CharField(
        label="Reason", max_length=300, widget=UnfoldAdminTextInputWidget, help_text="Other operators see it."
    )


class QuotaForm(BaseDialogForm):  # type: ignore[misc]
    """How many messages a tenant may have accepted in a day."""

    daily_quota = forms.IntegerField(
        label="Messages a day",
        required=False,
        min_value=0,
        max_value=QUOTA_LIMIT,
        widget=UnfoldAdminIntegerFieldWidget,
        help_text="Counted from midnight UTC, or from now on if there was no quota. Empty: as for every tenant.",
    )


class CloseForm(forms.Form):
    """A tenant's name, typed by whoever ends it."""

    confirmation = forms.CharField(
        label="The tenant's name",
        widget=UnfoldAdminTextInputWidget(attrs={"autocomplete": "off"}),
        help_text="Type it exactly as it is shown above.",
    )
    reason = forms.CharField(label="Reason", max_length=300, required=False, widget=UnfoldAdminTextInputWidget)

    def __init__(self, tenant: Tenant, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tenant = tenant

    def clean_confirmation(self) -> str:
        """The name, which must be this tenant's."""
        typed = str(self.cleaned_data["confirmation"])
        if typed != self.tenant.name:
            raise ValidationError("This is not the tenant's name.")
        return typed


class TenantAdmin(BaseAdmin):
    """The tenants: what state they are in, and the four things done to them."""

    list_display = ("name", "status_shown", "domains_shown", "schema_name", "migrations_shown", "since")
    sortable_by = ("name", "status_shown")
    list_filter = (("status", ChoicesDropdownFilter),)
    search_fields = ("name", "schema_name", "domains__domain")
    ordering = ("name",)
    actions_detail = ("set_quota", "suspend", "resume", "close_tenant")
    fieldsets = (
        (None, {"fields": (("name", "status_shown"), "status_reason", "domains_shown")}),
        ("Limits", {"fields": ("quota_shown",)}),
        ("Schema", {"fields": (("schema_name", "migrations_shown"), "since")}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Tenant]:
        """With their domains, and whether their schemas are up to date."""
        ready = Case(When(up_to_date(), then=Value(True)), default=Value(False), output_field=BooleanField())
        queryset: QuerySet[Tenant] = super().get_queryset(request)
        shown: QuerySet[Tenant] = queryset.defer("migrations").prefetch_related("domains").annotate(ready=ready)
        return shown

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002
        """`create_tenant` makes them."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:  # noqa: ARG002
        """Only the actions change one."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:  # noqa: ARG002
        """`close_tenant --drop` removes them."""
        return False

    def has_move_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        """Whether the operator may suspend and resume tenants, and limit them."""
        return bool(request.user.has_perm("tenants.change_tenant"))

    def has_close_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        """Whether the operator may end tenants."""
        return bool(request.user.has_perm("tenants.delete_tenant"))

    def get_urls(self) -> list[URLPattern]:
        """With the page that ends a tenant."""
        view = self.admin_site.admin_view(self.close_view)
        urls: list[URLPattern] = super().get_urls()
        return [path("<path:object_id>/end/", view, name="tenants_tenant_end"), *urls]

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Only what the tenant's status allows; the platform itself is never stopped."""
        tenant = self.get_object(request, str(object_id))
        if tenant is None or tenant.is_public:
            return []
        allowed = {
            "set_quota": {Status.ACTIVE, Status.SUSPENDED},
            "suspend": {Status.ACTIVE, Status.SUSPENDED},
            "resume": {Status.SUSPENDED},
            "close_tenant": {Status.ACTIVE, Status.SUSPENDED},
        }
        return [
            found
            for found in super().get_actions_detail(request, object_id)
            if tenant.status in allowed[found.method.original_function_name]
        ]

    @action(
        description="Daily quota",
        permissions=["move"],
        url_path="quota",
        icon="speed",
        dialog={
            "title": "How many messages a day?",
            "description": "What goes beyond them is refused until midnight UTC, codes and password resets excepted.",
            "form_class": QuotaForm,
            "form_submit_text": "Save",
        },
    )
    def set_quota(self, request: HttpRequest, form: QuotaForm, object_id: str) -> HttpResponse:
        """Give a tenant a daily quota of its own, or take it away."""
        quota = form.cleaned_data["daily_quota"]
        return self._move(request, object_id, lambda tenant: _set_quota(tenant, quota, str(request.user)), "is limited")

    @action(
        description="Suspend",
        permissions=["move"],
        url_path="suspend",
        icon="pause",
        variant=ActionVariant.WARNING,
        dialog={
            "title": "Suspend this tenant?",
            "description": "Its hosts answer 403 and its messages wait until it is resumed.",
            "form_class": SuspendForm,
            "form_submit_text": "Suspend",
        },
    )
    def suspend(self, request: HttpRequest, form: SuspendForm, object_id: str) -> HttpResponse:
        """Stop a tenant for a while."""
        reason = form.cleaned_data["reason"]
        return self._move(
            request, object_id, lambda tenant: onboarding.suspend(tenant, reason, str(request.user)), "is suspended"
        )

    @action(
        description="Resume",
        permissions=["move"],
        url_path="resume",
        icon="play_arrow",
        dialog={
            "title": "Resume this tenant?",
            "description": "Its hosts answer again, and messages that waited go out.",
            "form_class": BaseDialogForm,
            "form_submit_text": "Resume",
        },
    )
    def resume(self, request: HttpRequest, form: BaseDialogForm, object_id: str) -> HttpResponse:  # noqa: ARG002
        """Let a suspended tenant work again."""
        return self._move(
            request, object_id, lambda tenant: onboarding.resume(tenant, str(request.user)), "works again"
        )

    @action(description="Close", permissions=["close"], url_path="close", icon="block", variant=ActionVariant.DANGER)
    def close_tenant(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Go to the page that asks for the tenant's name."""
        return redirect(request, reverse("admin:tenants_tenant_end", args=[object_id]))

    def close_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """End a tenant, once its name is typed."""
        if not self.has_close_permission(request):
            raise PermissionDenied
        tenant = self.get_object(request, object_id)
        if tenant is None or tenant.is_public or tenant.status == Status.CLOSED:
            raise Http404("there is no such tenant to close")
        form = CloseForm(tenant, request.POST or None)
        if request.method == "POST" and form.is_valid():
            typed, reason = form.cleaned_data["confirmation"], form.cleaned_data["reason"]
            return self._move(
                request,
                object_id,
                lambda found: onboarding.close(found, typed, str(request.user), reason),
                "is closed",
            )
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": f"Close {tenant.name}",
            "tenant": tenant,
            "form": form,
            "back": reverse("admin:tenants_tenant_change", args=[tenant.pk]),
        }
        return TemplateResponse(request, "admin/notifications/close_tenant.html", context)

    def _move(self, request: HttpRequest, object_id: str, move: Any, done: str) -> HttpResponse:
        tenant = self.get_object(request, object_id)
        if tenant is None:
            messages.error(request, "There is no such tenant.")
            return redirect(request, reverse("admin:tenants_tenant_changelist"))
        try:
            move(tenant)
        except OnboardingError as error:
            messages.error(request, f"{str(error)[:1].upper()}{str(error)[1:]}.")
        else:
            messages.success(request, f"{tenant.name} {done}.")
        return redirect(request, reverse("admin:tenants_tenant_change", args=[tenant.pk]))

    @display(description="Status", ordering="status")
    def status_shown(self, tenant: Tenant) -> SafeString:
        """The status, coloured."""
        return tone(tenant.get_status_display(), _TONES[Status(tenant.status)])

    @display(description="Daily quota")
    def quota_shown(self, tenant: Tenant) -> str:
        """What holds for it, and how much of it is used today."""
        quota = quotas.quota_of(tenant.daily_quota, tenant_id=tenant.pk)
        if quota is None:
            return "None"
        whose = "" if tenant.daily_quota is not None else ", as for every tenant"
        return f"{quota.most:,} messages{whose}; {quota.used():,} used today"

    @display(description="Since")
    def since(self, tenant: Tenant) -> SafeString:
        """When it was made."""
        return moment(tenant.created_at)

    @display(description="Domains")
    def domains_shown(self, tenant: Tenant) -> str:
        """Its hosts, the primary one first."""
        found = sorted(tenant.domains.all(), key=lambda domain: (not domain.is_primary, domain.domain))
        return ", ".join(domain.domain for domain in found) or "–"

    @display(description="Migrations")
    def migrations_shown(self, tenant: Any) -> SafeString:
        """Whether its schema has what this code needs."""
        return tone("Up to date", "success") if tenant.ready else tone("Behind", "danger")


def _set_quota(tenant: Tenant, quota: int | None, actor: str) -> None:
    with transaction.atomic():
        # Saved as an object, not updated in a set, so that the audit log has it.
        locked = Tenant.objects.select_for_update().get(pk=tenant.pk)
        locked.daily_quota, locked.changed_by = quota, actor
        locked.save(update_fields=["daily_quota"])


class DomainForm(forms.ModelForm):  # type: ignore[type-arg]
    """A host of a tenant."""

    def clean_domain(self) -> str:
        """The host's full name, which is a tenant's to have."""
        return hosts.tenant_host(str(self.cleaned_data["domain"]))


class DomainAdmin(BaseAdmin):
    """The hosts that tenants are served on; one that is in use is not given to another."""

    form = DomainForm
    list_display = ("domain", "tenant_shown", "is_primary")
    list_select_related = ("tenant",)
    search_fields = ("domain", "tenant__name")
    ordering = ("domain",)
    fieldsets = ((None, {"fields": ("domain", "tenant", "is_primary")}),)

    def get_readonly_fields(self, request: HttpRequest, obj: Domain | None = None) -> Any:  # noqa: ARG002
        """Whose it is, and how it is written, stays."""
        return ("domain", "tenant") if obj else ()

    def has_change_permission(self, request: HttpRequest, obj: Domain | None = None) -> bool:
        """The platform's own host stays as the settings have it."""
        return bool(super().has_change_permission(request, obj)) and not (obj and obj.tenant.is_public)

    def has_delete_permission(self, request: HttpRequest, obj: Domain | None = None) -> bool:
        """Likewise; a primary one is replaced first."""
        kept = obj is not None and (obj.tenant.is_public or obj.is_primary)
        return bool(super().has_delete_permission(request, obj)) and not kept

    @display(description="Tenant", ordering="tenant__name")
    def tenant_shown(self, domain: Domain) -> Any:
        """Whose it is."""
        return link("tenants.tenant", domain.tenant_id, str(domain.tenant))


platform_site.register(Tenant, TenantAdmin)
platform_site.register(Domain, DomainAdmin)
