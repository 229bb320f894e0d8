"""Everything that Carillon keeps in a tenant's schema, and in public for the platform itself."""

from notifications.models.account import Account, CommunicationSettings, Outbox
from notifications.models.choices import (
    AttemptOutcome,
    MessageStatus,
    MessageType,
    NotificationChannel,
    Priority,
    Scope,
    SuppressionReason,
    TemplateType,
)
from notifications.models.message import Attempt, OutboxMessage
from notifications.models.recipient import NotificationPreference, Recipient, Suppression
from notifications.models.template import EventType, NotificationTemplate, TemplateVersion

__all__ = [
    "Account",
    "Attempt",
    "AttemptOutcome",
    "CommunicationSettings",
    "EventType",
    "MessageStatus",
    "MessageType",
    "NotificationChannel",
    "NotificationPreference",
    "NotificationTemplate",
    "Outbox",
    "OutboxMessage",
    "Priority",
    "Recipient",
    "Scope",
    "Suppression",
    "SuppressionReason",
    "TemplateType",
    "TemplateVersion",
]
