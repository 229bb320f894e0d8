"""Many messages in one call: ten thousand recipients in one transaction, more of them in pages."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from itertools import batched
from typing import Any, overload
from uuid import UUID

from django.db.models import Model

from notifications import sending
from notifications.exceptions import CommunicationError
from notifications.models import NotificationChannel, OutboxMessage
from notifications.pages import MOST, Call, Letter, Page, Refused, Stored
from notifications.recipients import To
from notifications.wanted import check_key, read
from tenants.connection import connection
from tenants.context import tenant_context
from tenants.models import Tenant

LARGEST_BATCH = 10_000
_READ_AT_ONCE = 1_000


class Messages(Sequence[OutboxMessage]):
    """The messages of a bulk call, one for each recipient that was not refused, in their order.

    It holds their keys only. Whoever indexes or iterates gets real messages, read from the tenant's table then: as
    they are by now, a thousand at a time, wherever the thread is.

    Raises `OutboxMessage.DoesNotExist` where one is gone, as after the caller's transaction was rolled back.
    """

    def __init__(self, schema_name: str) -> None:
        self._schema_name = schema_name
        self._keys = bytearray()
        self.new = 0
        """So many were stored by this call; the others were there already, under the same idempotency key."""
        self.refused: list[Refused] = []
        """Who was left out by `skip_invalid`: each with its `position` among the recipients and its `error`."""

    @property
    def ids(self) -> list[UUID]:
        """The messages' keys, without a query."""
        return [self._id(position) for position in range(len(self))]

    def __len__(self) -> int:
        return len(self._keys) // 16

    @overload
    def __getitem__(self, index: int) -> OutboxMessage: ...

    @overload
    def __getitem__(self, index: slice) -> list[OutboxMessage]: ...

    def __getitem__(self, index: int | slice) -> OutboxMessage | list[OutboxMessage]:
        if isinstance(index, slice):
            return list(self._read([self._id(position) for position in range(len(self))[index]]))
        return next(self._read([self._id(range(len(self))[index])]))

    def __iter__(self) -> Iterator[OutboxMessage]:
        return self._read(self.ids)

    def __repr__(self) -> str:
        return f"<{len(self)} messages, {self.new} of them new, {len(self.refused)} recipients refused>"

    def _add(self, stored: Stored) -> None:
        for key in stored.ids:
            self._keys += key.bytes
        self.new += stored.new
        self.refused += stored.refused

    def _id(self, position: int) -> UUID:
        return UUID(bytes=bytes(self._keys[16 * position : 16 * position + 16]))

    def _read(self, ids: Sequence[UUID]) -> Iterator[OutboxMessage]:
        for some in batched(ids, _READ_AT_ONCE, strict=False):
            with self._context():
                found = OutboxMessage.objects.in_bulk(some)
            for key in some:
                if key not in found:
                    raise OutboxMessage.DoesNotExist(f"message {key} is gone")
                yield found[key]

    def _context(self) -> AbstractContextManager[object]:
        there = connection.schema_name == self._schema_name
        return nullcontext() if there else tenant_context(self._schema_name)


