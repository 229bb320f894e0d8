"""Writing to many recipients at once: what is asked for, and the one call that sends it."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from auditlog.models import LogEntry
from django import forms
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone
from unfold.widgets import (
    INPUT_CLASSES,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)

from notifications import routing
from notifications.admin.sites import is_public
from notifications.exceptions import CommunicationError, IdempotencyConflict, InvalidRecipientError
from notifications.models import (
    CommunicationSettings,
    EventType,
    MessageStatus,
    NotificationChannel,
    NotificationTemplate,
    Outbox,
    OutboxMessage,
    Recipient,
    Scope,
)
from notifications.services import BulkNotifier, Messages

AT_ONCE = 1_000
"""As many recipients a person writes to with one click: more would outlast the request."""
AHEAD = timedelta(days=365)
NAMED = 5
"""So many recipients are named on the page; the others are counted."""


def open_channels() -> list[str]:
    """The channels that somebody can send on: the tenant itself, or the platform for it."""
    found: set[str] = set()
    for scope in (Scope.TENANT, Scope.PLATFORM):
        with routing.in_scope(scope):
            active = Outbox.objects.filter(is_active=True, account__is_active=True)
            found.update(active.values_list("account__kind", flat=True))
    return [channel for channel in NotificationChannel.values if channel in found]


def channels_by_event() -> dict[str, set[str]]:
    """The events that there is wording for, here or with the platform, and the channels that it is for.

    Without those of security: they pass every opt-out, and are nothing to tell many people at once.
    """
    found: defaultdict[str, set[str]] = defaultdict(set)
    secure: dict[str, bool] = {}
    fallback = settings.NOTIFY_ALLOW_GLOBAL_TEMPLATE_FALLBACK and not is_public()
    for scope in (Scope.PLATFORM, Scope.TENANT):
        with routing.in_scope(scope):
            secure |= dict(EventType.objects.values_list("key", "security"))
            if scope == Scope.TENANT or fallback:
                active = NotificationTemplate.objects.filter(is_active=True)
                for event_key, channel in active.values_list("event_key", "channel"):
                    found[event_key].add(channel)
    return {event_key: found[event_key] for event_key in sorted(found) if not secure.get(event_key)}


def labels(channels: Iterable[str]) -> str:
    """Channels in words."""
    return ", ".join(str(NotificationChannel(channel).label) for channel in sorted(channels))


class RecipientsField(forms.CharField):
    """Who was selected, by id, in one value: as many values of their own would be too many for a request."""

    widget = forms.HiddenInput

    def prepare_value(self, value: Any) -> Any:
        """The ids as text."""
        return value if isinstance(value, str) else ",".join(map(str, value or ()))

    def clean(self, value: Any) -> Any:
        """The ids, each once.

        Raises:
            ValidationError: they are none, or too many.
        """
        try:
            found = list(dict.fromkeys(UUID(part) for part in str(super().clean(value)).split(",")))
        except ValueError as error:
            raise ValidationError("Select recipients in their list.") from error
        if len(found) > AT_ONCE:
            raise ValidationError(too_many())
        return found


def too_many() -> str:
    """What is said of a selection that is too large."""
    return f"Select at most {AT_ONCE:,} recipients: a larger broadcast will go by segment."


class BroadcastForm(forms.Form):
    """What is written to the recipients, how and when; its token makes of a doubled submit one broadcast."""

    token = forms.UUIDField(widget=forms.HiddenInput)
    recipients = RecipientsField()
    channel = forms.ChoiceField(widget=UnfoldAdminSelectWidget)
    event = forms.ChoiceField(
        required=False,
        widget=UnfoldAdminSelectWidget,
        help_text="Its template is filled with each recipient's attributes and name.",
    )
    subject = forms.CharField(
        required=False, max_length=300, widget=UnfoldAdminTextInputWidget, help_text="For e-mail."
    )
    text = forms.CharField(
        required=False,
        max_length=50_000,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 8}),
        help_text="Sent as it is written: placeholders are not filled in.",
    )
    send_at = forms.DateTimeField(
        label="Send at",
        required=False,
        widget=forms.DateTimeInput(
            attrs={"type": "datetime-local", "class": " ".join(INPUT_CLASSES)}, format="%Y-%m-%dT%H:%M"
        ),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        channels = open_channels()
        self.events = {
            event_key: offered for event_key, found in channels_by_event().items() if (offered := found & {*channels})
        }
        fields: dict[str, Any] = self.fields
        fields["channel"].choices = [(channel, NotificationChannel(channel).label) for channel in channels]
        fields["event"].choices = [
            ("", "None: written below"),
            *((event_key, f"{event_key} ({labels(offered)})") for event_key, offered in self.events.items()),
        ]
        fields["send_at"].help_text = f"In {timezone.get_current_timezone_name()}. Empty: now."

    def clean_text(self) -> str:
        """The text, with lines that end as they do elsewhere."""
        return str(self.cleaned_data["text"]).replace("\r\n", "\n")

    def clean_send_at(self) -> datetime | None:
        """A time to come: a past one would send at once what was meant for later."""
        at: datetime | None = self.cleaned_data["send_at"]
        if at and not timezone.now() < at < timezone.now() + AHEAD:
            raise ValidationError("Give a time to come within a year, or none to send now.")
        return at

    def clean(self) -> dict[str, Any]:
        """Check that there is one thing to send, and that the channel carries it."""
        cleaned: dict[str, Any] = super().clean() or {}
        event, subject, text = (cleaned.get(name, "") for name in ("event", "subject", "text"))
        channel = cleaned.get("channel")
        if event and (subject or text):
            self.add_error("event", "Choose an event, or write a subject and a text: not both.")
        elif event and channel and channel not in self.events[event]:
            self.add_error("event", f"This event has a template for {labels(self.events[event])} only.")
        elif not event and not self.errors.keys() & {"event", "subject", "text"}:
            if not text:
                self.add_error("text", "Choose an event, or write a text.")
            if not subject and channel == NotificationChannel.EMAIL:
                self.add_error("subject", "An e-mail needs a subject.")
        return cleaned


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """What all of them get."""

    token: UUID
    channel: str
    event: str = ""
    subject: str = ""
    text: str = ""
    send_at: datetime | None = None

    @property
    def title(self) -> str:
        """What it is, for those who look later."""
        return self.event or self.subject or self.text[:100]


@dataclass(slots=True)
class Result:
    """What became of a broadcast."""

    accepted: int = 0
    new: int = 0
    """Accepted now, and not by an earlier submit of the same page."""
    refused: Counter[str] = field(default_factory=Counter)

    def reasons(self) -> str:
        """Why messages were not accepted, the most frequent reason first."""
        shown = self.refused.most_common(10)
        more = self.refused.total() - sum(number for _, number in shown)
        parts = [f"{number} × {reason}" for reason, number in shown]
        return "; ".join([*parts, f"{more} × something else"] if more else parts)


def broadcast(wanted: Sequence[UUID], recipients: Sequence[Recipient], letter: Letter, actor: Any) -> Result:
    """Write to recipients, each once a letter however often it is called, and log who did it.

    All of it is stored or nothing: the log's entry tells of exactly what was accepted.

    Args:
        wanted: the ids that were selected.
        recipients: those of them that there are.
        letter: what they get.
        actor: the user who writes.
    """
    result = Result()
    with transaction.atomic():
        try:
            messages = _write(recipients, letter)
        except CommunicationError as error:
            result.refused[str(error).rstrip(".")] += len(recipients)
        else:
            muted = _muted(messages)
            result.refused += muted + Counter(_reason(one.error, letter) for one in messages.refused)
            result.accepted = len(messages) - muted.total()
            result.new = min(messages.new, result.accepted)
        if gone := len(wanted) - len(recipients):
            result.refused["deleted meanwhile"] += gone
        if result.new:
            _audit(letter, result, actor)
    return result


def _write(recipients: Sequence[Recipient], letter: Letter) -> Messages:
    common: dict[str, Any] = {
        "channel": letter.channel,
        "scheduled_at": letter.send_at,
        "idempotency_key": f"broadcast:{letter.token}",
        "related_object": ("broadcast", letter.token),
        "skip_invalid": True,
    }
    if letter.event:
        people = [(recipient, _context(recipient)) for recipient in recipients]
        return BulkNotifier.send_bulk(recipients=people, event_key=letter.event, **common)
    return BulkNotifier.send_bulk(recipients=recipients, subject=letter.subject, body_text=letter.text, **common)


def _context(recipient: Recipient) -> dict[str, Any]:
    attributes = recipient.attributes if isinstance(recipient.attributes, dict) else {}
    # A name that nobody knows is missing, so that an event which requires it refuses.
    return {**attributes, **({"name": recipient.name} if recipient.name else {})}


def _muted(messages: Messages) -> Counter[str]:
    """Those that are stored and will not go, by reason."""
    suppressed = OutboxMessage.objects.filter(pk__in=messages.ids, status=MessageStatus.SUPPRESSED)
    return Counter(suppressed.values_list("error_message", flat=True))


def _reason(error: CommunicationError, letter: Letter) -> str:
    if isinstance(error, IdempotencyConflict):
        return "this page was sent before, with other words: open it anew"
    if isinstance(error, InvalidRecipientError):
        return f"no address for {labels([letter.channel])}"
    return str(error).rstrip(".")


def _audit(letter: Letter, result: Result, actor: Any) -> None:
    LogEntry.objects.log_create(
        CommunicationSettings.objects.get(),
        force_log=True,
        action=LogEntry.Action.ACCESS,
        changes={},
        actor=actor,
        actor_email=actor.email,
        additional_data={
            "event": "broadcast",
            "broadcast": str(letter.token),
            "what": letter.title,
            "channel": letter.channel,
            "messages": result.new,
            "refused": result.refused.total(),
            "scheduled_at": letter.send_at.isoformat() if letter.send_at else None,
        },
    )
