"""The two sites, and what their pages have in common.

A host serves one of them, whose URLs are all that it has: what is registered with one site only cannot be reached
on the other's hosts. Both carry the same names, so that a page is the same page wherever it is shown.
"""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, cast

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import action as unfold_action
from unfold.sites import UnfoldAdminSite
from unfold.views import ChangeList

from tenants.context import current_schema
from tenants.models import PUBLIC_SCHEMA
from tenants.sign_in import limit_sign_in

NAVIGATION: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "Tenants",
        (("tenants.tenant", "Tenants", "apartment"), ("tenants.domain", "Domains", "language")),
    ),
    (
        "Messages",
        (
            ("notifications.outboxmessage", "Messages", "mail"),
            ("notifications.attempt", "Attempts", "send"),
            ("notifications.suppression", "Suppressions", "block"),
        ),
    ),
    (
        "Content",
        (
            ("notifications.notificationtemplate", "Templates", "article"),
            ("notifications.eventtype", "Event types", "bolt"),
        ),
    ),
    (
        "Senders",
        (
            ("notifications.account", "Accounts", "key"),
            ("notifications.outbox", "Outboxes", "outbox"),
            ("notifications.communicationsettings", "Settings", "tune"),
        ),
    ),
    (
        "People",
        (
            ("notifications.recipient", "Recipients", "contacts"),
            ("notifications.notificationpreference", "Preferences", "toggle_on"),
            ("auth.user", "Users", "person"),
            ("auth.group", "Groups", "group"),
        ),
    ),
    ("Audit", (("auditlog.logentry", "Audit log", "history"),)),
)
"""The sidebar: titles, and under each the models by label with their names and symbols."""


class CarillonSite(UnfoldAdminSite):  # type: ignore[misc]
    """An admin site whose sidebar shows what the user may see of it."""

    site_url = None
    enable_nav_sidebar = True

    def subtitle(self, request: HttpRequest) -> str:
        """Whose site it is."""
        raise NotImplementedError

    @limit_sign_in
    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Sign in, so often a minute and no more."""
        return super().login(request, extra_context)  # type: ignore[no-any-return]

    def each_context(self, request: HttpRequest) -> dict[str, Any]:
        """What every page is rendered with."""
        context: dict[str, Any] = super().each_context(request)
        name = self.subtitle(request)
        return {**context, "site_title": f"Carillon · {name}", "site_header": "Carillon", "site_subheader": name}

    def get_sidebar_list(self, request: HttpRequest) -> list[dict[str, Any]]:
        """The sidebar's groups, without what this site lacks or the user may not see."""
        groups: list[dict[str, Any]] = []
        for title, entries in NAVIGATION:
            items = [item for entry in entries if (item := self._item(request, *entry))]
            if items:
                groups.append({"title": title, "separator": bool(groups), "items": items})
        return groups

    def _item(self, request: HttpRequest, label: str, title: str, icon: str) -> dict[str, Any] | None:
        shown = {model._meta.label_lower: page for model, page in self._registry.items()}.get(label)
        if shown is None or not shown.has_view_or_change_permission(request):
            return None
        link = reverse(f"admin:{label.replace('.', '_')}_changelist")
        active = request.path.startswith(link)
        return {"title": title, "icon": icon, "link": link, "active": active, "has_permission": True}


class TenantSite(CarillonSite):
    """A tenant's own people: everything of the tenant, nothing of anybody else."""

    index_title = "Overview"

    def subtitle(self, request: HttpRequest) -> str:
        """The tenant's name."""
        return str(request.tenant.name)  # type: ignore[attr-defined]


class PlatformSite(CarillonSite):
    """The platform's operators: the tenants, and what the platform itself sends and offers to them."""

    index_title = "Overview"

    def subtitle(self, request: HttpRequest) -> str:  # noqa: ARG002 (as the base has it)
        """The platform has one name on every host."""
        return "Platform"

    def each_context(self, request: HttpRequest) -> dict[str, Any]:
        """What every page is rendered with."""
        return {**super().each_context(request), "site_title": "Carillon platform"}


tenant_site = TenantSite(name="admin")
platform_site = PlatformSite(name="admin")


class BoundedPaginator(Paginator):  # type: ignore[type-arg]
    """Counts no further than a person pages: a list of millions costs what a list of ten thousand does."""

    most = 10_000

    @cached_property
    def count(self) -> int:
        """The number of rows, or `most` when there are more."""
        rows: Any = self.object_list
        return int(rows.order_by()[: self.most].count())