class BulkNotifier:
    """Writes to many recipients in one call; nothing is kept between calls, so the class itself may be asked."""

    @staticmethod
    def send_bulk(
        *,
        recipients: Iterable[Any],
        event_key: str = "",
        context: Mapping[str, Any] | None = None,
        channel: str | None = None,
        subject: str | None = None,
        body_text: str | None = None,
        body_html: str | None = None,
        tenant: Tenant | str | None = None,
        idempotency_key: str | None = None,
        scheduled_at: datetime | None = None,
        priority: str | None = None,
        language: str = "",
        from_address: str | None = None,
        reply_to: str = "",
        metadata: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        related_object: Model | tuple[str, Any] | None = None,
        batch_size: int = 1_000,
        skip_invalid: bool = False,
        progress: Callable[[Messages], object] | None = None,
    ) -> Messages:
        """Send each recipient one message, by template or written here.

        Up to 10,000 recipients are checked before the first message is stored, and stored in one transaction: all or
        none. More of them, from any iterable, go in pages of 10,000, each a transaction of its own: when a page is
        refused, those before it stay accepted. With an `idempotency_key` the same call made again, after such a fault
        or after a crash, completes it without doubles. Nothing is rendered but one sample of each template.

        Args:
            recipients: what `to` of `send` may be, each; or (recipient, context), or a dict with a `context`. Without
                an `idempotency_key`, who is given twice gets two messages; with one, one.
            event_key, channel, subject, body_text, body_html: as for `send`.
            context: the template's variables for everybody; a recipient's own go before them.
            tenant: a tenant or its schema's name; may be left out inside a tenant's context.
            idempotency_key: up to 200 characters. Each message gets a key of its own, derived from this one, the
                channel, and who it is for: the `Recipient`, else the external id, the user, or the address.
            scheduled_at: an aware time to send at; a past one means now.
            priority: as for `send`; when absent, `bulk`.
            language: such as `de-AT`; when absent each recipient's, then the tenant's.
            from_address, reply_to, metadata, headers, related_object: as for `send`, the same for everybody.
            batch_size: so many rows are inserted by one statement, from 1 to 10,000.
            skip_invalid: leave out who cannot be written to, and say so in `refused` of the answer.
            progress: called with the messages so far after each page.

        Returns:
            The messages, in the order of the recipients.

        Raises:
            RecipientsRefused: recipients that cannot be written to, by position, with the remedy each.
            IdempotencyConflict: the key was used for one of them before, with other arguments.
            RateLimitExceeded: too little of the tenant's daily quota is left.
            CommunicationError: one of its other kinds. Of the page on which it arose, nothing was stored.
        """
        if isinstance(recipients, str | bytes | Mapping) or not isinstance(recipients, Iterable):
            raise CommunicationError(f"recipients must be a list of them, not one {type(recipients).__name__}")
        if not isinstance(batch_size, int) or not 1 <= batch_size <= LARGEST_BATCH:
            raise CommunicationError(f"batch_size={batch_size!r} is no whole number from 1 to {LARGEST_BATCH}")
        check_key(idempotency_key)
        with sending.scope_of(tenant) as caller:
            wanted = read(
                crossed=caller.crossed,
                to=To(),
                event_key=event_key,
                channel=channel,
                context=context,
                metadata=metadata,
                headers=headers,
                subject=subject,
                body_text=body_text,
                body_html=body_html,
                scheduled_at=scheduled_at,
                priority=priority,
                language=language,
                from_address=from_address,
                reply_to=reply_to,
                related_object=related_object,
            )
            call = Call(
                Letter(
                    wanted=wanted,
                    crossed=caller.crossed,
                    idempotency_key=idempotency_key,
                    batch_size=batch_size,
                    skip_invalid=skip_invalid,
                )
            )
            number = len(recipients) if isinstance(recipients, Sized) else 0
            if number > MOST and not idempotency_key and (quota := caller.quota):
                # Better nothing than the first pages of what cannot be completed.
                quota.check(number, passing=call.security)
            messages = Messages(connection.schema_name)
        first = 0
        # The recipients come from the caller, and are read where the caller is.
        for given in batched(recipients, MOST, strict=False):
            with sending.scope_of(tenant) as caller:
                try:
                    messages._add(Page(call, given, first).store(caller.quota))
                except CommunicationError as error:
                    if first:
                        error.add_note(f"the {first} recipients before were accepted")
                    raise
            first += len(given)
            if progress:
                progress(messages)
        return messages

    @staticmethod
    def send_bulk_email(
        *,
        recipients: Iterable[Any],
        subject: str,
        message: str,
        batch_size: int = 50,
        html: str | None = None,
        **options: Any,
    ) -> Messages:
        """Send the same e-mail, written here, to each recipient.

        Args:
            recipients, batch_size: as for `send_bulk`.
            subject, message, html: sent as they are.
            options: as for `send_bulk`: tenant, idempotency_key, scheduled_at, from_address, skip_invalid, …

        Raises:
            CommunicationError: one of its kinds, as for `send_bulk`.
        """
        return BulkNotifier.send_bulk(
            recipients=recipients,
            channel=NotificationChannel.EMAIL,
            subject=subject,
            body_text=message,
            body_html=html,
            batch_size=batch_size,
            **options,
        )

    @staticmethod
    def send_bulk_sms(*, recipients: Iterable[Any], message: str, batch_size: int = 25, **options: Any) -> Messages:
        """Send the same text message, written here, to each recipient; as `send_bulk_email`.

        Raises:
            CommunicationError: one of its kinds, as for `send_bulk`.
        """
        return BulkNotifier.send_bulk(
            recipients=recipients,
            channel=NotificationChannel.SMS,
            body_text=message,
            batch_size=batch_size,
            **options,
        )
