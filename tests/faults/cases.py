"""The cases: what is broken, and what must hold then. The numbers are those of the list of faults in `CASES`."""

import json
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import psycopg

from notifications import queues
from notifications.jobs import PERIODIC
from notifications.models import TemplateVersion
from tests.benchmarks.processes import say
from tests.faults.crashes import DIED
from tests.faults.stage import Child, Scene

SHORT_LEASE = 4
"""Seconds; where it is not the lease that is tried."""
STEADY = "--delay-ms=20"
SLOW = "--delay-ms=150"
"""A provider that always has some messages on their way."""


def ready(scene: Scene, *, workers: int = 1) -> None:
    """A scheduler and workers that listen."""
    scene.scheduler()
    for _ in range(workers):
        scene.worker()
    scene.listening(workers)


def done(scene: Scene, **options: float) -> None:
    """See everything to its end, and join the ledgers."""
    scene.settle(**options)
    scene.judge()


# Workers and schedulers that end.


def kill_worker(scene: Scene) -> None:
    """1. SIGKILL a worker in the middle of its work; another takes over."""
    mail = scene.smtp(SLOW)
    scene.two_tenants(mail)
    victim = scene.worker()
    scene.listening()
    scene.scheduler()
    scene.send(200 if scene.quick else 400, mail, wait=False)
    scene.wait_for_attempts(scene.random.randint(20, 80))
    scene.kill(victim)
    done(scene, seconds=150)
    scene.expect(scene.result.in_flight_at_kill, "nothing was on its way when the worker was killed: no test")
    scene.expect((scene.result.resumed_s or 0) <= 90, f"resumed after {scene.result.resumed_s} s, not within 90")


def kill_before_job(scene: Scene) -> None:
    """2. Kill workers of two queues between taking a bell and answering it."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    victims = [scene.worker(queue, fault="before_job:1") for queue in ("default", "high")]
    for queue in ("default", "high"):
        scene.listening(queue=queue)
    scene.scheduler()
    orders = scene.order(20, mail) + scene.order(20, mail, priority="high")
    scene.accept(orders)
    for victim in victims:
        scene.expect(victim.child.gone(30) == DIED, "a worker did not die where it was to")
        scene.died(victim.child)
    done(scene)
    scene.expect((scene.result.resumed_s or 0) <= 50, f"rung again after {scene.result.resumed_s} s, not within 50")


def rollout(scene: Scene) -> None:
    """3. SIGTERM all workers and start new ones, ten times under load: nothing lost, nothing twice."""
    mail = scene.smtp(STEADY)
    scene.two_tenants(mail)
    ready(scene, workers=2)
    times = 3 if scene.quick else 10
    rate, pause = 40, 9
    load = scene.accept(scene.order(rate * pause * times, mail), f"--rate={rate}", wait=False)
    for number in range(times):
        scene.rest(pause / 2)
        old = [kept.child for kept in scene.kept if "worker" in kept.child.log.name]
        say(f"  rollout {number + 1} of {times}")
        for child in old:
            child.signal(signal.SIGTERM)
        for child in old:
            scene.expect(child.gone(60) == 0, f"a worker that was told to end ended with code {child.code}")
        scene.wait(lambda: all(kept.child.code is None for kept in scene.kept), "new workers are started", 30)
        scene.listening(2)
    scene.wait(lambda: load.code is not None, "the load ends", 60)
    scene.late_after = 30
    done(scene)
    scene.expect(scene.result.duplicated == 0, "a rollout made second copies")
    scene.expect(scene.result.p99_s < 30, f"p99 is {scene.result.p99_s} s, not below 30")


def impatient_stop(scene: Scene) -> None:
    """4. SIGTERM twice, and SIGKILL because the grace was too short."""
    mail = scene.smtp("--delay-ms=4000")
    scene.two_tenants(mail)
    victim = scene.worker()
    scene.scheduler()
    scene.listening()
    scene.send(40 if scene.quick else 80, mail, wait=False)
    scene.wait_for_attempts(scene.random.randint(4, 16))
    victim.child.signal(signal.SIGTERM)
    time.sleep(1.3)
    victim.child.signal(signal.SIGTERM)
    time.sleep(0.7)
    scene.kill(victim)
    done(scene, seconds=200)


def poison(scene: Scene) -> None:
    """5. A message that kills every worker that prepares it: failed as poison, its neighbours sent."""
    scene.lease = SHORT_LEASE
    mail = scene.smtp()
    scene.two_tenants(mail)
    victim = scene.worker(fault="poison:1", fault_again=True)
    scene.scheduler()
    orders = scene.order(20, mail) + scene.order(1, mail, name="poison", expected="failed") + scene.order(20, mail)
    scene.listening()
    scene.accept(orders, "--bulk")
    key = orders[20].key
    scene.wait(lambda: _status(scene, key) == "failed", "the poison is found out", 240)
    done(scene)
    message = next(iter(scene.accepted()[key].ids))
    reason = scene.messages("error_message")[message]
    scene.note(f"{victim.restarts} deaths; {reason}")
    scene.expect("poison" in reason, f"it failed for another reason: {reason}")
    scene.expect(victim.restarts <= 5, f"it took {victim.restarts} deaths to find the poison")


def _status(scene: Scene, key: str) -> str:
    ids = scene.accepted()[key].ids
    return scene.statuses().get(next(iter(ids), ""), "")


def stopped_worker(scene: Scene) -> None:
    """Extra. SIGSTOP a worker for longer than its lease; it comes back and must not undo what others did."""
    scene.lease = SHORT_LEASE
    mail = scene.smtp(SLOW)
    scene.two_tenants(mail)
    victim = scene.worker()
    scene.scheduler()
    scene.listening()
    scene.send(200, mail, wait=False)
    scene.wait_for_attempts(scene.random.randint(20, 80))
    victim.child.signal(signal.SIGSTOP)
    scene.died(victim.child)
    scene.worker()
    scene.wait_for_the_rest()
    scene.let_time_pass()
    scene.wait_for_the_rest()
    victim.child.signal(signal.SIGCONT)
    scene.rest(3)
    done(scene)


def kill_schedulers(scene: Scene) -> None:
    """Extra. SIGKILL the scheduler again and again, with messages planned for later."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    scene.worker()
    scheduler = scene.scheduler()
    scene.listening()
    scene.accept([order for at in range(2, 14) for order in scene.order(5, mail, in_seconds=at + 4)])
    for _ in range(5):
        scene.rest(2)
        scheduler.child.signal(signal.SIGKILL)
        scheduler.child.gone(10)
    scene.rest(6)
    scene.late_after = 20
    done(scene)
    scene.expect(_earliest(scene) > -1, f"a message came {-_earliest(scene):.1f} s before its time")


