"""What providers answer: not now, never, too much, or an error that may hide that they took it."""

import time
from collections.abc import Sequence
from datetime import timedelta

from notifications import lifecycle
from notifications.lifecycle import REOPEN_PAUSES
from notifications.models import Account, Suppression, SuppressionReason
from tenants.connection import connection
from tenants.context import tenant_context
from tests.faults.cases.base import case, done, ready
from tests.faults.ledger import Order
from tests.faults.stage import Scene


@case("18-temporary-refusals")
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
    held = {row[0] for row in scene.sql("SELECT owner FROM dispatch_accounthold WHERE not_before > now()")}
    scene.expect(held == {two[0].pk, three[0].pk}, "421 and 454 hold the account, and nothing else does")
    waits = sorted(at - time.time() for i, at in scene.due_times().items() if i in scene.ids(refused[:10]))
    scene.note(f"waits of {waits[0]:.1f} to {waits[-1]:.1f} s after the first attempt")
    # They begin up to a few seconds ago, at 60 s and up to a tenth more.
    scene.expect(45 < waits[0] < waits[-1] < 67, "the first waits are not those of the back-off, or all the same")
    before = scene.attempts()
    held_back = scene.order(5, busy, tenants=two)
    scene.may_be_put_off(held_back, because="421 holds their account")
    scene.accept(held_back)
    scene.rest(2)
    scene.expect(scene.attempts() == before, "an account on hold was used")
    done(scene)


@case("18-tried-for-a-day")
def tried_for_a_day(scene: Scene) -> None:
    """18. A recipient's server says 450 for ever: the message is tried for a day or longer, and then it is failed."""
    mail = scene.smtp()
    scene.tenant(mail)
    ready(scene)
    (order,) = scene.order(1, mail, steps="450_", expected="failed")
    scene.accept([order])
    waited = 0.0
    for _ in range(30):
        scene.wait_for_the_rest()
        if due := scene.due_times():
            waited += max(due.values()) - time.time()
            scene.let_time_pass()
        elif pause := _reopened(scene, order):
            waited += pause.total_seconds()
        else:
            break
    scene.note(f"{scene.attempts()} attempts in {waited / 3600:.1f} h")
    scene.expect(waited >= 24 * 3600, f"it was given up after {waited / 3600:.1f} h, not 24 or more")
    done(scene)


def _reopened(scene: Scene, order: Order) -> timedelta | None:
    """Let a failed message's pause pass, and the periodic job run; how long the pause was, None for no new cycle."""
    (message,) = scene.ids([order])
    schema = scene.tenants[0].schema_name
    cycles = int(scene.messages("retry_count")[message])
    pause = REOPEN_PAUSES[min(cycles, len(REOPEN_PAUSES) - 1)]
    scene.sql(f'UPDATE "{schema}".notifications SET failed_at = failed_at - %s WHERE id = %s', pause, message)
    with tenant_context(schema):
        reopened = lifecycle.reopen_failed(max_age=timedelta(hours=12))
    connection.close()
    return pause if reopened else None


@case("19-final-refusals")
def final_refusals(scene: Scene) -> None:
    """19. SMTP 550, 552, 554: failed at once and never tried again; who does not exist (5.1.1) gets nothing more."""
    mail = scene.smtp()
    scene.tenant(mail)
    ready(scene)
    nobody = [order for step in ("r550_", "550_") for order in scene.order(3, mail, steps=step, expected="failed")]
    full = [
        order for step in ("552_", "554_", "r554_") for order in scene.order(3, mail, steps=step, expected="failed")
    ]
    refused = nobody + full
    scene.accept(refused + scene.order(10, mail))
    scene.wait_for_the_rest()
    _tried_once(scene, refused)
    statuses = scene.statuses()
    failed = sum(status == "failed" for status in statuses.values())
    scene.expect(failed == len(refused), f"{failed} failed, and {len(refused)} were refused for good")
    table = f'"{scene.tenants[0].schema_name}".{Suppression._meta.db_table}'
    listed = {(address, reason) for address, reason in scene.sql(f"SELECT address, reason FROM {table}")}
    expected = {(order.to.lower(), SuppressionReason.HARD_BOUNCE.value) for order in nobody}
    scene.expect(listed == expected, f"{len(listed)} addresses are suppressed, and {len(expected)} do not exist")
    again = scene.order_again(nobody, expected="suppressed")
    scene.accept(again)
    scene.wait_for_the_rest()
    _tried_once(scene, refused)
    told = {scene.status(order) for order in again}
    scene.expect(told == {"suppressed"}, f"a second message to nobody is {', '.join(sorted(told))}")
    done(scene)


