"""What lands after its turn: written down by a thread of its own, beside the turns that follow.

It renews the leases meanwhile, and keeps outcomes that the database does not take until it does: a provider's answer is
not forgotten because PostgreSQL restarts.
"""

import logging
import time
from threading import Condition, Thread
from typing import Protocol

from django.db import DatabaseError, InterfaceError

from notifications import recording
from tenants.connection import connection
from tenants.context import tenant_context
from tenants.models import Tenant

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
KEEP_TRYING_SECONDS = recording.RESEND_AFTER.total_seconds() / 2
"""For how long outcomes that the database does not take are kept and tried again, well before they go again."""


class Late(Protocol):
    """Something of a tenant's that has messages on their way."""

    tenant: Tenant

    def take_back(self) -> bool:
        """Write down what has landed; whether that was the last of it."""


class _Latecomers:
    def __init__(self) -> None:
        self._condition = Condition()
        self._late: dict[int, tuple[Late, float]] = {}
        self._thread: Thread | None = None

    def add(self, late: Late) -> None:
        with self._condition:
            self._late[id(late)] = late, time.monotonic() + KEEP_TRYING_SECONDS
            if self._thread is None:
                self._thread = Thread(target=self._run, name="latecomers", daemon=True)
                self._thread.start()

    def wait(self, seconds: float | None) -> bool:
        with self._condition:
            return self._condition.wait_for(lambda: self._thread is None, seconds)

    def _run(self) -> None:
        while True:
            with self._condition:
                late = list(self._late.values())
                if not late:
                    connection.close()
                    self._thread = None
                    self._condition.notify_all()
                    return
            for each, gives_up_at in late:
                if self._attend(each, gives_up_at):
                    with self._condition:
                        del self._late[id(each)]
            time.sleep(LOOK_SECONDS)

    def _attend(self, late: Late, gives_up_at: float) -> bool:
        try:
            with tenant_context(late.tenant):
                return late.take_back()
        except (DatabaseError, InterfaceError):
            connection.close()
            if time.monotonic() < gives_up_at:
                return False
            logger.exception("outcomes given up", extra={"schema": late.tenant.schema_name})
        except Exception:
            logger.exception("outcomes cannot be written down", extra={"schema": late.tenant.schema_name})
            connection.close()
        return True


_latecomers = _Latecomers()


def add(late: Late) -> None:
    """Look after what is on its way, until it has landed and is written down."""
    _latecomers.add(late)


def wait(seconds: float | None = None) -> bool:
    """Wait until nothing is on its way any more; False when the time was over before."""
    return _latecomers.wait(seconds)
