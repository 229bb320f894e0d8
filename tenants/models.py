"""Who the tenants are: rows of the public schema, facts and constraints only."""

import ipaddress
import secrets
import string
import zlib
from datetime import datetime
from hashlib import sha256
from typing import Any, Self

from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q
from django.utils import timezone
from django_tenants.models import DomainMixin, TenantMixin
from uuid_utils.compat import uuid7

from tenants import hosts, migrations_state

PUBLIC_SCHEMA = "public"
_ALPHABET = string.ascii_lowercase + string.digits


def random_name(length: int) -> str:
    """Random lower-case letters and digits, 5 bits each."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def new_schema_name() -> str:
    """A name for a tenant's schema that says nothing of the tenant and cannot be guessed."""
    return f"t_{random_name(16)}"


class Status(models.TextChoices):
    ACTIVE = "active", "Active"
    SUSPENDED = "suspended", "Suspended"
    CLOSED = "closed", "Closed"


class TenantsQuerySet(models.QuerySet["Tenant"]):
    def up_to_date(self) -> Self:
        """Those whose schema has every migration this code needs; a newer schema has them too."""
        return self.filter(up_to_date())

    def serving(self) -> Self:
        """Those that may do work now: active, and not waiting for migrations."""
        return self.up_to_date().filter(status=Status.ACTIVE)


def up_to_date(prefix: str = "") -> Q:
    """The condition behind `TenantsQuerySet.up_to_date`, for a query that reaches tenants over `prefix`."""
    public = Q((f"{prefix}schema_name", PUBLIC_SCHEMA))
    return (public & Q((f"{prefix}migrations__contains", migrations_state.required(shared=True)))) | (
        ~public & Q((f"{prefix}migrations__contains", migrations_state.required(shared=False)))
    )


class Tenant(TenantMixin):  # type: ignore[misc]
    """A customer of the platform, with a schema of its own. One row, named `public`, is the platform itself."""

    auto_create_schema = False
    auto_drop_schema = False
    changed_by = ""
    """Who is changing this object now, for the audit log; not stored on the row."""

    id = models.AutoField(primary_key=True)
    schema_name = models.CharField(max_length=63, unique=True, default=new_schema_name)
    name = models.CharField(max_length=200)
    status = models.CharField(max_length=9, choices=Status, default=Status.ACTIVE)
    status_reason = models.TextField(blank=True, default="")
    daily_quota = models.PositiveIntegerField(
        null=True, blank=True, help_text="The most messages accepted in a day (UTC); empty means no quota of its own."
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    # Applied migrations of the schema, as "app.name": what serving() and the migrate job compare with the code.
    migrations = ArrayField(models.TextField(), default=list, editable=False)

    objects = TenantsQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(status__in=Status.values), name="tenant_status"),
            models.CheckConstraint(
                condition=Q(schema_name__regex=r"^(public|t_[a-z0-9]{8,40})$"), name="tenant_schema_name"
            ),
            models.CheckConstraint(condition=~Q(name=""), name="tenant_has_a_name"),
        ]

    def __str__(self) -> str:
        return self.name

    def get_additional_data(self) -> dict[str, str] | None:
        """What the audit log keeps beside the change: operators are no users of this schema."""
        return {"actor": self.changed_by} if self.changed_by else None

    @property
    def is_public(self) -> bool:
        """Whether this is the platform's own row."""
        return bool(self.schema_name == PUBLIC_SCHEMA)


class Domain(DomainMixin):  # type: ignore[misc]
    """A host name that belongs to one tenant; the primary one is used in links."""

    domain = models.CharField(max_length=hosts.LONGEST_HOST, unique=True, validators=[hosts.validate_host])

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(domain__regex=hosts.HOST_PATTERN), name="domain_is_a_host_name"),
        ]

    def __str__(self) -> str:
        return str(self.domain)

    def clean_fields(self, exclude: Any = None) -> None:
        """Write the host in its normal form before it is validated."""
        self.domain = hosts.normalize(self.domain)
        super().clean_fields(exclude)


def validate_network(network: str) -> None:
    """Refuse whatever is not an IP network such as `192.0.2.0/24`.

    Raises:
        ValidationError: it is not one.
    """
    try:
        ipaddress.ip_network(network)
    except ValueError as error:
        raise ValidationError("%(error)s.", code="network", params={"error": error}) from error


class ApiKey(models.Model):
    """A tenant's key to its API. Its text is shown once; only a hash is kept, enough for 256 random bits."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=100)
    key_id = models.CharField(max_length=8, unique=True, editable=False)
    secret_hash = models.CharField(max_length=64, editable=False)
    scopes = ArrayField(models.CharField(max_length=60), default=list)
    allowed_networks = ArrayField(
        models.CharField(max_length=43, validators=[validate_network]), default=list, blank=True
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    created_by = models.CharField(max_length=254)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(key_id__regex=r"^[a-z0-9]{8}$"), name="api_key_id"),
            models.CheckConstraint(condition=Q(secret_hash__regex=r"^[0-9a-f]{64}$"), name="api_key_hash"),
            models.CheckConstraint(
                condition=Q(expires_at__isnull=True) | Q(expires_at__gt=models.F("created_at")),
                name="api_key_expires_after_its_creation",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.key_id})"

    @classmethod
    def issue(
        cls,
        tenant: Tenant,
        name: str,
        *,
        created_by: str,
        scopes: list[str],
        allowed_networks: list[str] | None = None,
        expires_at: datetime | None = None,
    ) -> tuple[Self, str]:
        """Store a new key; its text comes back beside it and can never be had again.

        The text is `carillon_<id>_<64 hex digits><8 hex digits of CRC-32>`, so that secret scanners
        recognise it and tell a mistyped one without asking us.

        Raises:
            ValidationError: a field does not hold what it may.
        """
        key_id = random_name(8)
        unchecked = f"carillon_{key_id}_{secrets.token_hex(32)}"
        text = f"{unchecked}{zlib.crc32(unchecked.encode()):08x}"
        key = cls(
            tenant=tenant,
            name=name,
            key_id=key_id,
            secret_hash=sha256(text.encode()).hexdigest(),
            scopes=scopes,
            allowed_networks=allowed_networks or [],
            created_by=created_by,
            expires_at=expires_at,
        )
        key.full_clean(exclude=["tenant"] if tenant.pk else None)
        key.save(force_insert=True)
        return key, text

    @staticmethod
    def id_in(text: str) -> str | None:
        """The key id that a key's text holds, by which its row is found; None if it is no such text."""
        unchecked, checksum = text[:-8], text[-8:]
        parts = unchecked.split("_")
        if len(parts) != 3 or parts[0] != "carillon" or not unchecked.isascii():
            return None
        return parts[1] if f"{zlib.crc32(unchecked.encode()):08x}" == checksum else None

    def matches(self, text: str) -> bool:
        """Whether the text is this key's, compared in constant time."""
        return secrets.compare_digest(sha256(text.encode(errors="replace")).hexdigest(), self.secret_hash)
