"""What tenants need of notifications when one of them ends: nothing of it stays in the ledger."""

from notifications.dispatch.models import AccountHold, Lane, LedgerRow, OutboxWindow, Usage
from tenants.models import Tenant


def stop_work(tenant: Tenant) -> None:
    """Take a closed tenant's work off the ledger; its messages stay as they are in its schema."""
    LedgerRow.objects.filter(tenant_id=tenant.pk).delete()
    Lane.objects.filter(tenant=tenant).delete()
    for kept in (OutboxWindow, AccountHold):
        kept.objects.filter(owner=tenant.pk).delete()
    Usage.objects.filter(tenant_id=tenant.pk).delete()
