"""Which channel a message takes, which sender it leaves by, and how urgent it is."""

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from email.utils import parseaddr
from uuid import UUID

from django.conf import settings
from django.db import transaction

from notifications.channels.addresses import InvalidAddress, clean_sender
from notifications.dispatch import bells, circuits, lanes, limiter
from notifications.dispatch.circuits import State, Who
from notifications.dispatch.limiter import PLATFORM, Limit
from notifications.exceptions import CommunicationError, InvalidSenderError
from notifications.models import (
    Account,
    CommunicationSettings,
    MessageType,
    NotificationChannel,
    Outbox,
    OutboxMessage,
    Priority,
    Scope,
)
from tenants.connection import connection
from tenants.context import current_tenant_id, public_context

CHANNEL_OF_TYPE = {
    MessageType.TRANSACTIONAL: NotificationChannel.EMAIL,
    MessageType.REMINDER: NotificationChannel.SMS,
    MessageType.ALERT: NotificationChannel.SMS,
    MessageType.ANNOUNCEMENT: NotificationChannel.EMAIL,
}
PRIORITY_OF_TYPE = {
    MessageType.TRANSACTIONAL: Priority.DEFAULT,
    MessageType.REMINDER: Priority.DEFAULT,
    MessageType.ALERT: Priority.HIGH,
    MessageType.ANNOUNCEMENT: Priority.BULK,
}


@dataclass(frozen=True, slots=True)
class Sender:
    """An outbox, wherever it lives, and what a message shows of it."""

    scope: str
    outbox: Outbox
    address: str
    name: str


def choose_channel(explicit: str | None, message_type: str | None, defaults: CommunicationSettings) -> str:
    """The channel that was asked for, else the message type's, else the tenant's default.

    Raises:
        CommunicationError: the channel does not exist.
    """
    if explicit:
        if explicit not in NotificationChannel.values:
            raise CommunicationError(f"channel={explicit!r} is none of {', '.join(NotificationChannel.values)}")
        return str(explicit)
    if message_type:
        return str(CHANNEL_OF_TYPE[MessageType(message_type)])
    return defaults.default_channel


def choose_priority(explicit: str | None, message_type: str, *, security: bool) -> str:
    """The priority that was asked for, else what the message is gives it.

    Urgent belongs to codes and password resets: asked for without being one, it is high.

    Raises:
        CommunicationError: the priority does not exist.
    """
    if explicit and explicit not in Priority.values:
        raise CommunicationError(f"priority={explicit!r} is none of {', '.join(Priority.values)}")
    if security:
        return str(explicit or Priority.URGENT)
    wanted = explicit or PRIORITY_OF_TYPE[MessageType(message_type)]
    return str(Priority.HIGH if wanted == Priority.URGENT else wanted)


def choose_sender(channel: str, from_address: str | None, defaults: CommunicationSettings) -> Sender:
    """The sender that was asked for, else the tenant's first outbox, else the platform's shared one.

    Raises:
        InvalidSenderError: the address is neither an active outbox of the tenant nor at a verified domain.
        CommunicationError: nobody can send on this channel.
    """
    own = list(
        Outbox.objects.filter(is_active=True, account__is_active=True, account__kind=channel).select_related("account")
    )
    if from_address:
        return _named_sender(channel, from_address, own)
    if own:
        preferred = next((outbox for outbox in own if outbox.address == defaults.email_from_address), own[0])
        return Sender(current_scope(), preferred, preferred.address, preferred.name)
    shared = platform_outbox(channel)
    if shared is None:
        raise CommunicationError(f"no active outbox can send {channel}: add an account and an outbox for it")
    return Sender(Scope.PLATFORM, shared, shared.address, defaults.email_from_name or shared.name)


def current_scope() -> str:
    """Where the rows of the current schema live, as messages refer to them."""
    return Scope.PLATFORM if connection.schema_name == "public" else Scope.TENANT


def scope_of(outbox: Outbox) -> str:
    """Where an outbox lives: the platform's are seen from inside tenants, too."""
    return Scope.PLATFORM if getattr(outbox._state, "schema", connection.schema_name) == "public" else Scope.TENANT


def _named_sender(channel: str, from_address: str, own: list[Outbox]) -> Sender:
    wanted = from_address.strip().lower()
    try:
        wanted = clean_sender(channel, wanted)
    except InvalidAddress as error:
        raise InvalidSenderError(f"from_address={from_address!r}: {error}") from error
    for outbox in own:
        if outbox.address.lower() == wanted:
            return Sender(current_scope(), outbox, outbox.address, outbox.name)
    domain = wanted.rpartition("@")[2]
    for outbox in own:
        account = outbox.account
        if domain and account.domain.lower() == domain and account.domain_verified_at:
            return Sender(current_scope(), outbox, wanted, outbox.name)
    raise InvalidSenderError(
        f"from_address={from_address!r} may not send: add an active outbox with this address, or verify its domain"
    )


