"""Messages and the attempts to hand them over: to be read by everybody, and moved by those who may."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import messages
from django.contrib.admin import display
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.dateparse import parse_date
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.admin import TabularInline
from unfold.contrib.filters.admin import ChoicesDropdownFilter, FieldTextFilter, RangeDateFilter
from unfold.contrib.filters.admin.dropdown_filters import DropdownFilter, MultipleChoicesDropdownFilter
from unfold.enums import ActionVariant
from unfold.forms import BaseDialogForm
from unfold.widgets import UnfoldAdminTextInputWidget

from notifications import lifecycle, routing
from notifications.admin.sites import (
    BoundedPaginator,
    ReadOnlyAdmin,
    action,
    is_public,
    link,
    moment,
    platform_site,
    preformatted,
    readable_json,
    redirect,
    tenant_site,
    tone,
)
from notifications.dispatch.models import Kind, LedgerRow
from notifications.exceptions import CommunicationError
from notifications.models import Attempt, AttemptOutcome, NotificationTemplate, Outbox, OutboxMessage, Scope
from notifications.models import MessageStatus as S

TONES = {
    S.SCHEDULED: "info",
    S.PENDING: "info",
    S.SENDING: "info",
    S.UNCERTAIN: "warning",
    S.SENT: "success",
    S.DELIVERED: "success",
    S.BOUNCED: "danger",
    S.FAILED: "danger",
    S.CANCELLED: "",
    S.SUPPRESSED: "",
}
OUTCOME_TONES = {
    AttemptOutcome.ACCEPTED: "success",
    AttemptOutcome.REJECTED: "danger",
    AttemptOutcome.UNAVAILABLE: "warning",
    AttemptOutcome.UNCERTAIN: "warning",
}
AT_ONCE = 500
"""As many messages a person moves with one click: more would outlast the request."""
SEARCHED = 100_000
"""Words are looked for in the newest of so many; addresses and ids, which have an index, in all."""
MARGIN = timedelta(hours=1)
"""More than ever lies between the making of a key and of its row, on clocks that differ."""


class DayFilter(RangeDateFilter):  # type: ignore[misc]
    """From one day to another, both whole; what is no date counts as nothing."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002
        """The rows of these days."""
        if since := self._day("from"):
            queryset = queryset.filter(**self.since(since))
        if until := self._day("to"):
            queryset = queryset.filter(**self.until(until + timedelta(days=1)))
        return queryset

    def since(self, start: datetime) -> dict[str, Any]:
        """The condition for rows from a moment on."""
        return {f"{self.field_path}__gte": start}

    def until(self, end: datetime) -> dict[str, Any]:
        """The condition for rows before a moment."""
        return {f"{self.field_path}__lt": end}

    def _day(self, end: str) -> datetime | None:
        text = self.used_parameters.get(f"{self.parameter_name}_{end}")
        try:
            day: date | None = parse_date(str(text or ""))
        except ValueError:
            return None
        return timezone.make_aware(datetime.combine(day, time.min)) if day and day.year > 1970 else None


class KeyedDayFilter(DayFilter):
    """For keys that hold the time of their making (UUIDv7): the primary key's index serves it."""

    def since(self, start: datetime) -> dict[str, Any]:
        """Also by key."""
        return {**super().since(start), "pk__gte": first_key(start)}

    def until(self, end: datetime) -> dict[str, Any]:
        """Also by key."""
        return {**super().until(end), "pk__lt": first_key(end + 2 * MARGIN)}


def first_key(moment: datetime) -> UUID:
    """A key below all whose rows are made from the moment on (UUIDv7 begins with milliseconds)."""
    milliseconds = int((moment - MARGIN).astimezone(UTC).timestamp() * 1000)
    return UUID(int=milliseconds << 80)


