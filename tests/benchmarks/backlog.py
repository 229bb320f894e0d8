"""Accepting many messages in one call, as a platform service would."""

from notifications.bulk import BulkNotifier
from tenants.models import Tenant
from tests.benchmarks.results import NotMeasured
from tests.benchmarks.stage import EVENT, address, booking


def accept_many(
    tenant: Tenant, count: int, *, first: int = 0, priority: str = "default", from_address: str | None = None
) -> None:
    """Give a tenant so many messages, due now, the first to `u<first>@example.com`.

    Raises:
        NotMeasured: not all of them were accepted.
    """
    messages = BulkNotifier.send_bulk(
        recipients=((address(number), booking(number)) for number in range(first, first + count)),
        event_key=EVENT,
        channel="email",
        priority=priority,
        from_address=from_address,
        tenant=tenant,
    )
    if messages.new != count:
        raise NotMeasured(f"{messages.new} of {count} messages accepted")
