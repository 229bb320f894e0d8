"""What is taken up again by the clock: scheduled messages that have become due, failed ones that may go after all."""

from datetime import timedelta

from django.conf import settings

from notifications.dispatch.sweep import sweep
from notifications.processing import Pass

MAX_AGE = timedelta(hours=12)
"""How old a failure may be that is taken up again by itself; after a night, somebody looks at it."""


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
    work.reopen(max_age)
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
