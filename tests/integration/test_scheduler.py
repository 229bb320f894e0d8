"""What is due later: rung for to the second, by any number of schedulers, and lost without harm."""

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from zlib import decompress

import pytest
from django.db import connection
from django.utils import timezone
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from rq import SimpleWorker
from rq.serializers import JSONSerializer

from notifications import jobs, queues
from notifications.channels import Unavailable
from notifications.dispatch import bells, sweep
from notifications.dispatch.models import Lane
from notifications.models import OutboxMessage
from notifications.queues import JsonJob, Schedule, queue_named
from services import scheduler
from tenants import onboarding
from tests import factories, stack
from tests.factories import accepted, fresh, on_ledger, race, turn

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey")]

own_valkey = pytest.mark.skipif(not hasattr(stack, "servers"), reason="lets Valkey wait: only one of the tests' own")

LATER = datetime(2090, 1, 1, 12, 0, 0, 400_000, UTC)


@pytest.fixture(autouse=True)
def schedule(valkey):
    """An empty schedule."""
    valkey.delete(Schedule.scheduled_jobs_key)
    yield queues.schedule()
    valkey.delete(Schedule.scheduled_jobs_key)


def entries(valkey) -> dict[str, float]:
    return {name.decode(): due for name, due in valkey.zrange(Schedule.scheduled_jobs_key, 0, -1, withscores=True)}


def make_due(valkey) -> None:
    """Let the time pass that entries wait for."""
    for name in entries(valkey):
        valkey.zadd(Schedule.scheduled_jobs_key, {name: 1})


def away() -> Schedule:
    """A schedule where nobody listens."""
    return Schedule(connection=Redis(port=1, socket_connect_timeout=0.1, retry=Retry(NoBackoff(), 0)))


# Bells


def test_a_scheduled_message_is_rung_for_at_its_second_without_a_sweep(acme_sends, valkey):
    message = accepted(scheduled_at=timezone.now() + timedelta(seconds=1.2))
    ((_, due),) = entries(valkey).items()
    assert 0 <= due - message.scheduled_at.timestamp() < 1
    make_due(valkey)
    bells.look_after_schedule()
    assert len(queue_named("default")) == 1
    assert not entries(valkey)


def test_a_message_that_is_to_be_tried_again_is_rung_for_at_its_time(acme_sends, valkey):
    message = accepted()
    acme_sends.script(message.to_address, Unavailable("later"))
    turn()
    ((name, due),) = entries(valkey).items()
    assert name.startswith("later-t_")
    assert 0 <= due - on_ledger(message).get().due_at.timestamp() < 1


def quiet(valkey) -> None:
    """Forget every bell."""
    queue_named("default").empty()
    for key in valkey.keys("bell*"):
        valkey.delete(key)


def test_a_sender_that_had_to_wait_is_rung_for_when_it_may_send_again_and_only_then(acme_sends, valkey):
    type(accepted().outbox).objects.update(rate_limit=1)
    accepted()
    turn()
    quiet(valkey)
    assert 0 < sweep.wake() <= 3600 + 72
    assert len(queue_named("default")) == 0
    Lane.objects.exclude(not_before=None).update(not_before=timezone.now() - timedelta(seconds=1))
    assert sweep.wake() is None
    assert len(queue_named("default")) == 1
    assert not Lane.objects.exclude(not_before=None).exists()


def test_no_lane_of_a_suspended_tenant_is_rung_for(acme, acme_sends, valkey):
    accepted()
    quiet(valkey)
    Lane.objects.update(not_before=timezone.now())
    onboarding.suspend(acme, "late", "operator")
    sweep.wake()
    assert len(queue_named("default")) == 0


def test_a_planned_bell_is_one_a_tenant_queue_and_second(valkey):
    for schema_name, queue, at in [
        ("t_one00000", "default", LATER),
        ("t_one00000", "default", LATER + timedelta(milliseconds=300)),
        ("t_one00000", "bulk", LATER),
        ("t_two00000", "default", LATER),
        ("t_one00000", "default", LATER + timedelta(seconds=1)),
    ]:
        bells.plan(schema_name, queue, at)
    assert len(entries(valkey)) == 4


