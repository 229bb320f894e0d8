"""Where the benchmarks run: servers, processes and tenants of their own, all gone when they end.

Import it once Django is set up; `__main__` does that.
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from rq import Worker

from notifications import queues
from notifications.dispatch.models import Lane, LedgerRow
from notifications.dispatch.sweep import sweep
from notifications.models import Account, EventType, MessageStatus, NotificationTemplate, Outbox, OutboxMessage
from services.embedded import Servers
from tenants.connection import connection
from tenants.context import tenant_context
from tenants.models import Tenant
from tenants.onboarding import close, create_tenant, drop_closed_tenant
from tests.benchmarks.peers import ROOT, Peers
from tests.benchmarks.processes import Process, accepts_connections, free_port, say, wait_until
from tests.benchmarks.results import NotMeasured
from tests.benchmarks.sizes import Size

EVENT = "booking.confirmed"
CODE = "sign-in.code"
SUBJECT = "Your booking {{ ref }} is confirmed"
TEXT = "Hi {{ name }}, your booking {{ ref }} at {{ start }} is confirmed."
HTML = (
    "<html><body><p>Hi {{ name }}, your booking {{ ref }} at {{ start }} is confirmed.</p>"
    + "<p>Some more text about the booking.</p>" * 20
    + "{% for item in items %}<li>{{ item }}</li>{% endfor %}</body></html>"
)
"""The wording that the peers send, so that everyone renders and builds the same mail."""

_numbers = count(1)


def address(number: int) -> str:
    """Whom the message of this number is for."""
    return f"u{number}@example.com"


def booking(number: int) -> dict[str, object]:
    """What its template is rendered with."""
    return {"name": "Alex", "ref": f"BK-{number}", "start": "2026-12-01 10:00", "items": list(range(5))}


@dataclass(slots=True, eq=False)
class Stage:
    """What every benchmark finds: running servers, the peers, how much to do."""

    servers: Servers
    peers: Peers
    folder: Path
    size: Size

    @property
    def smtp_sink(self) -> str | None:
        """Postfix's `smtp-sink`: the fastest mail server there is, if it is installed."""
        return shutil.which("smtp-sink", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

    @property
    def server_processes(self) -> list[int]:
        """PostgreSQL's first process and Valkey's."""
        named = (self.servers.postgres.data / "postmaster.pid").read_text(encoding="utf-8")
        return [int(named.partition("\n")[0]), self.servers.valkey.process_id]

    @contextmanager
    def scene(self) -> Iterator["Scene"]:
        """One set-up; its processes end with it, its tenants and their messages are removed."""
        with ExitStack() as stack:
            scene = Scene(self, stack)
            stack.callback(self._clear)
            # Called before what came earlier: processes end before their tenants go.
            stack.callback(scene.drop_tenants)
            stack.callback(scene.end_processes)
            queues.redis().flushall()
            yield scene

    def _clear(self) -> None:
        connection.set_schema_to_public()
        queues.redis().flushall()
        LedgerRow.objects.all().delete()


class Scene:
    """Processes and tenants of one benchmark."""

    def __init__(self, stage: Stage, stack: ExitStack) -> None:
        self.stage, self._stack = stage, stack
        self.processes: list[Process] = []
        self._sinks: list[Process] = []
        self.tenants: list[Tenant] = []

    def start(self, name: str, *arguments: str, **environment: str) -> Process:
        """Start a process that ends with the scene."""
        log = self.stage.folder / f"{name}.log"
        process = Process(arguments, log, PYTHONPATH=str(ROOT), **environment)
        self.processes.append(process)
        return process

    def sink(self, *options: str, latency_ms: int = 0) -> int:
        """The port of a mail server that takes everything; options are those of our own.

        The same server as the peers', where there is one: `smtp-sink`, or for a latency the one beside them.
        """
        port = free_port()
        peers = self.stage.peers.sink
        if options or (peers is None and (latency_ms or not self.stage.smtp_sink)):
            command = [sys.executable, "-m", "tests.benchmarks.sink", str(port), *options]
            command += ["--latency-ms", str(latency_ms)] if latency_ms else []
        elif not latency_ms and self.stage.smtp_sink:
            user = ["-u", "nobody"] if os.geteuid() == 0 else []
            command = [self.stage.smtp_sink, *user, f"127.0.0.1:{port}", "1000"]
        else:
            command = [sys.executable, str(peers), str(port), str(latency_ms)]
        self._sinks.append(self.start("sink", *command))
        wait_until(lambda: accepts_connections(port), what="the mail server listens", seconds=10)
        return port

    def workers(self, queue: str, number: int = 1, **environment: str) -> list[Process]:
        """Start worker processes of one queue; they are ready, and have found nothing to do, when this returns."""
        started = self.start_workers(queue, number, **environment)
        self.wait_for_workers(queue, started)
        return started

    def start_workers(self, queue: str, number: int = 1, **environment: str) -> list[Process]:
        """Start worker processes of one queue, and do not wait."""
        module = ("-m", "services.worker", queue)
        return [self.start(f"worker-{queue}", sys.executable, *module, **environment) for _ in range(number)]

    def wait_for_workers(self, queue: str, started: list[Process]) -> float:
        """Wait until they listen; the time (`perf_counter`) at which the last did."""

        def listening() -> bool:
            self.require_alive()
            return Worker.count(queue=queues.queue_named(queue)) >= len(started)

        return wait_until(listening, what=f"the workers of {queue} listen", seconds=60)

    def scheduler(self, **environment: str) -> Process:
        """Start the scheduler process."""
        return self.start("scheduler", sys.executable, "-m", "services.scheduler", **environment)

    def tenant(self, *ports: int, connections: int | None = None, rate_limit: int | None = None) -> Tenant:
        """A tenant with an outbox, and an account of its own, on each of these mail servers, and its wording."""
        number = next(_numbers)
        tenant = create_tenant(f"Bench {number}", domain=f"bench{number}", owner_email="owner@example.com")
        self.tenants.append(tenant)
        many = {} if connections is None else {"connections": connections}
        with tenant_context(tenant):
            for position, port in enumerate(ports):
                smtp = {"host": "127.0.0.1", "port": port, "use_tls": False, **many}
                account = Account(kind=Account.EMAIL, name=f"Sink {position}", settings={"smtp": smtp})
                account.save()
                Outbox.objects.create(account=account, address=sender(position), rate_limit=rate_limit)
            EventType.objects.create(key=CODE, name="Sign-in code", security=True)
            for event_key in (EVENT, CODE):
                NotificationTemplate.objects.create(
                    event_key=event_key,
                    channel="email",
                    name=event_key,
                    subject=SUBJECT,
                    body_text=TEXT,
                    body_html=HTML,
                )
        return tenant

    def require_alive(self) -> None:
        """Raise NotMeasured if a process ended by itself."""
        for process in self.processes:
            process.require_alive()

    def waiting(self, tenant: Tenant) -> bool:
        """Whether the ledger holds work of the tenant."""
        return LedgerRow.objects.filter(lane__in=list(lanes_of(tenant))).exists()

    def drained(self, tenant: Tenant, expected: int, *, seconds: float) -> float:
        """Ring, and wait until all of a tenant's messages are recorded as sent; the seconds that took.

        Raises:
            NotMeasured: it took longer, or not exactly so many are sent.
        """
        lanes = list(lanes_of(tenant))
        left = LedgerRow.objects.filter(lane__in=lanes)

        def finished() -> bool:
            self.require_alive()
            return not left.exists()

        began = time.perf_counter()
        if not sweep():
            raise NotMeasured("the sweep found nothing due")
        ended = wait_until(finished, what=f"{expected} messages are sent", seconds=seconds)
        require_sent(tenant, expected)
        return ended - began

    def end_processes(self) -> None:
        """End all processes, workers before mail servers."""
        for process in self.processes:
            if process not in self._sinks:
                process.ask_to_end()
        for process in reversed(self.processes):
            process.end()
        self.processes.clear()
        self._sinks.clear()

    def drop_tenants(self) -> None:
        """Remove the tenants and all that is theirs."""
        connection.set_schema_to_public()
        for tenant in self.tenants:
            close(tenant, tenant.name, "benchmark")
            drop_closed_tenant(tenant, tenant.name)
        self.tenants.clear()


def sender(position: int) -> str:
    """The address of a tenant's outbox."""
    return f"bookings{position}@example.com"


def lanes_of(tenant: Tenant) -> Iterator[int]:
    """The keys of its lanes."""
    return Lane.objects.filter(tenant_id=tenant.pk).values_list("pk", flat=True).iterator()


def require_sent(tenant: Tenant, expected: int) -> None:
    """Raise NotMeasured unless so many of the tenant's messages are sent, and no other is left."""
    with tenant_context(tenant):
        sent = OutboxMessage.objects.filter(status=MessageStatus.SENT).count()
        total = OutboxMessage.objects.count()
    if not sent == total == expected:
        raise NotMeasured(f"{sent} of {total} messages are sent, and {expected} were to be")
    say(f"  {sent} messages sent")
