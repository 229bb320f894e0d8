"""Valkey is wiped, away, silent, full, or loses what it held."""

import os
import signal
import time

from notifications import queues
from notifications.jobs import PERIODIC
from tests.faults.cases.base import STEADY, bells_within, case, done, nothing_twice, ready, resumed_within
from tests.faults.processes import Provider
from tests.faults.stage import Scene

LONGEST_CALL = 2.0
"""Seconds: the time-out of the client that rings, with a second for all else that a call does."""


@case("06-flushall")
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
    scene.wait(_scheduled, "the periodic jobs are planned again", 30)
    done(scene)
    bells_within(scene, 30)


def _scheduled() -> bool:
    schedule = queues.schedule()
    return all(job.name in schedule for job in PERIODIC)


@case("07-valkey-down")
def valkey_down(scene: Scene) -> None:
    """7. Valkey is away for two minutes: accepting goes on, the backlog drains afterwards, nothing loops."""
    seconds = 12 if scene.quick else 120
    mail = scene.smtp()
    scene.two_tenants(mail)
    ready(scene)
    scene.send(20, mail)
    scene.wait_for_the_rest()
    scene.stage.servers.valkey.stop()
    try:
        _accept_meanwhile(scene, mail, seconds)
    finally:
        scene.stage.servers.valkey.start()
    scene.over()
    scene.late_after = seconds + 90
    done(scene)
    restarts = sum(kept.restarts for kept in scene.kept)
    scene.expect(restarts == 0, f"processes ended {restarts} times for Valkey's sake")
    resumed_within(scene, 90)


def _accept_meanwhile(scene: Scene, mail: Provider, seconds: float) -> None:
    """Calls at a rate for most of that time; all of them must succeed, and soon."""
    scene.accept(scene.order(int(8 * seconds), mail), "--rate=10", seconds=seconds + 60)
    refused = scene.refusals()
    scene.expect(not refused, f"{len(refused)} calls failed without Valkey: {refused[:1]}")
    longest = scene.longest_call()
    scene.note(f"the slowest call took {longest:.2f} s")
    scene.expect(longest <= LONGEST_CALL, f"a call took {longest:.2f} s without Valkey, not {LONGEST_CALL:g} at most")
    scene.rest(0.2 * seconds)


@case("x-valkey-silent")
def valkey_silent(scene: Scene) -> None:
    """Extra. Valkey stands still (SIGSTOP): it takes connections and never answers, then goes on as if nothing was."""
    seconds = 12 if scene.quick else 40
    mail = scene.smtp()
    scene.two_tenants(mail)
    ready(scene)
    scene.send(20, mail)
    scene.wait_for_the_rest()
    valkey = scene.stage.servers.valkey.process_id
    os.kill(valkey, signal.SIGSTOP)
    try:
        _accept_meanwhile(scene, mail, seconds)
        scene.proves(scene.left(), "nothing was held up by Valkey's silence")
    finally:
        os.kill(valkey, signal.SIGCONT)
    scene.over()
    scene.late_after = seconds + 90
    done(scene)
    nothing_twice(scene, "Valkey's silence made second copies")
    resumed_within(scene, 90)


@case("08-valkey-forgets")
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
    nothing_twice(scene, "losing Valkey's writes made second copies")


@case("09-valkey-full")
def valkey_full(scene: Scene) -> None:
    """9. Valkey's memory is used up, policy noeviction: accepting goes on and says so, the sweep drains afterwards."""
    seconds = 8 if scene.quick else 25
    mail = scene.smtp()
    scene.two_tenants(mail)
    ready(scene)
    queues.redis().config_set("maxmemory", "1")
    try:
        caller = scene.accept(scene.order(10 * seconds, mail), "--rate=10")
        refused = scene.refusals()
        scene.expect(not refused, f"{len(refused)} calls failed while Valkey was full: {refused[:1]}")
        scene.rest(2)
    finally:
        queues.redis().config_set("maxmemory", "0")
    scene.over()
    scene.expect(caller.says("bell not rung"), "no log says that Valkey was full")
    done(scene)
    resumed_within(scene, 90)


@case("10-evicted-jobs")
def evicted_jobs(scene: Scene) -> None:
    """10. The bells' jobs vanish while their ids stay queued: rung again, and said."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    scheduler = scene.scheduler()
    scene.send(100, mail)
    redis = queues.redis()
    gone = sum(redis.delete(key) for key in redis.scan_iter("rq:job:*"))
    scene.proves(gone, "there was no job to lose")
    scene.over()
    # No worker yet: it would throw away the ids without a job, and nothing would be left to notice.
    scene.wait(lambda: scheduler.child.says("a bell's job was lost"), "the loss is said", 60)
    rung = time.time() - (scene.fault_at or 0.0)
    scene.worker()
    done(scene)
    scene.result.resumed_s = round(rung, 1)
    resumed_within(scene, 30)


@case("x-client-kill")
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
    nothing_twice(scene, "losing connections to Valkey made second copies")
