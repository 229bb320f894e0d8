"""Tasks under the names that callers and schedules know: one message now, what is due, what failed.

Workers take whole batches (`jobs.drain`); these are for who knows a message, and for the clock.
"""

from datetime import timedelta
from uuid import UUID

from django.conf import settings

from notifications import delivery
from notifications.dispatch import lanes
from notifications.dispatch.models import Kind, LedgerRow
from notifications.dispatch.sweep import sweep
from notifications.models import OutboxMessage
from notifications.processing import Pass
from tenants.connection import connection
from tenants.context import current_tenant_id
from tenants.jobs import tenant_job

MAX_AGE = timedelta(hours=12)
"""How old a failure may be that is taken up again by itself; after a night, somebody looks at it."""


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
        due = lanes.due(tenant_id=tenant_id, queue=row.lane.queue, manual=True)
        if row.lane_id in {lane.id for lane in due}:
            delivery.deliver_one(message.pk, row.lane_id, schema_name=connection.schema_name)
            message.refresh_from_db()
    return message


@tenant_job
def send_notification_task(notification_id: str) -> str:
    """`send_notification` as a job, called with the schema's name first; its result is the status."""
    return send_notification(notification_id).status


def retry_failed_notifications(
    *, max_age: timedelta = MAX_AGE, kind: str | None = None, limit: int | None = None
) -> int:
    """Send failed messages of all tenants again whose failure may have passed; see `lifecycle.reopen_failed`.

    What breaks in one tenant is logged.

    Args:
        max_age: how long ago they failed at most.
        kind: only messages of this channel.
        limit: at most so many of each tenant.

    Returns:
        how many were put back; they are delivered like any other.

    Raises:
        CommunicationError: there is no such channel.
        OperationalError: the database is away.
    """
    work = Pass(kind=kind, limit=limit)
    work.reopen(max_age, paced=True)
    return work.reopened


def process_scheduled_notifications() -> int:
    """See to everything that is due, scheduled messages among it.

    Returns:
        the bells that were rung for the workers; where there are none (dispatch modes `db` and `inline`), the messages
        that were delivered in this process instead.

    Raises:
        OperationalError: the database is away.
    """
    if settings.NOTIFY_DISPATCH_MODE == "rq":
        return sweep()
    work = Pass(manual=False)
    work.deliver()
    return work.tally.total