def platform_outbox(channel: str) -> Outbox | None:
    """The platform's shared outbox for a channel, with its account, or None."""
    with public_context():
        return (
            Outbox.objects.filter(is_active=True, account__is_active=True, account__kind=channel)
            .select_related("account")
            .first()
        )


def ensure_platform_outboxes() -> None:
    """Make the platform's shared e-mail and SMS outboxes from the settings, where public has none yet."""
    wanted: dict[NotificationChannel, tuple[str, str]] = {
        NotificationChannel.EMAIL: (settings.NOTIFY_EMAIL_PROVIDER, default_email_sender()),
        NotificationChannel.SMS: (
            settings.NOTIFY_SMS_PROVIDER,
            str(settings.NOTIFICATION_SETTINGS["DEFAULT_SMS_FROM"]),
        ),
    }
    with public_context():
        for channel, (provider, sender) in wanted.items():
            name, address = parseaddr(sender) if channel == NotificationChannel.EMAIL else ("", sender)
            if provider and address and not Account.objects.filter(kind=channel).exists():
                account = Account.objects.create(kind=channel, provider=provider, name=f"Platform {channel.label}")
                Outbox.objects.create(account=account, address=address, name=name)


def default_email_sender() -> str:
    """The sender of last resort, alone or as `Name <address>`."""
    return str(
        settings.NOTIFY_EMAIL_FROM_DEFAULT
        or settings.NOTIFICATION_SETTINGS["DEFAULT_FROM_EMAIL"]
        or settings.DEFAULT_FROM_EMAIL
    )


def in_scope(scope: str) -> AbstractContextManager[object]:
    """The context in which rows of a scope are read: the tenant's own, or public."""
    return public_context() if scope == Scope.PLATFORM else nullcontext()


def outbox_at(scope: str, outbox_uuid: UUID) -> Outbox | None:
    """An outbox with its account, from the tenant or from public; None when it is gone."""
    with in_scope(scope):
        return Outbox.objects.select_related("account").filter(pk=outbox_uuid).first()


def limit_of(outbox: Outbox, scope: str) -> Limit | None:
    """The most that an outbox may hand over in a window; None when it has no limit of its own."""
    if outbox.rate_limit is None:
        return None
    seconds = float(settings.NOTIFICATION_SETTINGS["RATE_LIMIT_WINDOW"])
    owner = PLATFORM if scope == Scope.PLATFORM else current_tenant_id()
    return Limit(owner=owner, outbox=outbox.pk, most=outbox.rate_limit, seconds=seconds)


def who_is(account: Account, scope: str) -> Who:
    """An account as the circuits know it, with all of its senders."""
    owner = PLATFORM if scope == Scope.PLATFORM else current_tenant_id()
    with in_scope(scope):
        outboxes = tuple(Outbox.objects.filter(account_id=account.pk).values_list("pk", flat=True))
    return Who(owner=owner, account=account.pk, outboxes=outboxes)


def states_of(accounts: Collection[UUID]) -> dict[UUID, State]:
    """How the current schema's accounts with these keys are doing with their providers."""
    owner = PLATFORM if current_scope() == Scope.PLATFORM else current_tenant_id()
    return circuits.states_of(owner, accounts)


def limits_used(outboxes: Collection[Outbox]) -> dict[UUID, int]:
    """How many hand-overs count against the limits of the current schema's outboxes, for those that have one."""
    limits = [limit for outbox in outboxes if (limit := limit_of(outbox, current_scope()))]
    return limiter.used(limits)


def try_again(account: Account) -> None:
    """Let what waits for a paused account go: it was mended, or somebody says so."""
    with transaction.atomic():
        ring_for(circuits.well(who_is(account, current_scope())))


def look_again(outbox: Outbox) -> None:
    """Let what waits for a sender be looked at now: its limit was changed, or it was switched on."""
    with transaction.atomic():
        ring_for(lanes.let_go([outbox.pk]))


def ring_for(waited: Collection[tuple[int, str]]) -> None:
    """Ring for the current tenant's lanes; the sweep rings for other tenants'."""
    tenant_id = current_tenant_id()
    for owner, queue in waited:
        if owner == tenant_id:
            bells.ring_on_commit(queue)


def stand_ins(outbox: Outbox, scope: str) -> list[Outbox]:
    """The outboxes that may take over from one whose provider does not take messages, best first.

    They are of the same channel, on other accounts that are not held themselves, and only where the owner wants it.
    """
    owner = PLATFORM if scope == Scope.PLATFORM else current_tenant_id()
    with in_scope(scope):
        if not CommunicationSettings.objects.filter(failover=True).exists():
            return []
        others = Outbox.objects.filter(is_active=True, account__is_active=True, account__kind=outbox.account.kind)
        found = list(others.exclude(account_id=outbox.account_id).select_related("account"))
    states = circuits.states_of(owner, {other.account_id for other in found})
    return [other for other in found if states[other.account_id].until is None]


def outbox_of(message: OutboxMessage) -> Outbox | None:
    """The outbox that a message leaves by; None when it is gone."""
    return outbox_at(message.outbox_scope, message.outbox_uuid)
