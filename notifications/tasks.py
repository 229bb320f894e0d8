"""One message by its id, for callers that know a message and want it sent now. Workers take whole batches instead."""

from uuid import UUID

from notifications import delivery
from notifications.dispatch import lanes
from notifications.dispatch.models import Kind, LedgerRow
from notifications.models import OutboxMessage
from tenants.connection import connection
from tenants.context import current_tenant_id
from tenants.jobs import tenant_job


def send_notification(notification_id: UUID | str) -> OutboxMessage:
    """Deliver one message of the current tenant now, if it is due and nobody has it, as a worker would.

    Limits, preferences and pauses hold as ever. A failure is recorded and not raised: the status is `scheduled` while
    attempts are left, then `failed`, and `error_log` has what the provider said. A message whose provider is slow comes
    back as `sending`.

    Args:
        notification_id: the message's key.

    Returns:
        the message as it is then.

    Raises:
        OutboxMessage.DoesNotExist: the current tenant has no such message.
    """
    message = OutboxMessage.objects.get(pk=notification_id)
    tenant_id = current_tenant_id()
    row = LedgerRow.objects.filter(item=message.pk, tenant_id=tenant_id, kind=Kind.SEND).select_related("lane").first()
    if row is not None:
        due = lanes.due(tenant_id=tenant_id, queue=row.lane.queue)
        if row.lane_id in {lane.id for lane in due}:
            delivery.deliver_one(message.pk, row.lane_id, schema_name=connection.schema_name)
            message.refresh_from_db()
    return message


@tenant_job
def send_notification_task(notification_id: str) -> str:
    """`send_notification` as a job, called with the schema's name first; its result is the status."""
    return send_notification(notification_id).status
