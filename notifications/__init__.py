"""Notifications: accept, decide, deliver, and tell what became of it. Callers import `notifications.services`."""

from typing import TYPE_CHECKING, Any

from notifications.exceptions import (
    CommunicationError,
    InvalidRecipientError,
    ProviderError,
    TemplateNotFoundError,
)

if TYPE_CHECKING:
    from notifications.services import send

__all__ = ["CommunicationError", "InvalidRecipientError", "ProviderError", "TemplateNotFoundError", "send"]


def __getattr__(name: str) -> Any:
    # Django imports this package before its models can be.
    if name == "send":
        from notifications.services import send

        return send
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