def _earliest(scene: Scene) -> float:
    """How long after its time the earliest planned message came, in seconds."""
    due = {i: entry.due for entry in scene.accepted().values() for i in entry.ids if entry.due}
    return min((receipt.at - due[receipt.id] for receipt in scene.receipts() if receipt.id in due), default=0.0)


# Valkey.


def flushall(scene: Scene) -> None:
    """6. FLUSHALL with ten thousand pending, before any worker runs; bells and schedule come back."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    scene.scheduler()
    scene.wait(_scheduled, "the periodic jobs are planned", 30)
    scene.send(500 if scene.quick else 10_000, mail)
    queues.redis().flushall()
    scene.over()
    scene.worker()
    done(scene)
    scene.wait(_scheduled, "the periodic jobs are planned again", 30)
    scene.expect((scene.result.resumed_s or 0) <= (30 if scene.quick else 45), f"{scene.result.resumed_s} s")


def _scheduled() -> bool:
    schedule = queues.schedule()
    return all(job.name in schedule for job in PERIODIC)


def valkey_down(scene: Scene) -> None:
    """7. Valkey is away for half a minute: accepting goes on, the backlog drains afterwards, nothing loops."""
    seconds = 12 if scene.quick else 30
    mail = scene.smtp()
    scene.two_tenants(mail)
    ready(scene)
    scene.send(20, mail)
    scene.wait_for_the_rest()
    scene.stage.servers.valkey.stop()
    try:
        scene.accept(scene.order(int(8 * seconds), mail), "--rate=10", seconds=seconds + 30)
        refused = [entry.refused for entry in scene.accepted().values() if entry.refused]
        scene.expect(not refused, f"{len(refused)} calls failed while Valkey was away: {refused[:1]}")
        scene.rest(0.2 * seconds)
    finally:
        scene.stage.servers.valkey.start()
    scene.over()
    scene.late_after = seconds + 90
    done(scene)
    scene.expect(sum(kept.restarts for kept in scene.kept) <= seconds / 4, "processes end again and again")
    scene.expect((scene.result.resumed_s or 0) <= 90, f"resumed after {scene.result.resumed_s} s, not within 90")


def valkey_forgets(scene: Scene) -> None:
    """8. Valkey is killed and comes back without what it held, as after a failover, only worse."""
    mail = scene.smtp(STEADY)
    scene.two_tenants(mail)
    ready(scene)
    load = scene.accept(scene.order(200 if scene.quick else 600, mail), "--rate=40", wait=False)
    scene.rest(3)
    scene.stage.servers.valkey.stop()
    scene.stage.servers.valkey.start()
    scene.over()
    scene.wait(lambda: load.code is not None, "the load ends", 60)
    done(scene)
    scene.expect(scene.result.duplicated == 0, "losing Valkey's writes made second copies")


def valkey_full(scene: Scene) -> None:
    """9. Valkey's memory is used up, policy noeviction: accepting goes on, the sweep drains when there is room."""
    seconds = 8 if scene.quick else 25
    mail = scene.smtp()
    scene.two_tenants(mail)
    ready(scene)
    queues.redis().config_set("maxmemory", "1")
    try:
        scene.accept(scene.order(10 * seconds, mail), "--rate=10")
        refused = [entry.refused for entry in scene.accepted().values() if entry.refused]
        scene.expect(not refused, f"{len(refused)} calls failed while Valkey was full: {refused[:1]}")
        scene.rest(2)
    finally:
        queues.redis().config_set("maxmemory", "0")
    scene.over()
    done(scene)
    scene.expect((scene.result.resumed_s or 0) <= 90, f"resumed after {scene.result.resumed_s} s, not within 90")


