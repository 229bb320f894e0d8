"""`send_notifications`: deliver what is due, once, and end. For cron, and for a service without Redis."""

import logging
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from notifications import adapters, delivery
from notifications.delivery import Tally
from notifications.dispatch.sweep import waiting
from notifications.models import Priority
from tenants.context import tenant_context

logger = logging.getLogger(__name__)

PASS_SECONDS = 600.0


class Command(BaseCommand):
    """One pass over every tenant with due work, most pressing queue first; tenants take turns."""

    help = "Deliver due notifications once, then end. Takes rows that NOTIFY_SEND_IMMEDIATELY=0 kept for it, too."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "--limit",
            type=int,
            default=settings.NOTIFICATION_SETTINGS["PROCESSING_BATCH_SIZE"],
            help="at most so many messages a tenant (default: %(default)s)",
        )
        parser.add_argument("--worker-id", default="", help="a name for the leases (default: host and process)")
        parser.add_argument("--schema", help="only this tenant (its schema's name)")

    def handle(self, *_: Any, **options: Any) -> None:
        """Run the pass and print one line about it.

        Raises:
            CommandError: the limit is not positive, or a tenant's turn broke (the others' were taken).
        """
        if options["limit"] < 1:
            raise CommandError("--limit must be at least 1")
        left: dict[str, int] = {}
        total, broken = Tally(), list[str]()
        try:
            for schema_name, queue in self._turns(options["schema"]):
                allowed = left.setdefault(schema_name, options["limit"])
                if allowed <= 0:
                    continue
                try:
                    with tenant_context(schema_name):
                        tally = delivery.take_turn(
                            queue, worker=options["worker_id"], limit=allowed, manual=True, seconds=PASS_SECONDS
                        )
                except Exception:
                    # One tenant's fault must not keep the others' messages.
                    logger.exception("turn broke", extra={"schema": schema_name, "queue": queue})
                    broken.append(schema_name)
                    continue
                left[schema_name] -= tally.total
                total += tally
        finally:
            adapters.close_all()
        self.stdout.write(f"{total} in {len(left)} tenants")
        if broken:
            raise CommandError(f"the log says what broke in {', '.join(sorted(set(broken)))}")

    def _turns(self, schema_name: str | None) -> list[tuple[str, str]]:
        order = list(Priority.values)
        found = [turn for turn in waiting(manual=True) if turn[1] in order and schema_name in {None, turn[0]}]
        return sorted(found, key=lambda turn: (order.index(turn[1]), turn[0]))
