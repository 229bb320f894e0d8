"""Users and groups: nobody gives away more than they hold, or takes over somebody who holds more.

The second half matters as much as the first: who may set an owner's password is an owner. So a user, or a group,
with any permission that the editor lacks can only be looked at.
"""

from typing import Any

from django.contrib.admin import display
from django.contrib.auth import get_user_model
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.forms import ReadOnlyPasswordHashWidget
from django.contrib.auth.hashers import is_password_usable
from django.contrib.auth.models import Group, Permission
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldAdminSelect2MultipleWidget

from notifications.admin.sites import BaseAdmin, moment, platform_site, tenant_site
from tenants.owners import OWNERS

User = get_user_model()


def permissions_of(user: Any) -> QuerySet[Permission]:
    """All that a user holds or would hold when active: somebody inactive can be made active again."""
    if user.is_superuser:
        return Permission.objects.all()
    return Permission.objects.filter(Q(user=user) | Q(group__user=user)).distinct()


def lacking(editor: Any) -> QuerySet[Permission]:
    """What an editor does not hold, and so can neither give nor take."""
    if editor.is_active and editor.is_superuser:
        return Permission.objects.none()
    return Permission.objects.exclude(pk__in=permissions_of(editor).values("pk"))


def holds_more(user: Any, editor: Any) -> bool:
    """Whether a user is above the editor."""
    if user.is_superuser or editor.is_superuser:
        return bool(user.is_superuser and not editor.is_superuser)
    return permissions_of(user).filter(pk__in=lacking(editor).values("pk")).exists()


class PasswordState(ReadOnlyPasswordHashWidget):
    """Whether there is a password: neither its hash nor its salt is anybody's business."""

    template_name = "admin/notifications/password_state.html"

    def get_context(self, name: str, value: Any, attrs: Any) -> dict[str, Any]:
        """Whether it can be signed in with, and the button to set another."""
        context: dict[str, Any] = super().get_context(name, value, attrs)
        return {**context, "is_set": bool(value and is_password_usable(value))}


class UserForm(UserChangeForm):  # type: ignore[misc]
    """A user, without a view of the password."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "password" in self.fields:
            self.fields["password"].widget = PasswordState()


def compact(field: Any, db_field: Any) -> Any:
    """A many-to-many field as a row of words that fits on a phone."""
    if field is not None:
        field.widget, field.help_text = UnfoldAdminSelect2MultipleWidget(), db_field.help_text
        field.widget.choices = field.choices
    return field


class UserAdmin(DjangoUserAdmin, BaseAdmin):  # type: ignore[type-arg]
    """The people of a tenant, or of the platform."""

    form = UserForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ("username", "email", "name", "groups_shown", "is_staff", "is_active", "last_seen")
    sortable_by = ("username", "email")
    list_filter = ("is_staff", "is_active", "groups")
    filter_horizontal = ()
    readonly_fields = ("last_login", "date_joined")
    fieldsets = (
        (None, {"fields": (("username", "password"),)}),
        ("Person", {"fields": (("first_name", "last_name"), "email")}),
        ("Access", {"fields": (("is_active", "is_staff"), "groups", "user_permissions")}),
        ("Dates", {"fields": (("last_login", "date_joined"),)}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """With their groups."""
        queryset: QuerySet[Any] = super().get_queryset(request)
        return queryset.prefetch_related("groups")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether the editor may change users, and this one is not above them."""
        return bool(super().has_change_permission(request, obj)) and not (obj and holds_more(obj, request.user))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Likewise; nobody deletes themselves."""
        allowed = bool(super().has_delete_permission(request, obj))
        return allowed and not (obj and (obj.pk == request.user.pk or holds_more(obj, request.user)))

    def formfield_for_manytomany(self, db_field: Any, request: Any, **kwargs: Any) -> Any:
        """Offer what the editor holds."""
        if db_field.name == "user_permissions":
            kwargs["queryset"] = grantable(request.user)
        elif db_field.name == "groups":
            above = Group.objects.filter(permissions__in=lacking(request.user).values("pk"))
            kwargs["queryset"] = Group.objects.exclude(pk__in=above.values("pk"))
        return compact(super().formfield_for_manytomany(db_field, request, **kwargs), db_field)

    @display(description="Name")
    def name(self, user: Any) -> str:
        """The person's name."""
        return user.get_full_name() or "–"

    @display(description="Last log-in")
    def last_seen(self, user: Any) -> Any:
        """When they last logged in."""
        return moment(user.last_login) if user.last_login else "never"

    @display(description="Groups")
    def groups_shown(self, user: Any) -> str:
        """The groups they are in."""
        return ", ".join(group.name for group in user.groups.all()) or "–"


class OperatorAdmin(UserAdmin):
    """The platform's operators; among them, superusers may make others."""

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Who is no superuser does not see the switch."""
        fieldsets = super().get_fieldsets(request, obj)
        if obj is None or not request.user.is_superuser:
            return fieldsets
        access = ("Access", {"fields": (("is_active", "is_staff", "is_superuser"), "groups", "user_permissions")})
        return tuple(access if name == "Access" else (name, options) for name, options in fieldsets)


class GroupAdmin(DjangoGroupAdmin, BaseAdmin):
    """Permissions that go together."""

    list_display = ("name", "number")
    filter_horizontal = ()

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether the editor holds all that the group gives. The owners' group is kept by every migration."""
        return bool(super().has_change_permission(request, obj)) and self._is_below(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Likewise."""
        return bool(super().has_delete_permission(request, obj)) and self._is_below(request, obj)

    def _is_below(self, request: HttpRequest, group: Any) -> bool:
        if group is None:
            return True
        above = group.permissions.filter(pk__in=lacking(request.user).values("pk"))
        return group.name != OWNERS and not above.exists()

    def formfield_for_manytomany(self, db_field: Any, request: Any = None, **kwargs: Any) -> Any:
        """Offer what the editor holds."""
        if db_field.name == "permissions":
            kwargs["queryset"] = grantable(request.user)
        return compact(super().formfield_for_manytomany(db_field, request, **kwargs), db_field)

    @display(description="Permissions")
    def number(self, group: Any) -> int:
        """How many it gives."""
        return int(group.permissions.count())


def grantable(editor: Any) -> QuerySet[Permission]:
    """What an editor can give."""
    return permissions_of(editor).select_related("content_type").order_by("content_type__app_label", "codename")


tenant_site.register(User, UserAdmin)
platform_site.register(User, OperatorAdmin)
for _site in (tenant_site, platform_site):
    _site.register(Group, GroupAdmin)