def evicted_jobs(scene: Scene) -> None:
    """10. The bells' jobs vanish while their ids stay queued: rung again."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    scene.scheduler()
    scene.send(100, mail)
    redis = queues.redis()
    gone = sum(redis.delete(key) for key in redis.scan_iter("rq:job:*"))
    scene.expect(gone, "there was no job to lose")
    scene.over()
    scene.worker()
    done(scene)
    scene.expect((scene.result.resumed_s or 0) <= 60, f"rung again after {scene.result.resumed_s} s, not within 60")


def client_kill(scene: Scene) -> None:
    """Extra. CLIENT KILL on every connection to Valkey, under load."""
    mail = scene.smtp(STEADY)
    scene.two_tenants(mail)
    ready(scene)
    load = scene.accept(scene.order(300, mail), "--rate=50", wait=False)
    for _ in range(3):
        scene.rest(1.5)
        queues.redis().client_kill_filter(_type="normal", skipme=True)
    scene.over()
    scene.wait(lambda: load.code is not None, "the load ends", 60)
    done(scene)
    scene.expect(scene.result.duplicated == 0, "losing connections to Valkey made second copies")


# PostgreSQL.


def postgres_restart(scene: Scene) -> None:
    """11. PostgreSQL stops as in a power cut under load, and comes back: answers from providers are not forgotten."""
    mail = scene.smtp(STEADY)
    scene.two_tenants(mail)
    ready(scene, workers=2)
    load = scene.accept(scene.order(240 if scene.quick else 600, mail), "--rate=40", wait=False)
    for _ in range(1 if scene.quick else 3):
        scene.rest(2.5)
        scene.stage.servers.postgres.stop("immediate")
        time.sleep(2)
        scene.stage.servers.postgres.start()
        scene.over()
    scene.wait(lambda: load.code is not None, "the load ends", 120)
    done(scene)
    gap = sum(bool(entry.refused) for entry in scene.accepted().values())
    scene.note(f"{gap} calls were refused at first")
    scene.expect(scene.result.duplicated == 0, "workers that lived forgot what the provider had answered")


def postgres_dies_after_250(scene: Scene) -> None:
    """12. PostgreSQL dies between a provider's 250 and the record of it; the worker lives and keeps the answer."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    flag = scene.folder / "after-provider"
    scene.scheduler()
    worker = scene.worker(fault=f"after_provider:5:{flag}")
    scene.listening()
    scene.send(40, mail)
    scene.wait(flag.exists, "the provider has answered", 60)
    scene.stage.servers.postgres.stop("immediate")
    flag.unlink()
    time.sleep(3)
    scene.stage.servers.postgres.start()
    scene.over()
    done(scene)
    scene.expect(worker.restarts == 0, "the worker did not live through it")
    scene.expect(scene.result.duplicated == 0, "the worker forgot what the provider had answered")


def terminated_backends(scene: Scene) -> None:
    """Extra. pg_terminate_backend on every connection, again and again under load."""
    mail = scene.smtp(STEADY)
    scene.two_tenants(mail)
    ready(scene, workers=2)
    load = scene.accept(scene.order(240 if scene.quick else 500, mail), "--rate=40", wait=False)
    for _ in range(3 if scene.quick else 8):
        scene.rest(1)
        scene.stage.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
    scene.over()
    scene.wait(lambda: load.code is not None, "the load ends", 60)
    done(scene)
    scene.expect(scene.result.duplicated == 0, "lost connections to PostgreSQL made second copies")