def _tried_once(scene: Scene, refused: Sequence[Order]) -> None:
    tried = [receipt.to for receipt in scene.receipts() if "+" in receipt.to]
    scene.expect(len(tried) == len(set(tried)) == len(refused), f"{len(tried)} attempts for {len(refused)} refused")


@case("19-wrong-credentials")
def wrong_credentials(scene: Scene) -> None:
    """19. SMTP 535: the account waits, nothing is failed, and its owner is told; once it is mended, all goes out."""
    mail, locked = scene.smtp(), scene.smtp("--mode=no-auth")
    scene.tenant(mail)
    scene.tenant(locked, settings={"username": "somebody", "password": "wrong-one"})
    ready(scene)
    one, two = ([tenant] for tenant in scene.tenants)
    locked_out = scene.order(5, locked, tenants=two)
    scene.may_be_put_off(locked_out, because="535 holds their account")
    scene.accept(scene.order(10, mail, tenants=one) + locked_out)
    scene.wait_for_the_rest()
    wrong = sorted({scene.status(order) for order in locked_out} - {"scheduled", "pending"})
    scene.expect(not wrong, f"messages of an account that is refused are {', '.join(wrong)}")
    held = scene.sql(
        "SELECT owner FROM dispatch_accounthold WHERE not_before > now() + interval '5 min' AND owner = ANY(%s)",
        [tenant.pk for tenant in scene.tenants],
    )
    scene.expect(held == [(two[0].pk,)], "535 did not hold the account")
    worker = scene.kept[1].child
    scene.expect(worker.says("credentials refused"), "nobody was told that the credentials are refused")
    mend(two[0].schema_name, {"host": "127.0.0.1", "port": mail.port, "use_tls": False})
    done(scene)


def mend(schema_name: str, smtp: dict[str, object]) -> None:
    """Give a tenant's account other settings, as its owner would."""
    with tenant_context(schema_name):
        account = Account.objects.get()
        account.settings = {"smtp": smtp}
        account.sealed = ""
        account.save()
    connection.close()


@case("23-throttled")
def throttled(scene: Scene) -> None:
    """23. 429 with Retry-After, in seconds and as a date: that account waits so long, the others do not."""
    seconds = 6 if scene.quick else 120
    scene.late_after = seconds + 60
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
    # The refused two have another attempt each, beside the others.
    scene.wait_for_attempts(64, seconds + 90)
    for tenant in (*by_seconds, *by_date):
        times = [receipt.at for receipt in scene.receipts() if tenant.name in receipt.sender]
        pause = times[1] - times[0] if len(times) > 1 else 0.0
        scene.note(f"{tenant.name} waited {pause:.1f} s of {seconds}")
        # A date has whole seconds only.
        least = seconds - (1.1 if [tenant] == by_date else 0.1)
        scene.expect(pause >= least, f"sent again after {pause:.1f} s, not {seconds}")
    done(scene)


def _count_from(scene: Scene, name: str) -> int:
    return sum(name in receipt.sender for receipt in scene.receipts())


@case("24-failed-after-body")
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
    later = scene.order(20, hooks)
    scene.may_be_put_off(later, because="so many hand-overs of unknown fate open the circuit")
    scene.accept(later)
    done(scene)
    scene.expect(scene.result.duplicated <= len(taken), f"{scene.result.duplicated} second copies, of {len(taken)}")
