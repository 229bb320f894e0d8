"""Where faults happen: servers, tenants and processes, all gone when they end.

Import it once Django is set up; `__main__` does that.
"""

import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
from redis import RedisError
from rq import Worker

from notifications import queues
from notifications.dispatch import bells
from notifications.dispatch.sweep import sweep
from notifications.models import Account, NotificationTemplate, Outbox
from services.embedded import Servers
from tenants.connection import connection
from tenants.context import tenant_context
from tenants.models import Tenant
from tenants.onboarding import close, create_tenant, drop_closed_tenant
from tests.benchmarks.processes import Process, accepts_connections, free_port, say
from tests.faults import ledger
from tests.faults.accept import EVENT
from tests.faults.ledger import Accepted, Expected, Order, Receipt, Verdict
from tests.faults.results import Result

ROOT = Path(__file__).parents[2]
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
"""Debian's libfaketime, if it is installed: a process with another clock."""
SETTLE_SECONDS = 0.3
"""What PostgreSQL gets to finish what a killed process had begun, before anybody looks."""
NEAR_SECONDS = 2.0

_numbers = count(1)


class Failed(Exception):
    """Something that had to happen did not."""


class LeftOut(Exception):
    """The case cannot be run here; the message says why."""


class Child(Process):
    """A process of a case."""

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        self._signal(number, whole_group=False)

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._child.poll()

    def gone(self, seconds: float) -> int:
        """Its exit code, once it has ended by itself."""
        return self.wait(seconds)


@dataclass(slots=True)
class Kept:
    """A process that is started again whenever it ends, as Kubernetes does."""

    start: Callable[[], Child]
    child: Child
    again_at: float = 0.0
    restarts: int = 0


@dataclass(slots=True)
class Provider:
    """A fake provider."""

    kind: str
    port: int
    receipts: Path
    process: Child

    def address(self, name: str) -> str:
        """Whom a message by that name goes to."""
        return f"{name}@example.com" if self.kind == "smtp" else f"http://127.0.0.1:{self.port}/{name}"


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