class DeadLetterFilter(DropdownFilter):  # type: ignore[misc]
    """What was given up, and goes no further without a person's word."""

    title = "dead letters"
    parameter_name = "dead"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:  # noqa: ARG002
        """All of them, or those of one kind."""
        return [("all", "All"), (S.FAILED, "Failed"), (S.UNCERTAIN, "Uncertain: did they arrive?")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002
        """The messages; what has been settled since is none any more."""
        wanted = self.value()
        if not wanted:
            return queryset
        statuses = [wanted] if wanted in S.values else [S.FAILED, S.UNCERTAIN]
        return queryset.filter(status__in=statuses, dead_lettered_at__isnull=False)


class ReasonForm(BaseDialogForm):  # type: ignore[misc]
    """Why somebody does it."""

    reason = forms.CharField(
        label="Reason",
        required=False,
        max_length=200,
        widget=UnfoldAdminTextInputWidget,
        help_text="Kept in the audit log.",
    )


class AttemptInline(TabularInline):  # type: ignore[misc]
    """What was tried, in order."""

    model = Attempt
    extra = 0
    can_delete = False
    show_title = False
    verbose_name_plural = "Attempts"
    fields = readonly_fields = (
        "position",
        "outcome_shown",
        "provider",
        "began",
        "took",
        "class_shown",
        "words",
        "worker",
    )

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:  # noqa: ARG002
        """Nobody adds one."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:  # noqa: ARG002
        """Nobody changes one."""
        return False

    @display(description="No.")
    def position(self, attempt: Attempt) -> str:
        """Its number, and in which delivery when there were several."""
        return f"{attempt.cycle + 1}.{attempt.number}"

    @display(description="Outcome")
    def outcome_shown(self, attempt: Attempt) -> SafeString:
        """How it ended."""
        return outcome_label(attempt)

    @display(description="Began")
    def began(self, attempt: Attempt) -> SafeString:
        """When it began."""
        return moment(attempt.started_at)

    @display(description="Took")
    def took(self, attempt: Attempt) -> str:
        """How long it took."""
        return took(attempt)

    @display(description="Class")
    def class_shown(self, attempt: Attempt) -> str:
        """What kind of error it was, which decides what comes next."""
        return attempt.error_class or "–"

    @display(description="Answer")
    def words(self, attempt: Attempt) -> str:
        """The error, else what the provider said."""
        return attempt.error or attempt.response or "–"


class OutboxMessageAdmin(ReadOnlyAdmin):
    """Every message, with its story."""

    list_display = (
        "recipient_shown",
        "status_shown",
        "subject_shown",
        "event_key",
        "channel_shown",
        "priority_shown",
        "scope_shown",
        "accepted_at",
    )
    list_filter = (
        ("created_at", KeyedDayFilter),
        ("status", MultipleChoicesDropdownFilter),
        DeadLetterFilter,
        ("channel", ChoicesDropdownFilter),
        ("priority", ChoicesDropdownFilter),
        ("event_key", FieldTextFilter),
        ("template_scope", ChoicesDropdownFilter),
    )
    search_fields = ("to_address",)
    search_help_text = (
        f"Address, id or external id; or words of the subject or event key, in the newest {SEARCHED:,}. "
        f"Lists end after {BoundedPaginator.most:,}: narrow them by date."
    )
    ordering = ("-id",)
    sortable_by = ()
    inlines = (AttemptInline,)
    actions = ("send_selected_again", "cancel_selected", "settle_selected")
    actions_detail = ("send_again", "cancel_message", "it_arrived", "it_was_lost")
    fieldsets = (
        (None, {"fields": (("status_shown", "to_shown"), ("channel_shown", "from_shown"), "error_shown")}),
        ("What is sent", {"fields": ("subject_shown_whole", "text_shown", "html_shown")}),
        (
            "Where it comes from",
            {
                "fields": (
                    ("event_shown", "template_shown"),
                    ("outbox_shown", "sort_shown"),
                    ("person_shown", "related_shown"),
                )
            },
        ),
        ("Times", {"fields": ("timeline",)}),
        ("Data", {"fields": ("context_shown", "metadata_shown", "headers_shown", "answer_shown", "keys_shown")}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[OutboxMessage]:
        """Lists do without the bodies."""
        queryset: QuerySet[OutboxMessage] = super().get_queryset(request)
        if request.resolver_match and request.resolver_match.url_name == "notifications_outboxmessage_changelist":
            return queryset.defer("body_text", "body_html", "context", "metadata", "headers", "provider_response")
        return queryset.select_related("user", "recipient", "created_by", "related_content_type")

    def get_search_results(
        self,
        request: HttpRequest,  # noqa: ARG002
        queryset: QuerySet[OutboxMessage],
        search_term: str,
    ) -> tuple[QuerySet[OutboxMessage], bool]:
        """Find by what has an index; words only among the newest messages."""
        term = search_term.strip()
        if not term:
            return queryset, False
        try:
            return queryset.filter(pk=UUID(term)), False
        except ValueError:
            known = queryset.filter(Q(to_address=term) | Q(external_id=term) | Q(idempotency_key=term))
        if known.exists():
            return known, False
        oldest = queryset.order_by("-id").values_list("id", flat=True)[SEARCHED : SEARCHED + 1].first()
        words = Q(to_address__icontains=term) | Q(subject__icontains=term) | Q(event_key__icontains=term)
        return queryset.filter(words & Q(pk__gt=oldest) if oldest else words), False

    # What may be done.

    def has_requeue_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        """Whether the user may send messages again."""
        return bool(request.user.has_perm("notifications.requeue_outboxmessage"))

    def has_cancel_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        """Whether the user may cancel messages."""
        return bool(request.user.has_perm("notifications.cancel_outboxmessage"))

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Only what the message's status allows."""
        message = self.get_object(request, str(object_id))
        status = message.status if message else None
        allowed = {
            "send_again": lifecycle.REQUEUABLE - {S.UNCERTAIN},
            "cancel_message": lifecycle.OPEN,
            "it_arrived": {S.UNCERTAIN},
            "it_was_lost": {S.UNCERTAIN},
        }
        return [
            found
            for found in super().get_actions_detail(request, object_id)
            if status in allowed[found.method.original_function_name]
        ]

    @action(description="Send again", permissions=["requeue"])
    def send_selected_again(self, request: HttpRequest, queryset: QuerySet[OutboxMessage]) -> None:
        """Open a new delivery for each selected message that can have one."""
        self._each(request, queryset, lifecycle.requeue, "sent again")

    @action(description="Cancel", permissions=["cancel"])
    def cancel_selected(self, request: HttpRequest, queryset: QuerySet[OutboxMessage]) -> None:
        """Cancel each selected message that is not on its way yet."""
        self._each(request, queryset, lifecycle.cancel, "cancelled")

    @action(description="They arrived", permissions=["requeue"])
    def settle_selected(self, request: HttpRequest, queryset: QuerySet[OutboxMessage]) -> None:
        """Settle each selected message that is uncertain as one that arrived."""
        self._each(request, queryset, partial(lifecycle.settle, arrived=True), "settled as arrived")

    @action(
        description="Send again",
        permissions=["requeue"],
        url_path="send-again",
        icon="replay",
        dialog={
            "title": "Send this message again?",
            "description": "It goes out once more, with as many attempts as a new one.",
            "form_class": ReasonForm,
            "form_submit_text": "Send again",
        },
    )
    def send_again(self, request: HttpRequest, form: ReasonForm, object_id: str) -> HttpResponse:
        """Open a new delivery for one message."""
        return self._one(request, object_id, lifecycle.requeue, form, "The message is sent again.")

    @action(
        description="Cancel",
        permissions=["cancel"],
        url_path="cancel",
        icon="cancel",
        variant=ActionVariant.DANGER,
        dialog={
            "title": "Cancel this message?",
            "description": "It will not be sent. This cannot be undone.",
            "form_class": ReasonForm,
            "form_submit_text": "Cancel the message",
        },
    )
    def cancel_message(self, request: HttpRequest, form: ReasonForm, object_id: str) -> HttpResponse:
        """Cancel one message."""
        return self._one(request, object_id, lifecycle.cancel, form, "The message is cancelled.")

    @action(
        description="It arrived",
        permissions=["requeue"],
        url_path="arrived",
        icon="mark_email_read",
        dialog={
            "title": "Did this message arrive?",
            "description": "The provider may have taken it, and has not said so. It then counts as sent, and does not "
            "go again.",
            "form_class": ReasonForm,
            "form_submit_text": "It arrived",
        },
    )
    def it_arrived(self, request: HttpRequest, form: ReasonForm, object_id: str) -> HttpResponse:
        """Settle one uncertain message: it arrived."""
        settle = partial(lifecycle.settle, arrived=True)
        return self._one(request, object_id, settle, form, "The message counts as sent.")

    @action(
        description="It did not: send again",
        permissions=["requeue"],
        url_path="lost",
        icon="replay",
        dialog={
            "title": "Send this message again?",
            "description": "The provider may have taken it, and has not said so: then it arrives twice.",
            "form_class": ReasonForm,
            "form_submit_text": "Send again",
        },
    )
    def it_was_lost(self, request: HttpRequest, form: ReasonForm, object_id: str) -> HttpResponse:
        """Settle one uncertain message: it did not arrive, and goes again."""
        settle = partial(lifecycle.settle, arrived=False)
        return self._one(request, object_id, settle, form, "The message is sent again.")

    def _one(
        self, request: HttpRequest, object_id: str, move: Callable[..., None], form: ReasonForm, done: str
    ) -> HttpResponse:
        message = self.get_object(request, object_id)
        if message is None or not self.has_view_permission(request, message):
            messages.error(request, "There is no such message.")
            return redirect(request, reverse("admin:notifications_outboxmessage_changelist"))
        try:
            move(message, actor=request.user, reason=form.cleaned_data["reason"])
        except CommunicationError as error:
            messages.error(request, f"{str(error)[:1].upper()}{str(error)[1:]}.")
        else:
            messages.success(request, done)
        return redirect(request, reverse("admin:notifications_outboxmessage_change", args=[message.pk]))

    def _each(
        self, request: HttpRequest, queryset: QuerySet[OutboxMessage], move: Callable[..., None], done: str
    ) -> None:
        moved, refused = 0, Counter[str]()
        found = list(queryset.order_by("id")[: AT_ONCE + 1])
        for message in found[:AT_ONCE]:
            try:
                move(message, actor=request.user, reason="selected in a list")
            except CommunicationError:
                refused[S(message.status).label.lower()] += 1
            else:
                moved += 1
        if moved:
            messages.success(request, f"{_count(moved)} {done}.")
        if refused:
            why = ", ".join(f"{number} {status}" for status, number in refused.most_common())
            messages.warning(request, f"{_count(refused.total())} not {done}, because of their status: {why}.")
        if len(found) > AT_ONCE:
            messages.warning(request, f"Only the first {AT_ONCE} were looked at: repeat it for the others.")

    # What is shown.

    @display(description="To", ordering="to_address")
    def recipient_shown(self, message: OutboxMessage) -> str:
        """The address."""
        return message.to_address

    @display(description="Status")
    def status_shown(self, message: OutboxMessage) -> SafeString:
        """The status, coloured."""
        return tone(message.get_status_display(), TONES[S(message.status)])

    @display(description="Subject")
    def subject_shown(self, message: OutboxMessage) -> str:
        """The beginning of the subject."""
        return f"{message.subject[:60]}…" if len(message.subject) > 60 else message.subject or "–"

    @display(description="Channel")
    def channel_shown(self, message: OutboxMessage) -> str:
        """The channel in words."""
        return str(message.get_channel_display())

    @display(description="Priority")
    def priority_shown(self, message: OutboxMessage) -> str:
        """The queue in words."""
        return str(message.get_priority_display())

    @display(description="Template")
    def scope_shown(self, message: OutboxMessage) -> str:
        """Whose wording it is."""
        return str(message.get_template_scope_display()) or "–"

    @display(description="Accepted")
    def accepted_at(self, message: OutboxMessage) -> SafeString:
        """When it was accepted."""
        return moment(message.created_at)

    @display(description="To")
    def to_shown(self, message: OutboxMessage) -> str:
        """The address with the name."""
        return _mailbox(message.to_name, message.to_address)

    @display(description="From")
    def from_shown(self, message: OutboxMessage) -> str:
        """The sender's address with its name, and where answers go."""
        answers = f", answers to {message.reply_to}" if message.reply_to else ""
        return f"{_mailbox(message.from_name, message.from_address)}{answers}"

    @display(description="Error")
    def error_shown(self, message: OutboxMessage) -> SafeString | str:
        """What went wrong, or what it waits for."""
        text = message.error_message or message.deferral_reason
        if not text:
            return "–"
        return format_html("{}{}", f"{message.error_class}: " if message.error_class else "", text)

    @display(description="Subject")
    def subject_shown_whole(self, message: OutboxMessage) -> str:
        """The subject."""
        return message.subject or "–"

    @display(description="Text")
    def text_shown(self, message: OutboxMessage) -> SafeString | str:
        """The plain text."""
        return preformatted(message.body_text)

    @display(description="HTML")
    def html_shown(self, message: OutboxMessage) -> SafeString | str:
        """The HTML as a picture of itself: in its sandbox no script runs, no form is sent, nothing is fetched."""
        if not message.body_html:
            return "–"
        return format_html(
            '<iframe title="HTML" sandbox="" referrerpolicy="no-referrer" srcdoc="{}" loading="lazy" '
            'class="bg-white border border-base-200 h-96 rounded-default w-full"></iframe>',
            message.body_html,
        )

    @display(description="Event")
    def event_shown(self, message: OutboxMessage) -> str:
        """What happened, and the kind of message that it makes."""
        return f"{message.event_key or 'none'} ({message.get_message_type_display()})"

    @display(description="Template")
    def template_shown(self, message: OutboxMessage) -> SafeString | str:
        """The wording that the message was accepted with."""
        if message.template_uuid is None:
            return "None: written in the call"
        with routing.in_scope(message.template_scope):
            name = NotificationTemplate.objects.filter(pk=message.template_uuid).values_list("name", flat=True).first()
        whose = "Platform's" if message.template_scope == Scope.PLATFORM else "Own"
        text = f"{whose}: {name or 'deleted since'}, version {message.template_version}"
        if name and _is_here(message.template_scope):
            return link("notifications.notificationtemplate", message.template_uuid, text)
        return text

    @display(description="Outbox")
    def outbox_shown(self, message: OutboxMessage) -> SafeString | str:
        """The sender, and the account whose credentials it leaves with."""
        with routing.in_scope(message.outbox_scope):
            outbox = Outbox.objects.filter(pk=message.outbox_uuid).values("address", "account__name").first()
        whose = "Platform's" if message.outbox_scope == Scope.PLATFORM else "Own"
        if outbox is None:
            return f"{whose}: deleted since"
        text = f"{whose}: {outbox['address']}"
        if _is_here(message.outbox_scope):
            return link("notifications.outbox", message.outbox_uuid, text)
        return text

    @display(description="Sort")
    def sort_shown(self, message: OutboxMessage) -> str:
        """Priority, category and language."""
        parts = (f"{message.get_priority_display()} priority", message.category, message.language)
        return ", ".join(part for part in parts if part) + (", security" if message.security else "")

    @display(description="Person")
    def person_shown(self, message: OutboxMessage) -> SafeString | str:
        """The recipient or user it is for, as far as known, and who asked for it."""
        found = []
        if message.recipient_id and message.recipient:
            found.append(link("notifications.recipient", message.recipient_id, str(message.recipient)))
        if message.user_id and message.user:
            found.append(link("auth.user", message.user_id, str(message.user)))
        if message.created_by_id and message.created_by:
            found.append(f"made by {message.created_by}")
        return format_html_join(", ", "{}", ((part,) for part in found)) or "–"

    @display(description="About")
    def related_shown(self, message: OutboxMessage) -> str:
        """The object that it is linked to."""
        if message.related_content_type_id:
            return f"{message.related_content_type} {message.related_object_id}"
        return f"{message.related_type} {message.related_id}".strip() or "–"

    @display(description="Timeline")
    def timeline(self, message: OutboxMessage) -> SafeString:
        """What happened when, in order."""
        known = {
            "Accepted": message.created_at,
            "Scheduled for": message.scheduled_at,
            "Sent": message.sent_at,
            "Delivered": message.delivered_at,
            "Opened": message.opened_at,
            "Clicked": message.clicked_at,
            "Failed": message.failed_at,
            "Given up": message.dead_lettered_at,
        }
        if message.status in {*lifecycle.OPEN, S.UNCERTAIN}:
            due = LedgerRow.objects.filter(item=message.pk, kind=Kind.SEND).values_list("due_at", flat=True).first()
            known |= {"Next attempt" if message.status in lifecycle.OPEN else "Taken up again": due}
            known |= {"Expires": message.expires_at}
        steps = sorted((at, name) for name, at in known.items() if at)
        rows = format_html_join(
            "",
            '<tr><td class="pr-6 py-0.5 text-subtle whitespace-nowrap">{}</td><td class="py-0.5">{}</td></tr>',
            ((moment(at), name) for at, name in steps),
        )
        return format_html("<table>{}</table>", rows)

    @display(description="Context")
    def context_shown(self, message: OutboxMessage) -> SafeString | str:
        """The template's variables."""
        return readable_json(message.context)

    @display(description="Metadata")
    def metadata_shown(self, message: OutboxMessage) -> SafeString | str:
        """What the caller keeps with it."""
        return readable_json(message.metadata)

    @display(description="Headers")
    def headers_shown(self, message: OutboxMessage) -> SafeString | str:
        """Extra headers."""
        return readable_json(message.headers)

    @display(description="Provider")
    def answer_shown(self, message: OutboxMessage) -> SafeString | str:
        """What the provider called it and said of it."""
        answer = {"id": message.external_id, "status": message.delivery_status, **message.provider_response}
        return readable_json({name: value for name, value in answer.items() if value})

    @display(description="Keys")
    def keys_shown(self, message: OutboxMessage) -> SafeString | str:
        """What it is known by, and how often it was tried."""
        return preformatted(
            f"id: {message.pk}\nidempotency key: {message.idempotency_key}\n"
            f"attempts: {message.attempt_count} of {message.max_attempts}\n"
            f"sent again: {message.retry_count} times, by itself at most {message.max_retries}"
        )


class AttemptAdmin(ReadOnlyAdmin):
    """Every hand-over to a provider, newest first."""

    list_display = ("started", "message_shown", "outcome_shown", "provider", "took", "error_class", "words")
    list_filter = (
        ("outcome", ChoicesDropdownFilter),
        ("provider", FieldTextFilter),
        ("error_class", FieldTextFilter),
    )
    list_select_related = ("message",)
    search_fields = ("message__id",)
    search_help_text = "A message's id or address."
    ordering = ("-id",)
    sortable_by = ()
    fieldsets = (
        (None, {"fields": (("message_shown", "outcome_shown"), ("provider", "worker"), ("started", "took"))}),
        ("Answer", {"fields": ("error_class", "error_shown", "response_shown")}),
    )

    def get_search_results(
        self,
        request: HttpRequest,  # noqa: ARG002
        queryset: QuerySet[Attempt],
        search_term: str,
    ) -> tuple[QuerySet[Attempt], bool]:
        """Find by message, over its indexes."""
        term = search_term.strip()
        if not term:
            return queryset, False
        try:
            return queryset.filter(message_id=UUID(term)), False
        except ValueError:
            ids = OutboxMessage.objects.filter(to_address=term).values("pk")
            return queryset.filter(message_id__in=ids), False

    @display(description="Began")
    def started(self, attempt: Attempt) -> SafeString:
        """When it began."""
        return moment(attempt.started_at)

    @display(description="Message")
    def message_shown(self, attempt: Attempt) -> SafeString | str:
        """The message, to go to."""
        return link("notifications.outboxmessage", attempt.message_id, str(attempt.message))

    @display(description="Outcome")
    def outcome_shown(self, attempt: Attempt) -> SafeString:
        """How it ended."""
        return outcome_label(attempt)

    @display(description="Took")
    def took(self, attempt: Attempt) -> str:
        """How long it took."""
        return took(attempt)

    @display(description="Answer")
    def words(self, attempt: Attempt) -> str:
        """The beginning of the error, else of what the provider said."""
        text = attempt.error or attempt.response or "–"
        return f"{text[:80]}…" if len(text) > 80 else text

    @display(description="Error")
    def error_shown(self, attempt: Attempt) -> SafeString | str:
        """The error whole."""
        return preformatted(attempt.error)

    @display(description="Response")
    def response_shown(self, attempt: Attempt) -> SafeString | str:
        """What the provider said."""
        return preformatted(attempt.response)


def took(attempt: Attempt) -> str:
    """How long an attempt took."""
    return f"{(attempt.finished_at - attempt.started_at).total_seconds():.3f} s"


def outcome_label(attempt: Attempt) -> SafeString:
    """How an attempt ended, coloured."""
    return tone(attempt.get_outcome_display(), OUTCOME_TONES[AttemptOutcome(attempt.outcome)])


def _mailbox(name: str, address: str) -> str:
    return f"{name} <{address}>" if name else address or "–"


def _count(number: int) -> str:
    return "1 message was" if number == 1 else f"{number} messages were"


def _is_here(scope: str) -> bool:
    """Whether rows of the scope have pages on this host."""
    return is_public() or scope == Scope.TENANT


for _site in (tenant_site, platform_site):
    _site.register(OutboxMessage, OutboxMessageAdmin)
    _site.register(Attempt, AttemptAdmin)