def deadlocks(scene: Scene) -> None:
    """13. Somebody locks ledger rows criss-cross while three workers claim: deadlocks cost time only."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    ready(scene, workers=3)
    url = scene.stage.servers.postgres.url
    scene.stage.sql("ALTER DATABASE postgres SET deadlock_timeout = '20ms'")
    before = _deadlocks(scene)
    ended = threading.Event()

    def disturb() -> None:
        with psycopg.connect(url, autocommit=True) as own:
            while not ended.is_set():
                with suppress(psycopg.Error), own.transaction():
                    rows = own.execute("SELECT item FROM dispatch_ledgerrow ORDER BY random() LIMIT 12").fetchall()
                    for (item,) in rows:
                        own.execute("UPDATE dispatch_ledgerrow SET deaths = deaths WHERE item = %s", [item])
                    time.sleep(0.02)
                time.sleep(0.005)

    disturbers = [threading.Thread(target=disturb) for _ in range(3)]
    for thread in disturbers:
        thread.start()
    try:
        scene.send(600 if scene.quick else 3000, mail)
        scene.wait_for_attempts(300 if scene.quick else 1500)
    finally:
        ended.set()
        for thread in disturbers:
            thread.join(30)
        scene.stage.sql("ALTER DATABASE postgres RESET deadlock_timeout")
    scene.over()
    done(scene)
    scene.note(f"{_deadlocks(scene) - before} deadlocks")
    scene.expect(scene.result.duplicated == 0, "deadlocks made second copies")


def _deadlocks(scene: Scene) -> int:
    time.sleep(0.5)
    return int(scene.stage.sql("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")[0][0])


# Accepting.


def same_key_race(scene: Scene) -> None:
    """14. Thirty-two calls at once under one key: one message."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    ready(scene)
    scene.accept(scene.order(3 if scene.quick else 10, mail), "--race=32")
    done(scene)
    failed = [entry.refused for entry in scene.accepted().values() if entry.refused]
    scene.expect(not failed, f"calls of the race failed: {failed[:2]}")


def same_key_other_call(scene: Scene) -> None:
    """15. The same key for another text is refused; for another tenant it is another message."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    ready(scene)
    first = scene.order(1, mail, tenants=scene.tenants[:1], idempotency_key="the-same")
    scene.accept(first)
    other = scene.order(1, mail, tenants=scene.tenants[:1], idempotency_key="the-same")
    scene.orders.remove(other[0])
    scene.accept(other)
    refused = scene.accepted()[other[0].key]
    scene.expect(
        not refused.ids and "IdempotencyConflict" in refused.refused, f"another text: {refused.refused or 'accepted'}"
    )
    scene.accept(scene.order(1, mail, tenants=scene.tenants[1:], idempotency_key="the-same"))
    done(scene)


def crash_in_accept(scene: Scene) -> None:
    """16. The caller dies before its transaction commits; asked for again, there is one message."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    ready(scene)
    orders = scene.order(10, mail)
    died = scene.accept(orders, fault="before_accept_commit:6", wait=False)
    scene.expect(died.gone(60) == DIED, "the caller did not die where it was to")
    stored = len(scene.statuses())
    scene.expect(stored == 5, f"{stored} messages are stored, and 5 were committed")
    scene.accept(orders)
    done(scene)


