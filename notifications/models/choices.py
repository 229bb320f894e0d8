"""The words that columns hold. Stored values are lower case."""

from django.db import models


class NotificationChannel(models.TextChoices):
    """How a message reaches somebody."""

    EMAIL = "email", "E-mail"
    SMS = "sms", "SMS"
    WHATSAPP = "whatsapp", "WhatsApp"
    PUSH = "push", "Push"
    IN_APP = "in_app", "In-app"
    SLACK = "slack", "Slack"
    TEAMS = "teams", "Teams"
    VOICE = "voice", "Voice"
    WEBHOOK = "webhook", "Webhook"


class MessageType(models.TextChoices):
    """What kind of message it is: decides its channel, its priority and what may hold it back."""

    TRANSACTIONAL = "transactional", "Transactional"
    REMINDER = "reminder", "Reminder"
    ALERT = "alert", "Alert"
    ANNOUNCEMENT = "announcement", "Announcement"


class TemplateType(models.TextChoices):
    """What a template is about: a category, nothing is decided by it."""

    BOOKING_CONFIRMATION = "booking_confirmation", "Booking confirmation"
    BOOKING_REMINDER = "booking_reminder", "Booking reminder"
    BOOKING_CANCELLATION = "booking_cancellation", "Booking cancellation"
    BOOKING_RESCHEDULED = "booking_rescheduled", "Booking rescheduled"
    FOLLOW_UP = "follow_up", "Follow-up"
    CUSTOM = "custom", "Custom"


class Priority(models.TextChoices):
    """The queue a message waits in, most pressing first."""

    URGENT = "urgent", "Urgent"
    HIGH = "high", "High"
    DEFAULT = "default", "Default"
    BULK = "bulk", "Bulk"


class MessageStatus(models.TextChoices):
    """Where a message is in its life; `lifecycle.MOVES` says what may follow what."""

    SCHEDULED = "scheduled", "Scheduled"
    PENDING = "pending", "Pending"
    SENDING = "sending", "Sending"
    UNCERTAIN = "uncertain", "Uncertain"
    SENT = "sent", "Sent"
    DELIVERED = "delivered", "Delivered"
    BOUNCED = "bounced", "Bounced"
    FAILED = "failed", "Failed"
    CANCELLED = "cancelled", "Cancelled"
    SUPPRESSED = "suppressed", "Suppressed"


class Scope(models.TextChoices):
    """Where a row that both may have lives: with the tenant, or with the platform in public."""

    TENANT = "tenant", "Tenant"
    PLATFORM = "platform", "Platform"


class AttemptOutcome(models.TextChoices):
    """How one hand-over to a provider ended."""

    ACCEPTED = "accepted", "Accepted"
    REJECTED = "rejected", "Rejected"
    UNAVAILABLE = "unavailable", "Unavailable"
    UNCERTAIN = "uncertain", "Uncertain"


class SuppressionReason(models.TextChoices):
    """Why an address gets nothing more."""

    HARD_BOUNCE = "hard_bounce", "Hard bounce"
    COMPLAINT = "complaint", "Complaint"
    UNSUBSCRIBED = "unsubscribed", "Unsubscribed"
    MANUAL = "manual", "By hand"