def test_a_planned_bell_is_never_early(valkey):
    bells.plan("t_one00000", "default", LATER)
    assert list(entries(valkey).values()) == [LATER.replace(second=1, microsecond=0).timestamp()]


def test_a_planned_bell_is_stored_as_json(valkey):
    bells.plan("t_one00000", "default", LATER)
    (name,) = entries(valkey)
    stored = json.loads(decompress(valkey.hget(f"rq:job:{name}", "data")))
    assert stored == [bells.RING, None, ["t_one00000", "default"], {}]


def test_a_time_that_is_past_rings_at_once(valkey):
    bells.plan("t_one00000", "default", timezone.now() - timedelta(seconds=5))
    assert not entries(valkey)
    assert len(queue_named("default")) == 1


def test_without_queues_nothing_is_planned(valkey, settings):
    settings.NOTIFY_DISPATCH_MODE = "db"
    bells.plan("t_one00000", "default", LATER)
    assert not entries(valkey)


def test_planning_never_fails_the_caller(valkey, monkeypatch):
    monkeypatch.setattr(queues, "schedule", away)
    bells.plan("t_one00000", "default", LATER)


def test_racing_schedulers_ring_each_planned_bell_once(valkey):
    names = [f"t_{number:08}" for number in range(40)]
    for name in names:
        bells.plan(name, "bulk", LATER)
    make_due(valkey)
    race(4, lambda _: bells.look_after_schedule())
    assert sorted(job.args[0] for job in queue_named("bulk").jobs) == names


def test_an_entry_that_cannot_be_read_stops_nobody(valkey, caplog):
    bells.plan("t_one00000", "default", LATER)
    valkey.hset("rq:job:broken", mapping={"data": b"\x80broken", "created_at": "never", "origin": "default"})
    valkey.zadd(Schedule.scheduled_jobs_key, {"broken": 1, "gone": 1})
    make_due(valkey)
    bells.look_after_schedule()
    assert len(queue_named("default")) == 1
    assert not entries(valkey)
    assert "cannot be read" in caplog.text


# Periodic jobs


def test_every_periodic_job_is_in_the_schedule_under_its_name_once(valkey):
    for _ in range(2):
        jobs.keep_periodic_jobs()
    assert set(entries(valkey)) == {job.name for job in jobs.PERIODIC}
    assert all(due > datetime.now(UTC).timestamp() for due in entries(valkey).values())


def work() -> None:
    """A worker for the periodic jobs, until there are none left."""
    queue = queue_named("maintenance")
    worker = SimpleWorker([queue], connection=queue.connection, job_class=JsonJob, serializer=JSONSerializer)
    here = connection.tenant
    worker.work(burst=True, logging_level="ERROR")
    connection.set_tenant(here)
    assert not queue.failed_job_registry.get_job_ids()


def test_the_periodic_jobs_do_their_work_and_come_again(acme_sends, valkey):
    """One rings for what is due and was not rung for, the other takes up again what failed long enough ago."""
    failed, due = accepted("ada@example.com"), accepted("bob@example.com")
    on_ledger(failed).delete()
    OutboxMessage.objects.filter(pk=failed.pk).update(
        status="failed", error_class="transient", failed_at=timezone.now() - timedelta(hours=3)
    )
    jobs.keep_periodic_jobs()
    for _ in range(2):
        quiet(valkey)
        make_due(valkey)
        bells.look_after_schedule()
        assert sorted(queue_named("maintenance").job_ids) == sorted(job.name for job in jobs.PERIODIC)
        work()
        assert [job.args[1] for job in queue_named("default").jobs] == ["default"]
        assert set(entries(valkey)) == {job.name for job in jobs.PERIODIC}
    assert fresh(failed).status == fresh(due).status == "pending"
    assert on_ledger(failed).exists()


def test_periodic_jobs_that_nobody_works_on_do_not_pile_up(valkey):
    jobs.keep_periodic_jobs()
    for _ in range(3):
        make_due(valkey)
        bells.look_after_schedule()
    assert len(queue_named("maintenance")) == len(jobs.PERIODIC)


