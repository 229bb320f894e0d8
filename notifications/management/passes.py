"""What the commands share that deliver by themselves: their options, how they end, and what they say."""

import signal
import threading
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from notifications import adapters, delivery
from notifications.processing import Pass, revive_connection
from tenants.management.lookup import tenant_named

SHOWN_SECONDS = 1.0
"""How often a terminal is told how far it is."""
WAKE_SECONDS = 0.2
"""How soon a waiting command notices that it is to end."""


class Stop:
    """Whether the command was told to end. Signals only set a flag: what waits on a lock cannot be woken by one."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked

    def wait(self, seconds: float) -> None:
        """Wait so long, or until told to end."""
        until = time.monotonic() + seconds
        while not self.asked and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, WAKE_SECONDS))

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT end the command after the turn that it is in."""

        def end(_: int, __: FrameType | None) -> None:
            self.asked = True

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class PassCommand(BaseCommand):
    """A command that takes passes over tenants in its own process."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("--worker-id", default="", help="a name for the leases (default: host and process)")
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--schema", metavar="TENANT", help="only this tenant (its schema's name, or its host)")
        which.add_argument("--all-schemas", action="store_true", help="all tenants that are served (the default)")

    def handle(self, *_: Any, **options: Any) -> None:
        """Run until the work is done or a signal comes; what is on its way then is waited for.

        Raises:
            CommandError: an option cannot be used, or something broke in a tenant (the others had their turn).
        """
        for name in ("limit", "interval", "max_age_hours"):
            if (given := options.get(name)) is not None and (given < 1 if name == "limit" else given <= 0):
                least = "at least 1" if name == "limit" else "above 0"
                raise CommandError(f"--{name.replace('_', '-')} must be {least}")
        if options["schema"]:
            options["schema"] = tenant_named(options["schema"]).schema_name
        stop = Stop()
        with stop.on_signals():
            try:
                self.work(stop, options)
            finally:
                delivery.finish_late()
                adapters.close_all()

    def work(self, stop: Stop, options: dict[str, Any]) -> None:
        """Do what the command is for."""
        raise NotImplementedError

    def new_pass(self, stop: Stop, options: dict[str, Any], **more: Any) -> Pass:
        """A pass by the options, on a connection that is alive."""
        revive_connection()
        return Pass(
            schema_name=options["schema"],
            limit=options["limit"],
            worker=options["worker_id"],
            stopped=stop,
            progress=self._progress(),
            **more,
        )

    def _progress(self) -> Any:
        shown_at = time.monotonic()

        def show(work: Pass) -> None:
            nonlocal shown_at
            if self.stdout.isatty() and time.monotonic() - shown_at >= SHOWN_SECONDS:
                shown_at = time.monotonic()
                self.stdout.write(f"\r\033[K{work.tally}", ending="")
                self.stdout.flush()

        return show

    def say(self, line: str) -> None:
        """Say one line, in place of the progress on a terminal."""
        self.stdout.write(f"\r\033[K{line}" if self.stdout.isatty() else line)
        self.stdout.flush()


def complaint(work: Pass) -> str:
    """What to say of a pass in which something broke; empty when nothing did."""
    return f"the log says what broke in {', '.join(sorted(work.broken))}" if work.broken else ""
