"""How much a tenant may have accepted: messages a day, and urgent ones a minute.

Both are counted at acceptance, in its transaction, and never make one accept wait for another. Accepts that run at the
same time do not see each other's count, so a quota may be overshot by what is being accepted just then.
"""

from dataclasses import dataclass

from django.conf import settings

from notifications.dispatch import usage
from notifications.dispatch.usage import Measure
from notifications.exceptions import RateLimitExceeded
from tenants.context import current_tenant_id

ACCEPTED = Measure("accepted", "day")
WARNED = Measure("warned", "day")
URGENT = Measure("urgent", "minute")
WARNING_AT = 0.8


@dataclass(frozen=True, slots=True)
class Quota:
    """The most messages a tenant may have accepted in a day (UTC)."""

    tenant_id: int
    most: int

    def used(self) -> int:
        """How many were accepted today."""
        return usage.used(ACCEPTED, tenant_id=self.tenant_id)

    def check(self, number: int, *, passing: bool = False) -> int:
        """Refuse so many more messages than the quota still has; what it has used is the answer.

        Args:
            number: how many are to be accepted.
            passing: they are security messages, which people wait for at a door: counted, never refused.

        Raises:
            RateLimitExceeded: naming the quota, what is left of it, and when it begins anew.
        """
        used = self.used()
        if used + number > self.most and not passing:
            anew = usage.next_period(ACCEPTED)
            raise RateLimitExceeded(
                f"the daily quota of {self.most} messages has {max(self.most - used, 0)} left, and {number} are asked "
                f"for: send fewer, wait until it begins anew at {anew:%Y-%m-%d %H:%M} UTC, or have it raised"
            )
        return used

    def count(self, number: int, *, used: int) -> bool:
        """Count messages that are being accepted; True when the tenant is to be told that the quota is nearly used.

        Args:
            number: how many they are.
            used: what `check` answered.
        """
        usage.add(ACCEPTED, number, tenant_id=self.tenant_id)
        return used + number >= WARNING_AT * self.most and not usage.used(WARNED, tenant_id=self.tenant_id)

    def begin_warning(self) -> bool:
        """Whether the caller is the one who warns today; the mark is undone with the transaction."""
        return usage.once(WARNED, tenant_id=self.tenant_id)


def quota_of(own: int | None, *, tenant_id: int | None = None) -> Quota | None:
    """The quota that holds for a tenant: its own, else the platform's for everybody, else none.

    Args:
        own: what the tenant has been given.
        tenant_id: whose it is; the current tenant's when absent.
    """
    most = own if own is not None else settings.NOTIFY_DAILY_QUOTA or None
    return None if most is None else Quota(tenant_id or current_tenant_id(), most)


def urgent_is_too_much(number: int) -> bool:
    """Whether so many more urgent messages are beyond the tenant's rate; they are then high instead."""
    rate = settings.NOTIFY_URGENT_PER_MINUTE
    return bool(rate) and usage.used(URGENT, tenant_id=current_tenant_id()) + number > rate


def count_urgent(number: int) -> None:
    """Count urgent messages that are being accepted."""
    if settings.NOTIFY_URGENT_PER_MINUTE:
        usage.add(URGENT, number, tenant_id=current_tenant_id())