def test_a_scheduler_that_dies_with_an_entry_in_hand_loses_no_periodic_job(valkey):
    jobs.keep_periodic_jobs()
    valkey.zrem(Schedule.scheduled_jobs_key, jobs.PERIODIC[0].name)
    jobs.keep_periodic_jobs()
    assert jobs.PERIODIC[0].name in entries(valkey)


# The process's loop


def loop(seconds: float = 0.05):
    """A running scheduler, and what stops it."""
    stop = threading.Event()

    def run():
        try:
            scheduler.run(stop, seconds)
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()

    def end():
        stop.set()
        thread.join(10)
        assert not thread.is_alive()

    return end


def neck_and_neck(valkey, number: int = 2) -> None:
    """One round of so many schedulers, all of which have looked before the first of them acts.

    Valkey answers their questions meanwhile, and lets their commands wait.
    """
    valkey.client_pause(60_000, all=False)
    ends = [loop(seconds=60) for _ in range(number)]
    try:
        deadline = time.monotonic() + 30
        while valkey.info("clients")["blocked_clients"] < number:
            assert time.monotonic() < deadline, "not all of them have come so far"
            time.sleep(0.01)
    finally:
        valkey.client_unpause()
        for end in ends:
            end()


@own_valkey
def test_entries_that_two_schedulers_see_are_taken_once_each(valkey):
    """Also the one that the first has put back for its next time before the second comes to it."""
    names = [f"periodic-{number:02}" for number in range(20)]
    jobs.keep_periodic_jobs()
    for name in names:
        queues.schedule().keep(name, timedelta(minutes=1), jobs.PERIODIC[0].function, queue="maintenance")
        valkey.zadd(Schedule.scheduled_jobs_key, {name: 1})
    with valkey.monitor() as monitor:
        neck_and_neck(valkey)
        valkey.echo("over")
        commands = list(iter(lambda: monitor.next_command()["command"], "ECHO over"))
    queued = sorted(command for command in commands if command.startswith("RPUSH"))
    assert queued == [f"RPUSH {queue_named('maintenance').key} {name}" for name in names]


@own_valkey
def test_two_schedulers_that_find_an_empty_schedule_put_every_periodic_job_in_once(valkey):
    neck_and_neck(valkey)
    assert sorted(entries(valkey)) == sorted(job.name for job in jobs.PERIODIC)


def test_the_sweep_goes_on_while_redis_is_away(monkeypatch):
    monkeypatch.setattr(queues, "schedule", away)
    swept = threading.Semaphore(0)
    monkeypatch.setattr(scheduler, "sweep", swept.release)
    end = loop()
    assert all(swept.acquire(timeout=10) for _ in range(3))
    end()


def test_a_wiped_redis_gets_its_periodic_jobs_back(valkey):
    end = loop()
    for _ in range(2):
        valkey.delete(Schedule.scheduled_jobs_key)
        wait = threading.Event()
        for _ in range(200):
            if set(entries(valkey)) >= {job.name for job in jobs.PERIODIC}:
                break
            wait.wait(0.05)
        else:
            pytest.fail("the periodic jobs did not come back")
    end()


def test_the_sweep_finds_what_was_not_planned(acme_sends, valkey):
    message = accepted(scheduled_at=timezone.now() + timedelta(hours=1))
    valkey.delete(Schedule.scheduled_jobs_key)
    factories.make_due(message)
    assert sweep.sweep() == 1
    assert fresh(message).status == "scheduled"


def test_a_periodic_job_whose_time_or_function_is_another_now_is_kept_so_and_not_put_off(valkey):
    name = jobs.PERIODIC[0].name
    queues.schedule().keep(name, timedelta(minutes=1), "notifications.tasks.old", queue="maintenance")
    due_at = entries(valkey)[name]
    queues.schedule().keep(name, timedelta(minutes=2), "notifications.tasks.new", queue="maintenance")
    job = JsonJob.fetch(name, connection=valkey)
    assert (job.meta["interval"], job.func_name) == (120, "notifications.tasks.new")
    assert entries(valkey)[name] == due_at
