"""What can go wrong for a caller. Each message names the field and the remedy."""

from typing import Any


class CommunicationError(Exception):
    """Something about a message is wrong or went wrong; the base of all the others."""


class TemplateNotFoundError(CommunicationError):
    """No active template for the event, channel and language, with the tenant or the platform."""


class TemplateRenderError(CommunicationError):
    """The template cannot be rendered with this context."""


class InvalidRecipientError(CommunicationError):
    """The recipient has no valid address for the channel."""


class InvalidSenderError(CommunicationError):
    """The sender's address is neither one of the tenant's active outboxes nor at a verified domain."""


class InvalidContentError(CommunicationError):
    """The message is empty, or a part of it cannot be sent as it is."""


class MissingPlaceholderError(CommunicationError):
    """The context lacks placeholders that the event requires."""


class HandlerNotAllowed(CommunicationError):
    """The handler is not registered."""


class ProviderError(CommunicationError):
    """The provider did not take the message (raised only where the caller waits for it)."""


class RateLimitExceeded(CommunicationError):
    """The sender may not send more now."""


class IdempotencyConflict(CommunicationError):
    """The idempotency key was used before, for a call with other arguments."""


class NotRetryable(CommunicationError):
    """The message cannot be sent again: it has not failed, or its retries are used up."""


class NotCancellable(CommunicationError):
    """The message cannot be cancelled: it is already on its way, or done."""


class TenantRequired(CommunicationError):
    """The call names no tenant and is made outside any tenant's context."""

    def __init__(self, tenant: Any = None) -> None:
        super().__init__(
            f"tenant={tenant!r} is not a tenant that can be served: give a Tenant, or the name of its schema (t_…)"
            if tenant
            else "give tenant=, or call inside tenant_context(tenant)"
        )
