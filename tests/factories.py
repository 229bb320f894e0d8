"""What tests of messages stand on: rows of the schema they are in, turns of a worker, threads that race."""

from collections.abc import Callable
from datetime import timedelta
from threading import Barrier, Thread
from typing import Any

from django.db import connection
from django.utils import timezone
from factory import LazyAttribute, Sequence, SubFactory
from factory.django import DjangoModelFactory

from notifications import delivery, models
from notifications.delivery import Tally
from notifications.dispatch.models import LedgerRow
from notifications.models import OutboxMessage
from notifications.services import send


class Template(DjangoModelFactory):
    class Meta:
        model = models.NotificationTemplate

    event_key = "booking.confirmed"
    language = ""
    channel = "email"
    name = LazyAttribute(lambda template: f"{template.event_key} {template.language}")
    subject = "Booked, {{ name }}"
    body_text = "See you, {{ name }}"


class Event(DjangoModelFactory):
    class Meta:
        model = models.EventType

    key = "booking.confirmed"
    name = "Booking confirmed"


class Account(DjangoModelFactory):
    class Meta:
        model = models.Account

    kind = "email"
    provider = "fake"


class Outbox(DjangoModelFactory):
    class Meta:
        model = models.Outbox

    account = SubFactory(Account)
    address = "hello@acme.test"
    name = "Acme"


class Recipient(DjangoModelFactory):
    class Meta:
        model = models.Recipient

    name = "Ada"
    email = Sequence(lambda n: f"ada{n}@example.com")


class Undone(Exception):
    """Raised to roll a transaction back."""


def accepted(to: str = "ada@example.com", **options: Any) -> OutboxMessage:
    """A message of the current tenant that waits for a worker."""
    return send(to=to, **{"channel": "email", "subject": "Hi", "body_text": "Hello", **options})


def turn(queue: str = "default", **options: Any) -> Tally:
    """One turn of a worker for the current tenant."""
    return delivery.take_turn(queue, **{"seconds": 60, **options})


def fresh(message: OutboxMessage) -> OutboxMessage:
    """The message as it is stored now."""
    return OutboxMessage.objects.get(pk=message.pk)


def on_ledger(*messages: OutboxMessage) -> Any:
    """The ledger's rows of these messages, of all messages when none is given."""
    rows = LedgerRow.objects.all()
    return rows.filter(item__in=[message.pk for message in messages]) if messages else rows


def make_due(*messages: OutboxMessage) -> None:
    """Let the time pass that messages wait for."""
    on_ledger(*messages).update(due_at=timezone.now() - timedelta(seconds=1))


def end_leases() -> None:
    """Let the time pass after which a silent worker counts as dead."""
    on_ledger().filter(lease_until__isnull=False).update(lease_until=timezone.now() - timedelta(seconds=1))


def race(number: int, call: Callable[[int], Any]) -> list[Any]:
    """What calls return, or raise, that so many threads make at once, each on a connection of its own."""
    together = Barrier(number)
    answers: list[Any] = [None] * number

    def run(position: int) -> None:
        try:
            connection.ensure_connection()
            together.wait(30)
            answers[position] = call(position)
        except Exception as error:  # noqa: BLE001
            answers[position] = error
        finally:
            connection.close()

    threads = [Thread(target=run, args=(position,)) for position in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return answers
