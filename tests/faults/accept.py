"""A caller that notes what it asks for: `python -m tests.faults.accept ORDERS NOTES`.

It asks for each order of the file, and writes a line to NOTES before and after each call. An order that the database
cannot take is asked for again under the same key, as a caller would.
"""

import argparse
import json
import os
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

from services.start import configure

configure()

import django  # noqa: E402 (settings are read first)

django.setup()

from django.db import DatabaseError, InterfaceError, connection  # noqa: E402

from notifications.services import BulkNotifier, CommunicationError, send  # noqa: E402
from tests.faults.crashes import install  # noqa: E402
from tests.faults.ledger import Order  # noqa: E402

EVENT = "fault.note"
AGAIN_SECONDS = 0.2
GIVE_UP_SECONDS = 240.0


CLOCK = "CLOCK_AHEAD_OF_MONOTONIC"
"""Names the seconds from the machine's monotonic clock to its real one: a caller's own clock may be set wrong."""


class Notes:
    """The ledger of the accepting side; a line is one write."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._ahead = float(os.environ.get(CLOCK) or time.time() - time.monotonic())

    def write(self, what: str, key: str, **more: object) -> None:
        """Write a line."""
        at = time.monotonic() + self._ahead
        os.write(self._file, json.dumps({"what": what, "key": key, "at": at, **more}).encode() + b"\n")


def ask_for(order: Order, notes: Notes) -> None:
    """Ask for one message, again and again while the database is away."""
    options: dict[str, Any] = {"idempotency_key": order.key, **order.options}
    due = 0.0
    if "in_seconds" in options:
        options["scheduled_at"] = datetime.now(UTC) + timedelta(seconds=options.pop("in_seconds"))
        due = options["scheduled_at"].timestamp()
    notes.write("begun", order.key)
    deadline = time.monotonic() + GIVE_UP_SECONDS
    while True:
        called = time.monotonic()
        try:
            message = send(
                to=order.to,
                channel=order.channel,
                subject=order.subject,
                body_text=order.text,
                tenant=order.schema,
                **options,
            )
        except (DatabaseError, InterfaceError) as error:
            connection.close()
            notes.write("refused", order.key, error=f"{type(error).__name__}: {error}"[:200], took=_since(called))
            if time.monotonic() > deadline:
                return
            time.sleep(AGAIN_SECONDS)
        except (CommunicationError, ValueError) as error:
            notes.write("refused", order.key, error=f"{type(error).__name__}: {error}"[:200])
            return
        else:
            notes.write("accepted", order.key, id=str(message.pk), due=due, took=_since(called))
            return


def _since(moment: float) -> float:
    return round(time.monotonic() - moment, 3)


def ask_in_bulk(orders: Sequence[Order], notes: Notes) -> None:
    """Ask for all of a tenant's messages in one call."""
    for order in orders:
        notes.write("begun", order.key)
    called = time.monotonic()
    messages = BulkNotifier.send_bulk(
        recipients=[(order.to, {"subject": order.subject, "text": order.text}) for order in orders],
        event_key=EVENT,
        channel=orders[0].channel,
        idempotency_key=orders[0].key,
        tenant=orders[0].schema,
        **{"priority": "default", **orders[0].options},
    )
    took = _since(called)
    for order, message_id in zip(orders, messages.ids, strict=True):
        notes.write("accepted", order.key, id=str(message_id), due=0.0, took=took)


def race(order: Order, notes: Notes, callers: int) -> None:
    """Ask for one message from so many threads at once."""
    together = threading.Barrier(callers)

    def call() -> None:
        connection.ensure_connection()
        together.wait(60)
        ask_for(order, notes)
        connection.close()

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Read the options, ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("orders", type=Path)
    parser.add_argument("notes", type=Path)
    parser.add_argument("--rate", type=float, default=0.0, help="calls a second; 0: as fast as it goes")
    parser.add_argument("--bulk", action="store_true", help="one call a tenant")
    parser.add_argument("--race", type=int, default=0, help="each order from so many threads at once")
    options = parser.parse_args()
    install()
    orders = [Order.from_line(line) for line in options.orders.read_text(encoding="utf-8").splitlines()]
    notes = Notes(options.notes)
    if options.bulk:
        for _, same in groupby(orders, key=lambda order: order.schema):
            ask_in_bulk(list(same), notes)
        return
    began = time.monotonic()
    for number, order in enumerate(orders):
        if options.rate:
            time.sleep(max(began + number / options.rate - time.monotonic(), 0))
        if options.race:
            race(order, notes, options.race)
        else:
            ask_for(order, notes)
    connection.close()


if __name__ == "__main__":
    main()
