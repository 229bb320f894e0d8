"""Workers that are killed, stopped, told to end, or that a message kills."""

import signal
import time

from tests.benchmarks.processes import say
from tests.faults.cases.base import (
    LEASE,
    SHORT_LEASE,
    SLOW,
    STEADY,
    SWEEP,
    bells_within,
    case,
    done,
    in_flight,
    nothing_twice,
    ready,
    resumed_within,
)
from tests.faults.crashes import DIED
from tests.faults.stage import Scene

HAND_OVER_SECONDS = 5.0
"""What a worker gets, once it is rung for, to hand over what a dead one had claimed."""


@case("01-kill-worker")
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
    in_flight(scene)
    bells_within(scene, LEASE)
    # What the dead one had claimed is its own for a lease, and found by the sweep after that.
    resumed_within(scene, LEASE + SWEEP + HAND_OVER_SECONDS)


@case("02-kill-before-job")
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
    resumed_within(scene, 30)


@case("03-rollout")
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
    nothing_twice(scene, "a rollout made second copies")
    scene.expect(scene.result.p99_s < 30, f"p99 is {scene.result.p99_s} s, not below 30")


@case("04-impatient-stop")
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
    in_flight(scene)
    bells_within(scene, LEASE)
    resumed_within(scene, LEASE + SWEEP + 3 * HAND_OVER_SECONDS)


@case("05-poison")
def poison(scene: Scene) -> None:
    """5. A message that kills every worker that prepares it: failed as poison, its neighbours sent."""
    scene.lease = SHORT_LEASE
    mail = scene.smtp()
    scene.two_tenants(mail)
    victim = scene.worker(fault="poison:1", fault_again=True)
    scene.scheduler()
    orders = scene.order(20, mail) + scene.order(1, mail, name="poison", expected="failed") + scene.order(20, mail)
    poisonous = orders[20]
    scene.listening()
    scene.accept(orders, "--bulk")
    scene.wait(lambda: scene.status(poisonous) == "failed", "the poison is found out", 240)
    done(scene)
    reason = scene.messages("error_message")[next(iter(scene.ids([poisonous])))]
    scene.note(f"{victim.restarts} deaths; {reason}")
    scene.expect("poison" in reason, f"it failed for another reason: {reason}")
    # One with others, which makes all of them suspects, and three alone.
    scene.expect(victim.restarts == 4, f"it took {victim.restarts} deaths to find the poison, not 4")


@case("x-stopped-worker")
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
    in_flight(scene)
    scene.worker()
    scene.wait_for_the_rest()
    scene.let_time_pass()
    scene.wait_for_the_rest()
    victim.child.signal(signal.SIGCONT)
    scene.rest(3)
    done(scene)
