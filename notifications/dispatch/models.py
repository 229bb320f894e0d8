"""The durable work of all tenants that is not yet done. It lives in public only.

`LedgerRow` is the hottest table of the service: rows come and go with every message. So it has no
foreign-key constraints, its lease columns are in no index (claiming is then a heap-only update), and
autovacuum is set for a queue (see the migration).
"""

from django.db import models

from notifications.models.choices import Priority, Scope
from notifications.models.fields import one_of
from tenants.models import Tenant


class Kind(models.TextChoices):
    """What is to be done with a ledger row's item."""

    SEND = "send", "Send"
    RECEIPT = "receipt", "Receipt"
    INBOUND = "inbound", "Inbound"
    WEBHOOK = "webhook", "Webhook"
    LOOKUP = "lookup", "Look-up"
    PLAN = "plan", "Plan"


class Lane(models.Model):
    """One tenant's work for one outbox at one priority. Waiting and pausing act here, never on its rows."""

    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="+")
    queue = models.CharField(max_length=12)
    outbox_scope = models.CharField(max_length=8, choices=Scope)
    outbox_uuid = models.UUIDField()
    not_before = models.DateTimeField(null=True, blank=True)
    paused_reason = models.CharField(max_length=200, blank=True)
    last_served_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [
            models.Index(fields=["not_before"], name="lane_held", condition=models.Q(not_before__isnull=False)),
            models.Index(fields=["outbox_uuid"], name="lane_outbox"),
        ]
        constraints = [
            models.UniqueConstraint(fields=["tenant", "queue", "outbox_uuid"], name="lane_once"),
            models.CheckConstraint(condition=one_of("outbox_scope", Scope), name="lane_outbox_scope_known"),
            models.CheckConstraint(
                condition=models.Q(queue__in=[*Priority.values, "inbound", "maintenance"]), name="lane_queue_known"
            ),
        ]

    def __str__(self) -> str:
        return f"lane {self.pk}"


class OutboxWindow(models.Model):
    """How much of an outbox's limit is used; see `limiter` for what `ends` holds."""

    pk = models.CompositePrimaryKey("owner", "outbox")
    owner = models.IntegerField(help_text="The tenant's key; 0 is the platform.")
    outbox = models.UUIDField()
    ends = models.JSONField(default=dict)
    seconds = models.FloatField(default=0, db_default=0, help_text="The window that the buckets of `ends` are of.")

    def __str__(self) -> str:
        return f"window of {self.outbox}"


class AccountHold(models.Model):
    """Why an account's lanes wait, and how long; an account that is well has no row. See `circuits`."""

    pk = models.CompositePrimaryKey("owner", "account")
    owner = models.IntegerField(help_text="The tenant's key; 0 is the platform.")
    account = models.UUIDField()
    failures = models.PositiveIntegerField(default=0, help_text="Hand-overs in a row that the provider could not take.")
    opened = models.PositiveSmallIntegerField(default=0, help_text="How often in a row its circuit opened.")
    not_before = models.DateTimeField(null=True)
    reason = models.CharField(max_length=200, blank=True)

    def __str__(self) -> str:
        return f"hold on {self.account}"


class Usage(models.Model):
    """How much a tenant used in a period: the sum of its rows, of which each caller locks at most one."""

    tenant_id = models.IntegerField()
    measure = models.CharField(max_length=12)
    period = models.DateTimeField(help_text="The period's beginning.")
    used = models.PositiveIntegerField(default=0)

    class Meta:
        indexes = [models.Index(fields=["tenant_id", "measure", "period"], name="usage_period")]

    def __str__(self) -> str:
        return f"{self.used} {self.measure}"


class LedgerRow(models.Model):
    """One item of work. It is deleted when the work is done, or when only a person can take it further."""

    pk = models.CompositePrimaryKey("item", "tenant_id", "kind")
    item = models.UUIDField(help_text="The message, receipt, … in the tenant's schema.")
    tenant_id = models.IntegerField()
    kind = models.CharField(max_length=8, choices=Kind)
    lane = models.ForeignKey(Lane, models.DO_NOTHING, db_constraint=False, db_index=False, related_name="+")
    due_at = models.DateTimeField()
    manual = models.BooleanField(default=False, help_text="Only the commands take it: no bell, no sweep.")

    lease_until = models.DateTimeField(null=True)
    token = models.UUIDField(null=True, help_text="Fences out a worker that comes back after its lease ended.")
    worker = models.CharField(max_length=100, blank=True)
    handed_over_at = models.DateTimeField(null=True)
    deaths = models.PositiveSmallIntegerField(default=0)

    class Meta:
        indexes = [models.Index(fields=["lane", "manual", "due_at"], name="ledger_due")]
        constraints = [models.CheckConstraint(condition=one_of("kind", Kind), name="ledger_kind_known")]

    def __str__(self) -> str:
        return f"{self.kind} {self.item}"
