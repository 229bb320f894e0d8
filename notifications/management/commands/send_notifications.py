"""`send_notifications`: deliver what is due, once, and end. For cron, and for a service without Redis."""

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError

from notifications.management.passes import PassCommand, Stop, complaint


class Command(PassCommand):
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
        super().add_arguments(parser)

    def work(self, stop: Stop, options: dict[str, Any]) -> None:
        """Run the pass and print one line about it.

        Raises:
            CommandError: a tenant's turn broke (the others' were taken).
        """
        work = self.new_pass(stop, options)
        work.deliver()
        self.say(f"{work.tally} in {len(work.tenants)} tenants")
        if complained := complaint(work):
            raise CommandError(complained)