class CountedOnce(ChangeList):  # type: ignore[misc]
    """A list without a second number beside the first, unless there is something to go back from."""

    def get_results(self, request: HttpRequest) -> None:
        """The page."""
        super().get_results(request)
        if not (self.query or self.has_active_filters):
            self.full_result_count = self.result_count


class BaseAdmin(ModelAdmin):  # type: ignore[misc]
    """How every list and form behaves."""

    list_per_page = 50
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    list_filter_submit = True
    warn_unsaved_form = True
    empty_value_display = "–"

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:  # noqa: ARG002
        """A list that is counted once."""
        return CountedOnce

    def get_action_choices(self, request: HttpRequest, default_choices: Any = None, action_location: Any = None) -> Any:
        """As Unfold's, whose own override Django 6.1 warns of."""
        located = {"action_location": action_location} if action_location else {}
        choices = default_choices or [("", "Select action")]
        return admin.ModelAdmin.get_action_choices(self, request, choices, **located)


class ReadOnlyAdmin(BaseAdmin):
    """Rows that nobody writes here; what is done to them is in the audit log."""

    paginator = BoundedPaginator

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """The row's page, without Django's own history, which never has anything to tell."""
        context = {**(extra_context or {}), "show_history": False}
        response: HttpResponse = super().change_view(request, object_id, form_url, context)
        return response

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002
        """Nobody adds one."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:  # noqa: ARG002
        """Nobody changes one."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:  # noqa: ARG002
        """Nobody deletes one."""
        return False


def action[F: Callable[..., Any]](**options: Any) -> Callable[[F], F]:
    """Unfold's action, typed: `dialog` asks before it acts, so that nothing changes on a GET."""
    return cast("Callable[[F], F]", unfold_action(**options))


def is_public() -> bool:
    """Whether this is the platform's own host."""
    return current_schema() == PUBLIC_SCHEMA


def redirect(request: HttpRequest, url: str) -> HttpResponse:
    """Go to a page, also from a dialog, whose answer is otherwise put into the dialog."""
    if request.headers.get("HX-Request"):
        return HttpResponse(headers={"HX-Redirect": url})
    return HttpResponseRedirect(url)


def link(label: str, pk: object, text: str) -> SafeString | str:
    """A link to a row's page, or the text alone where this host has no such page."""
    try:
        url = reverse(f"admin:{label.replace('.', '_')}_change", args=[pk])
    except NoReverseMatch:
        return text
    return format_html('<a class="text-primary-600 dark:text-primary-500" href="{}">{}</a>', url, text)


def preformatted(text: str) -> SafeString | str:
    """Text as it is, its lines kept."""
    if not text:
        return "–"
    # Anywhere: a long word must not widen the page of a phone.
    style = "white-space: pre-wrap; overflow-wrap: anywhere"
    return format_html('<pre class="font-mono text-xs" style="{}">{}</pre>', style, text)


def readable_json(value: Any) -> SafeString | str:
    """JSON on several lines, or a dash when there is nothing in it."""
    return preformatted(json.dumps(value, indent=2, ensure_ascii=False, default=str)) if value else "–"


def moment(at: datetime) -> SafeString:
    """A time to the second, in the zone of the page, on one line."""
    return format_html('<span class="whitespace-nowrap">{}</span>', f"{timezone.localtime(at):%Y-%m-%d %H:%M:%S}")


def tone(label: str, kind: str) -> SafeString:
    """A coloured label as lists have them; `kind` is info, success, warning, danger or empty."""
    colours = {
        "info": "bg-blue-100 text-blue-700 dark:bg-blue-500/20 dark:text-blue-400",
        "success": "bg-green-100 text-green-700 dark:bg-green-500/20 dark:text-green-400",
        "warning": "bg-orange-100 text-orange-700 dark:bg-orange-500/20 dark:text-orange-400",
        "danger": "bg-red-100 text-red-700 dark:bg-red-500/20 dark:text-red-400",
    }.get(kind, "bg-base-500/8 text-base-700 dark:bg-base-500/20 dark:text-base-200")
    return format_html(
        '<span class="inline-block font-semibold h-6 leading-6 px-2 rounded-default text-[11px] uppercase '
        'whitespace-nowrap {}">{}</span>',
        colours,
        label,
    )
