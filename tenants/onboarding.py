"""A tenant's life: created from the template schema, suspended, resumed, closed, dropped.

Every step is one transaction: it is done whole, or nothing of it is left.
"""

import logging

from django.conf import settings
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import connection, transaction

from tenants import hooks, hosts, locks, migrations_state, owners
from tenants.cloning import clone_schema
from tenants.context import public_context, tenant_context
from tenants.models import PUBLIC_SCHEMA, Domain, Status, Tenant

logger = logging.getLogger(__name__)

TEMPLATE_SCHEMA = "tenant_template"


class OnboardingError(Exception):
    """A tenant cannot be made or changed as asked; the message says why, and what to do."""


def create_tenant(name: str, *, domain: str, owner_email: str, owner_password: str | None = None) -> Tenant:
    """Make a tenant: its row, its host, its schema and its owner. Safe to repeat.

    `domain` is a label below `BASE_DOMAIN`, or a full host name. Called again with the same name and domain it
    returns the same tenant and adds only what is missing; an existing owner keeps their password. Without a
    password the owner's is unusable until it is set through a reset.

    Raises:
        ValidationError: the name, domain, e-mail address or password is not acceptable.
        OnboardingError: the domain is another tenant's, the tenant was closed, or the template schema is not ready.
    """
    name, owner_email = name.strip(), owner_email.strip().lower()
    host = hosts.tenant_host(domain)
    validate_email(owner_email)
    if not name:
        raise ValidationError("A tenant needs a name.", code="required")
    if owner_password is not None:
        validate_password(owner_password)
    with public_context(), transaction.atomic():
        locks.name_exclusive(host)
        tenant = _tenant_of(host, name)
        if not schema_exists(tenant.schema_name):
            _clone_template(tenant)
        with tenant_context(tenant):
            owners.ensure_owner(owner_email, owner_password)
    logger.info("tenant created", extra={"tenant": tenant.schema_name, "host": host})
    return tenant


def _tenant_of(host: str, name: str) -> Tenant:
    found = Domain.objects.select_related("tenant").filter(domain=host).first()
    if found is None:
        tenant: Tenant = Tenant.objects.create(name=name)
        Domain.objects.create(domain=host, tenant=tenant, is_primary=True)
        return tenant
    tenant = found.tenant
    if tenant.name != name:
        raise OnboardingError(f"{host} belongs to another tenant already")
    if tenant.status == Status.CLOSED:
        raise OnboardingError(f"{name} was closed: drop it before its name is used again")
    return tenant


def _clone_template(tenant: Tenant) -> None:
    locks.template_shared()
    if behind := migrations_state.missing(TEMPLATE_SCHEMA, shared=False):
        raise OnboardingError(f"the template schema lacks {len(behind)} migrations: run `manage.py migrate_schemas`")
    clone_schema(TEMPLATE_SCHEMA, tenant.schema_name)
    migrations_state.record_migrations(tenant.schema_name)
    tenant.refresh_from_db(fields=["migrations"])


def ensure_public_tenant() -> Tenant:
    """The platform's own row and host: what makes public a place that serves, also without any tenant."""
    name = getattr(settings, "PLATFORM_NAME", "Platform")
    tenant: Tenant
    with transaction.atomic():
        tenant, _ = Tenant.objects.get_or_create(schema_name=PUBLIC_SCHEMA, defaults={"name": name})
        Domain.objects.get_or_create(domain=hosts.normalize(settings.BASE_DOMAIN), defaults={"tenant": tenant})
    return tenant


def suspend(tenant: Tenant, reason: str, actor: str) -> None:
    """Stop a tenant for a while: its hosts answer 403 and its work waits. Suspending again changes the reason.

    Raises:
        OnboardingError: it is the platform itself, or closed.
    """
    _move(tenant, {Status.ACTIVE, Status.SUSPENDED}, Status.SUSPENDED, reason, actor)


def resume(tenant: Tenant, actor: str) -> None:
    """Let a suspended tenant work again; one that is active stays so.

    Raises:
        OnboardingError: it is the platform itself, or closed.
    """
    _move(tenant, {Status.ACTIVE, Status.SUSPENDED}, Status.ACTIVE, "", actor)


@transaction.atomic
def close(tenant: Tenant, confirmation: str, actor: str, reason: str = "") -> None:
    """End a tenant: its hosts answer 404 and its work is removed; its schema stays until it is dropped.

    Raises:
        OnboardingError: `confirmation` is not the tenant's name, or it is the platform itself, or closed already.
    """
    _confirm(tenant, confirmation)
    _move(tenant, {Status.ACTIVE, Status.SUSPENDED}, Status.CLOSED, reason, actor)
    with public_context():
        hooks.closed(tenant)


@transaction.atomic
def drop_closed_tenant(tenant: Tenant, confirmation: str) -> None:
    """Remove a closed tenant for ever: its schema, and all that public holds of it.

    Raises:
        OnboardingError: `confirmation` is not the tenant's name, or the tenant is not closed.
    """
    _confirm(tenant, confirmation)
    with public_context():
        if Tenant.objects.select_for_update().filter(pk=tenant.pk, status=Status.CLOSED).first() is None:
            raise OnboardingError(f"{tenant.name} is not closed: close it first")
        schema_name = tenant.schema_name
        hooks.dropped(tenant)
        # A table with deferred checks pending cannot be dropped.
        connection.check_constraints()
        with connection.cursor() as cursor:
            cursor.execute(f"DROP SCHEMA IF EXISTS {connection.ops.quote_name(schema_name)} CASCADE")
        tenant.delete()
    logger.warning("tenant dropped", extra={"tenant": schema_name})


def _move(tenant: Tenant, sources: set[Status], target: Status, reason: str, actor: str) -> None:
    if tenant.is_public:
        raise OnboardingError("the platform itself cannot be suspended or closed")
    with public_context(), transaction.atomic():
        # Saved as an object, not updated in a set, so that the audit log has it.
        locked = Tenant.objects.select_for_update().filter(pk=tenant.pk, status__in=sources).first()
        if locked is None:
            raise OnboardingError(f"{tenant.name} is closed")
        locked.status, locked.status_reason, locked.changed_by = target, reason, actor
        locked.save(update_fields=["status", "status_reason"])
    tenant.status, tenant.status_reason = target, reason
    logger.warning("tenant %s", target, extra={"tenant": tenant.schema_name, "actor": actor, "reason": reason})


def _confirm(tenant: Tenant, confirmation: str) -> None:
    if confirmation != tenant.name:
        raise OnboardingError("the confirmation is not the tenant's name")


def schema_exists(schema_name: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regnamespace(quote_ident(%s)) IS NOT NULL", [schema_name])
        return bool(cursor.fetchone()[0])