class Scene:
    """Tenants, providers and processes of one case, and what they wrote down."""

    def __init__(self, stage: Stage, name: str, folder: Path) -> None:
        self.stage, self.name, self.folder = stage, name, folder
        self.random = random.Random(f"{stage.seed} {name}")
        self.result = Result(name, seed=stage.seed)
        self.lease: int | None = None
        """Seconds; the product's own when None."""
        self.late_after = 90.0
        self.tenants: list[Tenant] = []
        self.providers: list[Provider] = []
        self.orders: list[Order] = []
        self.in_doubt: set[str] = set()
        """Ids of messages that were on their way when something was killed."""
        self.postponed: set[str] = set()
        """Ids of messages that were put off though nothing was on their way or told to refuse them."""
        self.fault_at: float | None = None
        """When the last fault ended (Unix): from then on the rest is to go out."""
        self.kept: list[Kept] = []
        self._notes: list[Path] = []
        self._dead: set[int] = set()
        """Processes of which it is noted what they had on their way."""
        self._processes: list[Process] = []
        self._names = count(1)
        self._keys = count(1)

    @property
    def quick(self) -> bool:
        """Whether less is to be done."""
        return self.stage.quick

    def note(self, text: str) -> None:
        """Add to what the report says of the case."""
        say(f"  {text}")
        self.result.notes.append(text)

    def expect(self, holds: object, otherwise: str) -> None:
        """Count it against the case when something does not hold."""
        if not holds:
            say(f"  PROBLEM {otherwise}")
            self.result.problems.append(otherwise)

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
        process = self._start(kind, "-m", "tests.faults.providers", kind, str(port), str(receipts), *options)
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
                from notifications.models import CommunicationSettings

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

    def accept(
        self, orders: Sequence[Order], *options: str, fault: str = "", wait: bool = True, seconds: float = 240
    ) -> Child:
        """Have a process ask for messages; with `wait`, until it has ended well."""
        number = next(self._names)
        asked, notes = self.folder / f"orders-{number}.jsonl", self.folder / f"notes-{number}.jsonl"
        bulk = sorted(orders, key=lambda order: order.schema) if "--bulk" in options else orders
        asked.write_text("".join(f"{order.as_line()}\n" for order in bulk), encoding="utf-8")
        self._notes.append(notes)
        child = self._start("accept", "-m", "tests.faults.accept", str(asked), str(notes), *options, FAULT=fault)
        if wait and (code := child.gone(seconds)):
            raise Failed(f"accepting ended with code {code}: see {child.log}")
        return child

    def send(self, number: int, provider: Provider, *, wait: bool = True) -> Child:
        """Order and accept, in a call a tenant."""
        return self.accept(self.order(number, provider), "--bulk", wait=wait)

    # Processes.

    def _start(self, name: str, *arguments: str, **environment: str | None) -> Child:
        if self.lease is not None:
            environment["NOTIFY_LOCK_TIMEOUT_SECONDS"] = str(self.lease)
        child = Child([sys.executable, *arguments], self.folder / f"{name}.log", PYTHONPATH=str(ROOT), **environment)
        self._processes.append(child)
        return child

    def worker(
        self, queue: str = "default", *, fault: str = "", skew: str = "", keep: bool = True, fault_again: bool = False
    ) -> Kept:
        """Start a worker; one that dies of its fault comes back without it, unless `fault_again`."""

        def start(fault: str, skew: str) -> Child:
            module = "tests.faults.worker" if fault else "services.worker"
            return self._start(f"worker-{queue}", "-m", module, queue, FAULT=fault or None, **_skewed(skew))

        later = partial(start, fault if fault_again else "", skew)
        kept = Kept(later, start(fault, skew))
        if keep:
            self.kept.append(kept)
        return kept

    def scheduler(self, *, skew: str = "") -> Kept:
        """Start a scheduler."""
        start = partial(self._start, "scheduler", "-m", "services.scheduler", **_skewed(skew))
        kept = Kept(start, start())
        self.kept.append(kept)
        return kept

    def listening(self, number: int = 1, queue: str = "default", seconds: float = 60) -> None:
        """Wait until so many workers of a queue listen."""
        self.wait(lambda: Worker.count(queue=queues.queue_named(queue)) >= number, f"{number} workers listen", seconds)

    def revive(self) -> None:
        """Start again what has ended, a second after it did."""
        for kept in self.kept:
            if kept.child.code is None:
                continue
            if not kept.again_at:
                if kept.child.code:
                    with suppress(psycopg.OperationalError):
                        self._note_marks(kept.child)
                kept.again_at = time.monotonic() + 1
            elif time.monotonic() >= kept.again_at:
                kept.child, kept.again_at, kept.restarts = kept.start(), 0.0, kept.restarts + 1

    def wait(self, reached: Callable[[], object], what: str, seconds: float, *, revive: bool = True) -> None:
        """Look until it is so.

        Raises:
            Failed: it was not within so many seconds.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                if reached():
                    return
            except (psycopg.OperationalError, RedisError, OSError):
                # A server is down on purpose.
                pass
            if time.monotonic() > deadline:
                raise Failed(f"{what}: not within {seconds:g} s")
            if revive:
                self.revive()
            time.sleep(0.05)

    def rest(self, seconds: float) -> None:
        """Let time pass, while what ends is started again."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.revive()
            time.sleep(0.05)

    def end_processes(self) -> None:
        """End all of them."""
        for process in reversed(self._processes):
            if isinstance(process, Child):
                process.signal(signal.SIGCONT)
        for process in reversed(self._processes):
            # A worker may have a message in a provider that never answers.
            process.end(seconds=10)
        self._processes.clear()

    def drop_tenants(self) -> None:
        """Remove the tenants and all that is theirs."""
        connection.close()
        connection.set_schema_to_public()
        for tenant in self.tenants:
            close(tenant, tenant.name, "faults")
            drop_closed_tenant(tenant, tenant.name)
        connection.close()

    # The nemesis.

    def kill(self, kept: Kept, number: signal.Signals = signal.SIGKILL, *, seconds: float = 60) -> None:
        """End a process, and note what was on its way then."""
        victim = kept.child
        victim.signal(number)
        victim.gone(seconds)
        self.died(victim)

    def died(self, victim: Process) -> None:
        """Note what was on its way in a process that is gone."""
        self.fault_at = time.time()
        time.sleep(SETTLE_SECONDS)
        self._note_marks(victim)

    def _note_marks(self, victim: Process) -> None:
        if victim.pid in self._dead:
            return
        marked = self.marked_by(victim)
        self._dead.add(victim.pid)
        self.in_doubt |= marked
        self.result.in_flight_at_kill += len(marked)
        say(f"  process {victim.pid} is gone with {len(marked)} messages on their way")

    def marked_by(self, process: Process) -> set[str]:
        """The messages that a process has on their way."""
        rows = self.stage.sql(
            "SELECT item FROM dispatch_ledgerrow WHERE handed_over_at IS NOT NULL AND token IS NOT NULL"
            " AND worker LIKE %s",
            f"%:{process.pid}",
        )
        return {str(row[0]) for row in rows}

    def over(self) -> None:
        """The fault has ended: from now on the rest is to go out."""
        self.fault_at = time.time()

    # What was written down.

    def receipts(self) -> list[Receipt]:
        """What all providers were given so far."""
        return ledger.read_receipts(provider.receipts for provider in self.providers)

    def attempts(self) -> int:
        """How many receipts there are."""
        return sum(
            provider.receipts.read_bytes().count(b"\n") for provider in self.providers if provider.receipts.exists()
        )

    def accepted(self) -> dict[str, Accepted]:
        """What was noted of each order."""
        return ledger.read_accepted(self._notes)

    def wait_for_attempts(self, number: int, seconds: float = 90) -> None:
        """Wait until the providers were given so many messages."""
        self.wait(lambda: self.attempts() >= number, f"{number} messages are handed over", seconds)

    def statuses(self) -> dict[str, str]:
        """What the product says of each message, by id."""
        found: dict[str, str] = {}
        for tenant in self.tenants:
            rows = self.stage.sql(f'SELECT id::text, status FROM "{tenant.schema_name}".notifications')
            found.update(dict(rows))
        return found

    def messages(self, column: str) -> dict[str, Any]:
        """A column of the message table, by id."""
        found: dict[str, Any] = {}
        for tenant in self.tenants:
            rows = self.stage.sql(f'SELECT id::text, {column} FROM "{tenant.schema_name}".notifications')
            found.update(dict(rows))
        return found

    def left(self) -> int:
        """How many of the tenants' messages are on the ledger."""
        return int(self.stage.sql(f"SELECT count(*) {self._ours}", self._keys_of_tenants)[0][0])

    def left_now(self) -> int:
        """How many of them are due, or claimed."""
        return int(self.stage.sql(f"SELECT count(*) {self._ours} AND {_NOW}", self._keys_of_tenants)[0][0])

    @property
    def _keys_of_tenants(self) -> list[int]:
        return [tenant.pk for tenant in self.tenants]

    _ours = "FROM dispatch_ledgerrow WHERE tenant_id = ANY(%s)"

    def wait_for_the_rest(self, seconds: float = 120) -> None:
        """Wait until nothing is due or claimed any more; what waits for its time is left."""
        try:
            self.wait(lambda: not self.left_now(), "all that is due has gone out", seconds)
        except Failed as error:
            self.expect(False, f"{error}; {self.left_now()} are left")

    def let_time_pass(self) -> None:
        """Make all due that waits for its time, as the time would, and ring."""
        keys = self._keys_of_tenants
        waiting = {row[0] for row in self.stage.sql(f"SELECT item::text {self._ours} AND {_LATER}", keys)}
        scripted = {order.key for order in self.orders if order.scripted}
        told = {i for key, entry in self.accepted().items() if key in scripted for i in entry.ids}
        self.postponed |= waiting - self.in_doubt - told
        self.stage.sql(
            "UPDATE dispatch_ledgerrow SET due_at = now() WHERE tenant_id = ANY(%s) AND due_at > now()", keys
        )
        self.stage.sql("UPDATE dispatch_lane SET not_before = NULL WHERE tenant_id = ANY(%s)", keys)
        self.stage.sql(
            "UPDATE dispatch_accounthold SET not_before = now() WHERE not_before > now() AND owner = ANY(%s)", keys
        )
        self.ring()

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
        """How long after the fault the last message came that had been accepted before it and was not in doubt."""
        if self.fault_at is None or self.result.resumed_s is not None:
            return
        scripted = {order.to for order in self.orders if order.scripted}
        before = {
            message_id
            for entry in self.accepted().values()
            for message_id in entry.ids
            if max(entry.at, entry.due) < self.fault_at
        }
        came = [
            receipt.at - self.fault_at
            for receipt in self.receipts()
            if receipt.taken and receipt.id in before - self.in_doubt and receipt.to not in scripted
        ]
        self.result.resumed_s = round(max([*came, 0.0]), 1)

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
        if self.postponed:
            result.notes.append(f"{len(self.postponed)} put off")


_HELD = "EXISTS (SELECT FROM dispatch_lane AS lane WHERE lane.id = lane_id AND lane.not_before > now())"
_NOW = f"(due_at <= now() + interval '{NEAR_SECONDS} seconds' AND NOT {_HELD} OR lease_until IS NOT NULL)"
_LATER = f"(due_at > now() OR {_HELD})"


def _skewed(skew: str) -> dict[str, str]:
    """The environment of a process whose clock is off by so much, such as `+300s`."""
    if not skew:
        return {}
    if FAKETIME is None:
        raise LeftOut("libfaketime is not installed (Debian: libfaketime)")
    return {"LD_PRELOAD": str(FAKETIME), "FAKETIME": skew, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
