"""Where faults happen: servers, tenants and processes, all gone when they end.

Import it once Django is set up; `__main__` does that.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

from notifications import queues
from notifications.dispatch import bells
from notifications.dispatch.sweep import sweep
from notifications.models import Account, CommunicationSettings, NotificationTemplate, Outbox
from services.embedded import Servers
from tenants.connection import connection
from tenants.context import tenant_context
from tenants.models import Tenant
from tenants.onboarding import close, create_tenant, drop_closed_tenant
from tests.benchmarks.processes import accepts_connections, free_port
from tests.faults import delays, ledger
from tests.faults.accept import CLOCK, EVENT
from tests.faults.cast import Cast
from tests.faults.ledger import Expected, Order, Verdict
from tests.faults.processes import Child, Failed, Provider

_numbers = count(1)


@dataclass(slots=True, eq=False)
class Stage:
    """What every case finds."""

    servers: Servers
    folder: Path
    quick: bool
    seed: int

    @contextmanager
    def scene(self, name: str) -> Iterator["Scene"]:
        """A case's own set-up; its processes end with it, its tenants are removed."""
        folder = self.folder / name.replace(":", "-")
        folder.mkdir(exist_ok=True)
        with ExitStack() as stack:
            scene = Scene(self, name, folder)
            stack.callback(scene.drop_tenants)
            stack.callback(scene.end_processes)
            queues.redis().flushall()
            yield scene

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a statement answers, over a connection of its own: a restart of the server leaves none broken."""
        with psycopg.connect(self.servers.postgres.url, autocommit=True, connect_timeout=5) as own:
            cursor = own.execute(statement, values)
            return cursor.fetchall() if cursor.description else []


class Scene(Cast):
    """Tenants, providers and processes of one case, and what they wrote down."""

    def __init__(self, stage: Stage, name: str, folder: Path) -> None:
        super().__init__(name, folder, stage.seed, stage.sql)
        self.stage = stage
        self.late_after = 90.0
        """Seconds after which a message counts as late."""
        self.postponed: dict[str, str] = {}
        """Why, as the product says, messages were put off that no death and no telling explains; by id."""
        self._may_wait: list[tuple[str, Sequence[Order] | None]] = []
        self._keys = count(1)

    @property
    def quick(self) -> bool:
        """Whether less is to be done."""
        return self.stage.quick

    def may_be_put_off(self, orders: Sequence[Order] | None, *, because: str) -> None:
        """Let messages (all for None) wait for another time; of any other that is a problem."""
        self._may_wait.append((because, orders))

    # Providers and tenants.

    def smtp(self, *options: str) -> Provider:
        """Start a mail server."""
        return self._provider("smtp", *options)

    def http(self, *options: str) -> Provider:
        """Start a server that takes webhooks."""
        return self._provider("http", *options)

    def _provider(self, kind: str, *options: str) -> Provider:
        port = free_port()
        receipts = self.folder / f"receipts-{kind}-{len(self.providers)}.jsonl"
        process = self.start(kind, "tests.faults.providers", kind, str(port), str(receipts), *options)
        provider = Provider(kind, port, receipts, process)
        self.providers.append(provider)
        self.wait(lambda: accepts_connections(port), "the provider listens", 20, revive=False)
        return provider

    def tenant(self, *senders: Provider, settings: dict[str, Any] | None = None, failover: bool = False) -> Tenant:
        """A tenant with a sender, and an account of its own, at each of these providers."""
        number = next(_numbers)
        name = f"fault{number}x"
        tenant = create_tenant(name, domain=name, owner_email="owner@example.com")
        self.tenants.append(tenant)
        with tenant_context(tenant):
            for position, provider in enumerate(senders):
                self.sender(tenant, provider, priority=100 + position, settings=settings)
            NotificationTemplate.objects.create(
                event_key=EVENT, channel="email", name=EVENT, subject="{{ subject }}", body_text="{{ text }}"
            )
            if failover:
                CommunicationSettings.objects.update(failover=True)
        connection.close()
        return tenant

    def sender(
        self, tenant: Tenant, provider: Provider, *, priority: int, settings: dict[str, Any] | None = None
    ) -> None:
        """Add a sender to the tenant whose context this is."""
        if provider.kind == "smtp":
            kind, name, address = "email", "smtp", f"s{priority}@{tenant.name}.test"
            own: dict[str, Any] = {"host": "127.0.0.1", "port": provider.port, "use_tls": False}
        else:
            kind, name, address = "webhook", "https", f"s{priority}-{tenant.name}"
            own = {"timeout": 5}
        account = Account(kind=kind, provider=name, settings={name: {**own, **(settings or {})}})
        account.save()
        Outbox.objects.create(account=account, address=address, priority=priority)

    def two_tenants(self, provider: Provider, **options: Any) -> None:
        """What nearly every case has."""
        for _ in range(2):
            self.tenant(provider, **options)

    # Accepting.

    def order(
        self,
        number: int,
        provider: Provider,
        *,
        steps: str = "",
        expected: Expected = "taken",
        tenants: Sequence[Tenant] | None = None,
        name: str = "m",
        **options: Any,
    ) -> list[Order]:
        """So many messages, for the tenants in turn; `options` are those of `send`."""
        made = []
        among = tenants or self.tenants
        for position in range(number):
            tenant = among[position % len(among)]
            key = f"{name}{next(self._keys)}"
            made.append(
                Order(
                    key=f"{self.name}-{key}",
                    tenant=tenant.name,
                    schema=tenant.schema_name,
                    to=provider.address(f"{key}+{steps}" if steps else key),
                    subject=f"Message {key} of {tenant.name}",
                    text=f"Number {key}, for {tenant.name}: {self.random.getrandbits(64):016x}",
                    channel="email" if provider.kind == "smtp" else "webhook",
                    expected=expected,
                    scripted=bool(steps),
                    options=options,
                )
            )
        self.orders += made
        return made

    def order_again(self, orders: Sequence[Order], *, expected: Expected) -> list[Order]:
        """Another message to each one's recipient."""
        made = []
        for first in orders:
            name = f"again{next(self._keys)}"
            made.append(replace(first, key=f"{self.name}-{name}", text=f"Number {name}", expected=expected))
        self.orders += made
        return made

    def accept(
        self,
        orders: Sequence[Order],
        *options: str,
        fault: str = "",
        skew: float = 0.0,
        wait: bool = True,
        seconds: float = 240,
        **environment: str,
    ) -> Child:
        """Have a process ask for messages; with `wait`, until it has ended well."""
        number = next(self.names)
        asked, notes = self.folder / f"orders-{number}.jsonl", self.folder / f"notes-{number}.jsonl"
        bulk = sorted(orders, key=lambda order: order.schema) if "--bulk" in options else orders
        asked.write_text("".join(f"{order.as_line()}\n" for order in bulk), encoding="utf-8")
        self.notes.append(notes)
        environment |= {"FAULT": fault, CLOCK: str(time.time() - time.monotonic())}
        module = "tests.faults.accept"
        child = self.start("accept", module, str(asked), str(notes), *options, skew=skew, **environment)
        if wait and (code := child.gone(seconds)):
            raise Failed(f"accepting ended with code {code}: see {child.log}")
        return child

    def send(self, number: int, provider: Provider, *, wait: bool = True) -> Child:
        """Order and accept, in a call a tenant."""
        return self.accept(self.order(number, provider), "--bulk", wait=wait)

    def drop_tenants(self) -> None:
        """Remove the tenants and all that is theirs."""
        connection.close()
        connection.set_schema_to_public()
        for tenant in self.tenants:
            close(tenant, tenant.name, "faults")
            drop_closed_tenant(tenant, tenant.name)
        connection.close()

    # How it goes on.

    def let_time_pass(self) -> None:
        """Make all due that waits for its time, as the time would, and ring."""
        keys = self._keys_of_tenants
        self._note_postponed()
        self.sql("UPDATE dispatch_ledgerrow SET due_at = now() WHERE tenant_id = ANY(%s) AND due_at > now()", keys)
        self.sql("UPDATE dispatch_lane SET not_before = NULL WHERE tenant_id = ANY(%s)", keys)
        self.sql(
            "UPDATE dispatch_accounthold SET not_before = now() WHERE not_before > now() AND owner = ANY(%s)", keys
        )
        self.ring()

    def _note_postponed(self) -> None:
        """Note what waits, and neither for the time that it was planned for nor because of what happened to it."""
        planned = {i for entry in self.accepted().values() for i in entry.ids if entry.due > time.time()}
        found = self.waiting() - self.in_doubt - self.told() - planned
        if found:
            reasons = self.messages("deferral_reason")
            self.postponed.update({i: reasons.get(i) or "it is not said why" for i in found})

    def ring(self) -> None:
        """Ring for all that is due, as the scheduler's sweep does."""
        bells._doorbell.quiet_until = 0
        for key in queues.redis().scan_iter("bell:*"):
            queues.redis().delete(key)
        sweep()
        connection.close()

    def settle(self, *, seconds: float = 120, rounds: int = 12) -> None:
        """See everything to its end: what is due by itself, then what waits, as if its time had come."""
        self.wait_for_the_rest(seconds)
        self._note_resumption()
        for _ in range(rounds):
            if not self.left():
                return
            self.let_time_pass()
            self.wait_for_the_rest(seconds)

    def _note_resumption(self) -> None:
        """How long after the fault the last message came that had been accepted before it and was not in doubt.

        One that was put off has not come: it counts with the time that it waits for.
        """
        if self.fault_at is None or self.result.resumed_s is not None:
            return
        after = delays.resumed_after(self.fault_at, self._pending_at_fault(), self.receipts(), self.due_times())
        self.result.resumed_s = round(max(after, 0.0), 1)

    def _pending_at_fault(self) -> set[str]:
        """The ids of the messages that were accepted and due before the fault, and are not in doubt."""
        fault_at = self.fault_at or 0.0
        entries = self.accepted().values()
        accepted = {i for entry in entries if max(entry.at, entry.due) < fault_at for i in entry.ids}
        return accepted - self.in_doubt - self.told()

    def bells_back(self) -> float:
        """How long after the fault the last tenant with something to do got its first turn, in seconds."""
        pending = self._pending_at_fault()
        mine = [self.ids(order for order in self.orders if order.tenant == tenant.name) for tenant in self.tenants]
        return round(delays.turns_after(self.fault_at or 0.0, [ids & pending for ids in mine], self.receipts()), 1)

    def judge(self) -> None:
        """Join the ledgers, and fill in the report's row."""
        verdict = ledger.check(
            self.orders,
            self.accepted(),
            self.receipts(),
            self.statuses(),
            in_doubt=self.in_doubt,
            late_after=self.late_after,
        )
        self.fill_in(verdict)
        told = sum(order.scripted for order in self.orders)
        self.expect(
            verdict.duplicated <= self.result.in_flight_at_kill + told,
            f"{verdict.duplicated} second copies, and {self.result.in_flight_at_kill} were on their way at a death",
        )
        self._judge_postponed()

    def _judge_postponed(self) -> None:
        """Put off without an explanation is a problem; the report says what explains the others."""
        excuses = [(because, self.ids(self.orders if of is None else of)) for because, of in self._may_wait]
        notes, problem = delays.explain(self.postponed, excuses)
        for text in notes:
            self.note(text)
        self.expect(not problem, problem)

    def fill_in(self, verdict: Verdict) -> None:
        """Put a verdict into the report's row."""
        result = self.result
        result.accepted, result.handed_over = verdict.accepted, verdict.handed_over
        result.lost, result.duplicated, result.late = verdict.lost, verdict.duplicated, verdict.late
        result.p99_s, result.slowest_s = round(verdict.p99, 2), round(verdict.slowest, 2)
        result.problems += verdict.problems
        restarts = sum(kept.restarts for kept in self.kept)
        if restarts:
            result.notes.append(f"{restarts} restarts")
