"""The group of those who own a tenant: every permission inside it, none above it."""

from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, Permission
from django.db.models import Q

from tenants import migrations_state

OWNERS = "Owners"
WITHOUT_PAGES = ("sessions", "contenttypes", "admin")
"""Apps whose rows nobody handles by hand, and so nobody needs permissions for."""


def ensure_owners_group() -> Group:
    """Make the current schema's group and give it all permissions of the tenant apps, less changes of the audit log.

    Run after every migration, so that owners may do what a new model brings.
    """
    group, _ = Group.objects.get_or_create(name=OWNERS)
    labels = set(migrations_state.app_labels(shared=False)) - {*WITHOUT_PAGES}
    audit_changes = Q(content_type__app_label="auditlog") & ~Q(codename__startswith="view_")
    group.permissions.set(Permission.objects.filter(content_type__app_label__in=labels).exclude(audit_changes))
    return group


def ensure_owner(email: str, password: str | None) -> Any:
    """The tenant's owner in the current schema: staff, never a superuser. One who exists keeps their password.

    Without a password the account is unusable until one is set through a reset.
    """
    users = get_user_model()._default_manager
    owner = users.filter(username=email).first()
    if owner is None:
        owner = users.create_user(username=email, email=email, password=password, is_staff=True)
    owner.groups.add(Group.objects.get(name=OWNERS))
    return owner