def crash_before_ring(scene: Scene) -> None:
    """17. The caller dies between commit and bell: the sweep finds the message within thirty seconds."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    ready(scene)
    orders = scene.order(1, mail)
    died = scene.accept(orders, fault="after_accept_commit:1", wait=False)
    scene.expect(died.gone(60) == DIED, "the caller did not die where it was to")
    scene.over()
    scene.expect(len(scene.statuses()) == 1, "what was committed is not there")
    scene.wait_for_attempts(1, 60)
    waited = time.time() - (scene.fault_at or 0)
    scene.accept(orders)
    done(scene)
    scene.result.resumed_s = round(waited, 1)
    scene.expect(waited <= 30, f"swept after {waited:.1f} s, not within 30")


# Providers.


def temporary_refusals(scene: Scene) -> None:
    """18. SMTP 421, 450, 451, 454: tried again later; 421 and 454 hold the account."""
    calm, busy, full = scene.smtp(), scene.smtp(), scene.smtp()
    scene.tenant(calm)
    scene.tenant(busy)
    scene.tenant(full)
    ready(scene)
    one, two, three = ([tenant] for tenant in scene.tenants)
    refused = [
        *scene.order(5, calm, steps="450.451", tenants=one),
        *scene.order(5, calm, steps="r450.r451.450", tenants=one),
        *scene.order(1, busy, steps="421", tenants=two),
        *scene.order(1, full, steps="r454", tenants=three),
    ]
    scene.accept(refused)
    scene.wait_for_the_rest()
    held = {row[0] for row in scene.stage.sql("SELECT owner FROM dispatch_accounthold WHERE not_before > now()")}
    scene.expect(held == {two[0].pk, three[0].pk}, "421 and 454 hold the account, and nothing else does")
    backoff = scene.stage.sql("SELECT min(due_at - now())::text, max(due_at - now())::text FROM dispatch_ledgerrow")
    scene.note(f"waits of {backoff[0][0]} to {backoff[0][1]} after the first attempt")
    before = scene.attempts()
    scene.accept(scene.order(5, busy, tenants=two))
    scene.rest(2)
    scene.expect(scene.attempts() == before, "an account on hold was used")
    done(scene)


def final_refusals(scene: Scene) -> None:
    """19. SMTP 550, 552, 554: failed at once and never tried again; 535 holds the account, and fails nothing."""
    mail, locked = scene.smtp(), scene.smtp("--mode=no-auth")
    scene.tenant(mail)
    scene.tenant(locked, settings={"username": "somebody", "password": "wrong-one"})
    ready(scene)
    one, two = ([tenant] for tenant in scene.tenants)
    steps = ("r550_", "550_", "552_", "554_", "r554_")
    orders = [order for step in steps for order in scene.order(3, mail, steps=step, tenants=one, expected="failed")]
    scene.accept(orders + scene.order(10, mail, tenants=one) + scene.order(5, locked, tenants=two, expected="either"))
    scene.wait_for_the_rest()
    tried = [receipt.to for receipt in scene.receipts() if "+" in receipt.to]
    scene.expect(len(tried) == len(set(tried)) == len(orders), f"{len(tried)} attempts for {len(orders)} refused")
    statuses = scene.statuses()
    failed = sum(status == "failed" for status in statuses.values())
    scene.expect(failed == len(orders), f"{failed} failed, and {len(orders)} were refused for good")
    held = scene.stage.sql("SELECT reason FROM dispatch_accounthold WHERE not_before > now() + interval '5 min'")
    scene.expect(len(held) == 1, "535 did not hold the account")
    with psycopg.connect(scene.stage.servers.postgres.url, autocommit=True) as own:
        own.execute("UPDATE dispatch_accounthold SET not_before = now()")
    _mend(scene, two[0].schema_name, {"host": "127.0.0.1", "port": mail.port, "use_tls": False})
    done(scene)


def _mend(scene: Scene, schema_name: str, smtp: dict[str, object]) -> None:
    """Give a tenant's account other settings, as its owner would."""
    from notifications.models import Account
    from tenants.connection import connection
    from tenants.context import tenant_context

    with tenant_context(schema_name):
        account = Account.objects.get()
        account.settings = {"smtp": smtp}
        account.sealed = ""
        account.save()
    connection.close()


def unreachable(scene: Scene) -> None:
    """21. Nobody listens, a server that never greets, no STARTTLS, a bad certificate: tried again, never in clear."""
    mail = scene.smtp()
    cases = {
        "nobody": (mail, {"port": 1, "use_tls": False}),
        "mute": (scene.smtp("--mode=mute"), {"use_tls": False, "timeout": 1}),
        "no STARTTLS": (mail, {"use_tls": True}),
        "bad certificate": (scene.smtp("--mode=self-signed"), {"use_tls": True}),
        "wrong protocol": (mail, {"use_tls": False, "use_ssl": True, "timeout": 1}),
        "421 for a greeting": (scene.smtp("--mode=busy"), {"use_tls": False}),
    }
    for provider, settings in cases.values():
        scene.tenant(provider, settings=settings)
    ready(scene)
    scene.accept(scene.order(4 * len(cases), mail))
    scene.wait_for_the_rest()
    scene.expect(scene.attempts() == 0, "something was handed over, and nothing could be in safety")
    wrong = [status for status in scene.statuses().values() if status != "scheduled"]
    scene.expect(not wrong, f"{len(wrong)} are not put off but {set(wrong)}")
    for tenant in scene.tenants:
        _mend(scene, tenant.schema_name, {"host": "127.0.0.1", "port": mail.port, "use_tls": False})
    done(scene)


