"""Whether a message may go: one pure question with a reason for its answer."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Send:
    """It may go."""


@dataclass(frozen=True, slots=True)
class Wait:
    """It may go later."""

    until: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Drop:
    """It may not go; `expired` says that its time ran out, rather than that somebody does not want it."""

    reason: str
    expired: bool = False


type Decision = Send | Wait | Drop


def decide(
    *,
    now: datetime,
    expires_at: datetime,
    category: str,
    channel: str,
    security: bool,
    suppressed: str | None,
    allows: Callable[[str, str], bool],
) -> Decision:
    """Decide about one message.

    Args:
        now, expires_at: aware times.
        category, channel: what the recipient can switch off.
        security: a code or password reset, which passes every opt-out (never a dead address).
        suppressed: why the address is on a suppression list, or None.
        allows: the recipient's switches, asked with category and channel.
    """
    if expires_at <= now:
        return Drop("expired", expired=True)
    if suppressed is not None and not (security and suppressed == "unsubscribed"):
        return Drop(f"address is suppressed: {suppressed}")
    if not security and not allows(category, channel):
        return Drop(f"recipient switched off {category} by {channel}")
    return Send()
