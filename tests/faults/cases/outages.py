"""Providers that cannot be reached, hang up, or are down."""

import signal
import time
from typing import Any

from tests.faults.cases.answers import mend
from tests.faults.cases.base import STEADY, case, done, nothing_twice, ready
from tests.faults.processes import Provider
from tests.faults.stage import Scene


@case("21-unreachable")
def unreachable(scene: Scene) -> None:
    """21. Nobody listens, a server that never greets, no STARTTLS, a bad certificate: tried again, never in clear."""
    mail = scene.smtp()
    cases: dict[str, tuple[Provider, dict[str, Any]]] = {
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
    orders = scene.order(4 * len(cases), mail)
    scene.may_be_put_off(orders, because="their providers cannot be reached")
    scene.accept(orders)
    scene.wait_for_the_rest()
    scene.expect(scene.attempts() == 0, "something was handed over, and nothing could be in safety")
    wrong = [status for status in scene.statuses().values() if status != "scheduled"]
    scene.expect(not wrong, f"{len(wrong)} are not put off but {set(wrong)}")
    for tenant in scene.tenants:
        mend(tenant.schema_name, {"host": "127.0.0.1", "port": mail.port, "use_tls": False})
    done(scene)


@case("22-dropped-after-data")
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
    later = scene.order(30, mail)
    scene.may_be_put_off(later, because="so many hand-overs of unknown fate open the circuit")
    scene.accept(later)
    done(scene)
    scene.expect(scene.result.duplicated == len(taken), f"{scene.result.duplicated} second copies, not {len(taken)}")


def _uncertain(scene: Scene) -> int:
    return sum(status == "uncertain" for status in scene.statuses().values())


@case("25-failover")
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
    moved = second.attempts()
    scene.note(f"{moved} of 100 left by the second account")
    scene.expect(moved >= 90, f"only {moved} of 100 left by the second account")
    first.process.signal(signal.SIGUSR2)
    scene.rest(1)
    scene.let_time_pass()
    scene.send(20, first)
    scene.wait_for_the_rest()
    back = first.attempts() - 40
    scene.expect(back > 0, "the circuit did not half-open: nothing leaves by the first account any more")
    done(scene)
    nothing_twice(scene, "moving on made second copies")
