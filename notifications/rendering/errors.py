"""What can go wrong with a template: when it is written, and when it is rendered."""

from notifications.exceptions import CommunicationError, TemplateRenderError

__all__ = ["BudgetExceeded", "ContextInvalid", "TemplateInvalid", "TemplateRenderError"]


class TemplateInvalid(CommunicationError):
    """The template cannot be accepted; the message names the line, the culprit and the remedy."""


class ContextInvalid(TemplateRenderError):
    """The context holds something that is not plain data; the message names its path."""


class BudgetExceeded(TemplateRenderError):
    """The render asked for more work or text than one message may cost."""