def dropped_after_data(scene: Scene) -> None:
    """22. The connection drops, or goes silent, after DATA and before 250: uncertain, sent again as the same mail."""
    mail = scene.smtp()
    scene.two_tenants(mail, settings={"data_timeout": 2})
    ready(scene)
    taken = scene.order(5, mail, steps="taken") + scene.order(2, mail, steps="stall")
    forgotten = scene.order(5, mail, steps="lost")
    scene.accept(taken + forgotten)
    scene.wait(lambda: _uncertain(scene) == len(taken) + len(forgotten), "all of them are uncertain", 60)
    # The circuit may have opened: other mails wait for it, and not for ever.
    scene.accept(scene.order(30, mail))
    done(scene)
    scene.expect(scene.result.duplicated == len(taken), f"{scene.result.duplicated} second copies, not {len(taken)}")


def _uncertain(scene: Scene) -> int:
    return sum(status == "uncertain" for status in scene.statuses().values())


def throttled(scene: Scene) -> None:
    """23. 429 with Retry-After, in seconds and as a date: that account waits so long, the others do not."""
    seconds = 6 if scene.quick else 20
    hooks = scene.http()
    scene.tenant(hooks)
    scene.tenant(hooks)
    scene.tenant(hooks)
    ready(scene)
    by_seconds, by_date, calm = ([tenant] for tenant in scene.tenants)
    scene.accept(
        scene.order(1, hooks, steps=f"429s{seconds}", tenants=by_seconds)
        + scene.order(1, hooks, steps=f"429d{seconds}", tenants=by_date)
    )
    scene.wait_for_attempts(2)
    time.sleep(0.5)
    scene.accept(scene.order(20, hooks, tenants=by_seconds) + scene.order(20, hooks, tenants=by_date))
    scene.accept(scene.order(20, hooks, tenants=calm))
    scene.wait(lambda: _count_from(scene, calm[0].name) == 20, "the other account goes on", seconds)
    scene.rest(seconds)
    scene.wait_for_the_rest()
    for tenant in (*by_seconds, *by_date):
        times = [receipt.at for receipt in scene.receipts() if tenant.name in receipt.sender]
        pause = times[1] - times[0] if len(times) > 1 else 0.0
        scene.note(f"{tenant.name} waited {pause:.1f} s of {seconds}")
        # A date has whole seconds only.
        scene.expect(pause >= seconds - 1.1, f"sent again after {pause:.1f} s, not {seconds}")
    done(scene)


def _count_from(scene: Scene, name: str) -> int:
    return sum(name in receipt.sender for receipt in scene.receipts())


def failed_after_body(scene: Scene) -> None:
    """24. HTTP 500, or no answer, once the body was there: uncertain, then again under the same reference."""
    hooks = scene.http()
    scene.two_tenants(hooks, settings={"data_timeout": 2})
    ready(scene)
    taken = scene.order(5, hooks, steps="t500") + scene.order(5, hooks, steps="taken")
    forgotten = scene.order(5, hooks, steps="500") + scene.order(5, hooks, steps="lost")
    refused = scene.order(4, hooks, steps="hup")
    scene.accept(taken + forgotten + refused)
    scene.wait_for_the_rest()
    scene.accept(scene.order(20, hooks))
    done(scene)
    scene.expect(scene.result.duplicated <= len(taken), f"{scene.result.duplicated} second copies, of {len(taken)}")


def failover(scene: Scene) -> None:
    """25. The provider goes down with a second account set: messages move on, none twice, and it is tried again."""
    first, second = scene.smtp(STEADY), scene.smtp(STEADY)
    for _ in range(2):
        scene.tenant(first, second, failover=True)
    ready(scene)
    scene.send(40, first)
    scene.wait_for_the_rest()
    first.process.signal(signal.SIGUSR1)
    time.sleep(0.5)
    scene.over()
    scene.send(100, first)
    scene.wait_for_the_rest()
    moved = _lines(second)
    scene.note(f"{moved} of 100 left by the second account")
    scene.expect(moved >= 90, f"only {moved} of 100 left by the second account")
    first.process.signal(signal.SIGUSR2)
    scene.rest(1)
    scene.let_time_pass()
    scene.send(20, first)
    scene.wait_for_the_rest()
    back = _lines(first) - 40
    scene.expect(back > 0, "the circuit did not half-open: nothing leaves by the first account any more")
    done(scene)
    scene.expect(scene.result.duplicated == 0, "moving on made second copies")


def _lines(provider: object) -> int:
    receipts = provider.receipts  # type: ignore[attr-defined]
    return receipts.read_bytes().count(b"\n") if receipts.exists() else 0


# Clocks.


