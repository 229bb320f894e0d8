"""`process_notifications`: process all pending messages, once or again and again, without workers or Redis."""

import time
from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import CommandError
from django.db import InterfaceError, OperationalError

from notifications import tasks
from notifications.management.passes import PassCommand, Stop, complaint
from notifications.models import NotificationChannel
from notifications.processing import Pass


class Command(PassCommand):
    """Passes over every tenant with due work, most pressing queue first; tenants take turns."""

    help = (
        "Process all pending notifications, then end. With --daemon, go on until SIGTERM or Ctrl-C. Takes rows that "
        "NOTIFY_SEND_IMMEDIATELY=0 kept for it, too."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("--daemon", action="store_true", help="go on, pass after pass")
        parser.add_argument(
            "--interval", type=float, default=30, help="with --daemon: seconds between passes (default: %(default)s)"
        )
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--inbox-only", action="store_true", help="only what comes in")
        which.add_argument("--outbox-only", action="store_true", help="only what goes out")
        parser.add_argument(
            "--kind", choices=NotificationChannel.values, metavar="CHANNEL", help="only messages of one kind: email, …"
        )
        parser.add_argument(
            "--retry-failed",
            action="store_true",
            help="first take failed messages up again: at once, or with --daemon after 2, 4 and 8 hours",
        )
        parser.add_argument(
            "--max-age-hours",
            type=float,
            default=tasks.MAX_AGE / timedelta(hours=1),
            help="with --retry-failed: leave alone what failed longer ago (default: %(default)g)",
        )
        parser.add_argument(
            "--limit",
            type=int,
            help="at most so many messages a tenant in one pass (default: all that are due, taken in turns of "
            "NOTIFICATION_PROCESSING_BATCH_SIZE)",
        )
        super().add_arguments(parser)

    def work(self, stop: Stop, options: dict[str, Any]) -> None:
        """Run one pass, or passes until a signal comes, and print one line about each that did something.

        Raises:
            CommandError: the options do not go together, or, without --daemon, a tenant's turn broke.
        """
        if options["inbox_only"] and options["retry_failed"]:
            raise CommandError("--retry-failed is about what goes out: leave out --inbox-only")
        if options["daemon"]:
            self._go_on(stop, options)
            return
        work = self._pass(stop, options)
        self.say(summary(work, options))
        if complained := complaint(work):
            raise CommandError(complained)

    def _go_on(self, stop: Stop, options: dict[str, Any]) -> None:
        away_since: float | None = None
        self.say(f"a pass every {options['interval']:g} s, until SIGTERM")
        while not stop():
            try:
                work = self._pass(stop, options)
            except (OperationalError, InterfaceError) as error:
                if away_since is None:
                    away_since = time.monotonic()
                    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    self.stderr.write(f"the database does not answer, it is tried again: {reason}")
            else:
                if away_since is not None:
                    self.stderr.write(f"the database answers again, after {time.monotonic() - away_since:.0f} s")
                    away_since = None
                if work.tally.total or work.reopened:
                    self.say(summary(work, options))
                if complained := complaint(work):
                    self.stderr.write(complained)
            stop.wait(options["interval"])

    def _pass(self, stop: Stop, options: dict[str, Any]) -> Pass:
        work = self.new_pass(stop, options, kind=options["kind"])
        if options["retry_failed"]:
            # Who runs it once wants it now; passes that come again leave failures time to pass.
            work.reopen(timedelta(hours=options["max_age_hours"]), paced=options["daemon"])
        # What comes in is stored as it comes; nothing of it waits for a pass yet.
        if not options["inbox_only"]:
            work.deliver()
        return work


def summary(work: Pass, options: dict[str, Any]) -> str:
    """What a pass did, in one line."""
    parts = [f"{work.reopened} taken up again"] if options["retry_failed"] else []
    parts += [] if options["inbox_only"] else [str(work.tally)]
    parts += [] if options["outbox_only"] else ["0 received"]
    return f"{', '.join(parts)} in {len(work.tenants)} tenants"
