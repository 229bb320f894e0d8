"""Hand-overs by a handler: the platform's own function stands in the provider's place.

It runs on the worker's main thread, inside the tenant, and may use the database. Coroutines of one chunk run side by
side; a plain function gets one message after the other.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from inspect import iscoroutinefunction

from asgiref.sync import async_to_sync
from django.conf import settings
from django.utils import timezone

from notifications import crashpoints
from notifications.channels import Accepted, Adapter, Failure, Networks, Outgoing, Settings, Unavailable, Uncertain
from notifications.dispatch.limiter import Grant
from notifications.due import DueMessage
from notifications.handlers import Handler, handler_named
from notifications.handover import Flight, HandOver
from notifications.models import OutboxMessage
from tenants.connection import connection
from tenants.context import tenant_context
from tenants.models import Tenant

logger = logging.getLogger(__name__)

SIDE_BY_SIDE = 32
"""How many coroutines run at once."""


class HandlerAdapter(Adapter):
    """What the drain asks a provider's adapter for; the messages go to the handler instead."""

    provider = "handler"

    def __init__(self, settings: Settings, *, allowed_networks: Networks = ()) -> None:  # noqa: ARG002
        self.handler: Handler = handler_named(settings["handler"])
        self.is_async = iscoroutinefunction(self.handler)
        self.connections = SIDE_BY_SIDE if self.is_async else 1

    @classmethod
    def check_settings(cls, settings: Settings) -> None:
        """Raise HandlerNotAllowed unless the name may be chosen."""
        handler_named(settings["handler"])

    def send(self, message: Outgoing) -> Accepted:
        """Not how handlers are called.

        Raises:
            Unavailable: always.
        """
        raise Unavailable(f"message {message.reference} is for a handler")


class HandlerFlight(Flight):
    """The messages of one lane that a handler hands over: they have landed as soon as they are launched."""

    def __init__(self, adapter: HandlerAdapter, schema_name: str) -> None:
        super().__init__(adapter, schema_name)
        self.adapter = adapter

    def launch(self, messages: Sequence[DueMessage], permit: Grant | None = None) -> None:
        """Hand messages over, one after the other or side by side."""
        instances = OutboxMessage.objects.in_bulk([message.pk for message in messages])
        tenant = connection.tenant
        calls = [_Call(self.adapter.handler, message, instances[message.pk], permit, tenant) for message in messages]
        self.pending += len(calls)
        try:
            with tenant_context(tenant):
                if self.adapter.is_async:
                    # On this thread, with this connection: another thread's would be in the public schema.
                    async_to_sync(_side_by_side)(calls)
                else:
                    for call in calls:
                        call.run()
        finally:
            for call in calls:
                self.land(call.over())


async def _side_by_side(calls: Sequence["_Call"]) -> None:
    await asyncio.gather(*(call.run_async() for call in calls))


@dataclass(slots=True)
class _Call:
    """One call of a handler, and what it comes to: what the handler marked, else what it returned or raised."""

    handler: Handler
    message: DueMessage
    instance: OutboxMessage
    permit: Grant | None
    tenant: Tenant
    started_at: datetime = field(default_factory=timezone.now)
    failure: Failure | None = None
    begun: bool = False

    def run(self) -> None:
        self.begun = True
        try:
            crashpoints.reached("before_provider")
            self._returned(self.handler(self.instance))
        except Exception as error:  # noqa: BLE001 (whatever happens is an answer)
            self._raised(error)
        self._check()

    async def run_async(self) -> None:
        self.begun = True
        try:
            async with asyncio.timeout(settings.NOTIFY_LOCK_TIMEOUT_SECONDS / 2):
                self._returned(await self.handler(self.instance))
        except Exception as error:  # noqa: BLE001
            self._raised(error)
        self._check()

    def over(self) -> HandOver:
        """How it ended."""
        answer = self.instance.marked or self.failure
        if answer is None and self.begun:
            answer = Uncertain("the handler was interrupted", account_wide=False)
        accepted = answer if isinstance(answer, Accepted) else None
        failure = answer if isinstance(answer, Failure) else None
        return HandOver(self.message, self.started_at, timezone.now(), self.permit, accepted, failure, begun=self.begun)

    def _returned(self, worked: object) -> None:
        if worked and self.instance.marked is None:
            self.instance.mark_sent()
        elif self.instance.marked is None:
            self.failure = Unavailable("the handler did not take the message")

    def _raised(self, error: Exception) -> None:
        if isinstance(error, Failure):
            self.failure = error
            return
        extra = {"message_id": str(self.message.pk)}
        logger.error("a handler broke", exc_info=error, extra=extra)
        # Before or after it sent something: nobody knows. What it had marked stands.
        self.failure = Uncertain(f"the handler broke: {type(error).__name__}", account_wide=False)

    def _check(self) -> None:
        if connection.schema_name != self.tenant.schema_name:
            logger.error("a handler left its tenant's schema", extra={"message_id": str(self.message.pk)})
            connection.set_tenant(self.tenant)