def skewed_clocks(scene: Scene) -> None:
    """26. A worker and a scheduler five minutes ahead, others five minutes behind: nothing early, nothing twice."""
    mail = scene.smtp(STEADY)
    scene.two_tenants(mail)
    scene.worker(skew="+300s")
    scene.worker(skew="-300s")
    scene.worker()
    scene.scheduler(skew="+300s")
    scene.scheduler(skew="-300s")
    scene.listening(3)
    later = [order for at in (6, 9, 12) for order in scene.order(10, mail, in_seconds=at)]
    scene.accept(later + scene.order(150, mail))
    scene.rest(14)
    done(scene)
    earliest = _earliest(scene)
    scene.note(f"planned messages came {earliest:.2f} s to {scene.result.slowest_s} s after their time")
    scene.expect(earliest > -1, f"a message came {-earliest:.1f} s before its time")
    scene.expect(scene.result.duplicated == 0, "clocks that differ made second copies")


def two_schedulers(scene: Scene) -> None:
    """27. Two schedulers, one stopped for a while (SIGSTOP) and let go: what is planned goes once."""
    seconds = 10 if scene.quick else 45
    mail = scene.smtp()
    scene.two_tenants(mail)
    scene.worker()
    first, _ = scene.scheduler(), scene.scheduler()
    scene.listening()
    every = [int(2 + (seconds + 6) * position / 20) for position in range(20)]
    scene.accept([order for at in every for order in scene.order(3, mail, in_seconds=at + 2)])
    scene.rest(2)
    first.child.signal(signal.SIGSTOP)
    scene.rest(seconds)
    first.child.signal(signal.SIGCONT)
    scene.rest(12)
    scene.late_after = 20
    done(scene)
    scene.expect(scene.result.duplicated == 0, "two schedulers made second copies")
    scene.expect(_earliest(scene) > -1, "a message came before its time")


# Content.


def big_things(scene: Scene) -> None:
    """28. Very many recipients in a call: workers stay small."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    ready(scene)
    number = 5_000 if scene.quick else 20_000
    worker = scene.kept[1].child
    scene.send(number, mail)
    scene.wait_for_the_rest(seconds=300)
    grown = worker.megabytes()
    scene.note(f"the worker has {grown:.0f} MB after {number} messages")
    scene.expect(grown < 300, f"the worker grew to {grown:.0f} MB")
    scene.late_after = 240
    done(scene)


def poisonous_content(scene: Scene) -> None:
    """29. Half characters, NUL, wrong headers, an unknown channel: refused with a reason, and the rest goes on."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    ready(scene)
    wrong = {
        "a lone surrogate": {"body_text": "half \ud800"},
        "NUL": {"body_text": "a\0b"},
        "a line break in the subject": {"subject": "a\r\nBcc: x@example.com"},
        "a header of the service": {"headers": {"Bcc": "x@example.com"}},
        "an unknown channel": {"channel": "pigeon"},
        "an unknown priority": {"priority": "yesterday"},
    }
    program = (
        "import json, sys; from services.start import configure; configure(); import django; django.setup()\n"
        "from notifications.services import CommunicationError, send\n"
        "for name, more in json.loads(sys.argv[2]).items():\n"
        "    options = {'channel': 'email', 'subject': 'Hi', 'body_text': 'Hello', **more}\n"
        "    try:\n        message = send(to='bad@example.com', tenant=sys.argv[1], **options)\n"
        "        print(json.dumps([name, 'accepted', str(message.pk)]))\n"
        "    except CommunicationError as error:\n        print(json.dumps([name, 'refused', str(error)]))\n"
        "    except Exception as error:\n        print(json.dumps([name, 'broke', repr(error)]))\n"
    )
    scene.accept(scene.order(10, mail))
    asked = scene._start("asks", "-c", program, scene.tenants[0].schema_name, json.dumps(wrong))
    asked.gone(60)
    answers = [json.loads(line) for line in asked.log.read_text(encoding="utf-8").splitlines() if line[:2] == '["']
    scene.expect(len(answers) == len(wrong), f"{len(answers)} of {len(wrong)} calls were answered: see {asked.log}")
    for name, what, text in answers:
        scene.expect(what == "refused", f"{name}: {what}, {text[:120]}")
    scene.accept(scene.order(10, mail))
    done(scene)


