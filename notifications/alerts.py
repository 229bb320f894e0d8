"""What people are told when only they can mend it."""

import logging
from typing import Any

from django.contrib.auth import get_user_model
from django.utils import timezone

from notifications import sending
from notifications.exceptions import CommunicationError
from notifications.models import Account, NotificationChannel, Priority, Scope
from notifications.recipients import To
from notifications.wanted import Wanted
from tenants.connection import connection
from tenants.context import public_context
from tenants.owners import OWNERS

logger = logging.getLogger(__name__)


def tell_of_refused_credentials(*, account: Account, scope: str, reason: str, **_: Any) -> None:
    """Tell the log, and of a tenant's own account its owners, once a day.

    The mail leaves by the platform's sender: the tenant's own may be the one that is refused.
    """
    schema_name = connection.schema_name
    logger.error("credentials refused: %s", reason, extra={"schema": schema_name, "account": str(account.pk)})
    if scope == Scope.PLATFORM:
        return
    owners = get_user_model()._default_manager.filter(groups__name=OWNERS, is_active=True).exclude(email="")
    addresses = list(owners.values_list("email", flat=True))
    text = (
        f"The provider of your account {account} does not accept its credentials: {reason}\n\n"
        "Its messages wait; none is lost. Save the account with the right credentials, in the admin under Accounts, "
        "and they go out.\n"
    )
    with public_context():
        for address in addresses:
            wanted = Wanted(
                to=To(email=address),
                channel=NotificationChannel.EMAIL,
                subject=f"Messages wait: {account} is refused by its provider",
                body_text=text,
                priority=Priority.HIGH,
            )
            try:
                key = f"credentials-{schema_name}-{account.pk}-{timezone.now():%Y-%m-%d}-{address}"
                sending.accept(wanted, idempotency_key=key[:200])
            except CommunicationError as error:
                logger.warning("owner not told: %s", error, extra={"schema": schema_name})