def broken_template(scene: Scene) -> None:
    """29. A template's stored row is spoilt behind the service's back: its messages fail, the others go."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    one, two = ([tenant] for tenant in scene.tenants)
    spoilt = scene.order(10, mail, tenants=one, expected="failed")
    scene.accept(spoilt + scene.order(10, mail, tenants=two), "--bulk")
    scene.accept(scene.order(10, mail, tenants=one))
    table = TemplateVersion._meta.db_table
    scene.stage.sql(f'UPDATE "{one[0].schema_name}".{table} SET body_text = %s', "{% if %}{{")
    ready(scene)
    done(scene)
    statuses = scene.statuses()
    told = {status for order in spoilt for i in scene.accepted()[order.key].ids if (status := statuses[i])}
    scene.expect(told == {"failed"}, f"messages of a spoilt template are {', '.join(sorted(told))}")


# Crash points.

WORKER_POINTS = ("after_claim", "before_provider", "after_provider", "before_outcome_write", "after_outcome_write")
AT_THE_PROVIDER = ("before_provider", "after_provider", "before_outcome_write")
ACCEPT_POINTS = ("before_accept_commit", "after_accept_commit")


def crash_in_worker(scene: Scene, point: str, kind: str) -> None:
    """A worker dies there, at the first time and again later."""
    scene.lease = SHORT_LEASE
    provider = scene.smtp() if kind == "email" else scene.http()
    scene.two_tenants(provider)
    scene.scheduler()
    victims = [scene.worker(fault=f"{point}:{number}") for number in (1, 3)]
    scene.listening(2)
    scene.accept(scene.order(60, provider), *(["--bulk"] if kind == "email" else []))
    for victim in victims:
        child = victim.child
        scene.wait(partial(_ended, child), "the worker dies", 60, revive=False)
        scene.expect(child.code == DIED, f"the worker ended with code {child.code}")
        scene.died(child)
    done(scene)
    if point in AT_THE_PROVIDER:
        scene.expect(
            scene.result.in_flight_at_kill, "workers died at the provider, and nothing was marked as on its way"
        )


def _ended(child: Child) -> bool:
    return child.code is not None


def crash_in_caller(scene: Scene, point: str, kind: str) -> None:
    """A caller dies there, and asks again."""
    provider = scene.smtp() if kind == "email" else scene.http()
    scene.two_tenants(provider)
    ready(scene)
    orders = scene.order(20, provider)
    died = scene.accept(orders, fault=f"{point}:8", wait=False)
    scene.expect(died.gone(60) == DIED, "the caller did not die where it was to")
    scene.over()
    scene.accept(orders)
    done(scene)


def _crash_cases() -> dict[str, Callable[[Scene], None]]:
    made: dict[str, Callable[[Scene], None]] = {}
    for kind in ("email", "webhook"):
        for point in WORKER_POINTS:
            made[f"crash:{point}:{kind}"] = lambda scene, p=point, k=kind: crash_in_worker(scene, p, k)
        for point in ACCEPT_POINTS:
            made[f"crash:{point}:{kind}"] = lambda scene, p=point, k=kind: crash_in_caller(scene, p, k)
    return made


CASES: dict[str, Callable[[Scene], None]] = {
    "01-kill-worker": kill_worker,
    "02-kill-before-job": kill_before_job,
    "03-rollout": rollout,
    "04-impatient-stop": impatient_stop,
    "05-poison": poison,
    "06-flushall": flushall,
    "07-valkey-down": valkey_down,
    "08-valkey-forgets": valkey_forgets,
    "09-valkey-full": valkey_full,
    "10-evicted-jobs": evicted_jobs,
    "11-postgres-restart": postgres_restart,
    "12-postgres-dies-after-250": postgres_dies_after_250,
    "13-deadlocks": deadlocks,
    "14-same-key-race": same_key_race,
    "15-same-key-other-call": same_key_other_call,
    "16-crash-in-accept": crash_in_accept,
    "17-crash-before-ring": crash_before_ring,
    "18-temporary-refusals": temporary_refusals,
    "19-final-refusals": final_refusals,
    "21-unreachable": unreachable,
    "22-dropped-after-data": dropped_after_data,
    "23-throttled": throttled,
    "24-failed-after-body": failed_after_body,
    "25-failover": failover,
    "26-skewed-clocks": skewed_clocks,
    "27-two-schedulers": two_schedulers,
    "28-big-things": big_things,
    "29-poisonous-content": poisonous_content,
    "29-broken-template": broken_template,
    "x-stopped-worker": stopped_worker,
    "x-kill-schedulers": kill_schedulers,
    "x-client-kill": client_kill,
    "x-terminated-backends": terminated_backends,
    **_crash_cases(),
}
"""By name; the numbers are those of the usual faults of such a service, `x` is beyond them."""

LEFT_OUT = {
    "20-partial-rcpt": "a message has one recipient: there is no partial refusal",
    "26-leap-second": "no leap second can be made here; DST changes nothing, as all times are UTC",
    "28-attachments": "there are no attachments yet",
    "30-receipts": "there are no receipts from providers yet",
}
"""What is not run, and why."""
