"""Very many recipients, text that nobody should send, and a template that is spoilt."""

import json

from notifications.models import TemplateVersion
from tests.faults.cases.base import case, done, ready
from tests.faults.stage import Scene

SLOWEST_A_THOUSAND = 6.0
"""Seconds that a thousand messages take at most on a busy machine."""


@case("28-big-things")
def big_things(scene: Scene) -> None:
    """28. Fifty thousand recipients in one call: the worker stays small."""
    mail = scene.smtp()
    scene.tenant(mail)
    scene.scheduler()
    worker = scene.worker()
    scene.listening()
    number = 5_000 if scene.quick else 50_000
    scene.late_after = SLOWEST_A_THOUSAND * number / 1000 + 30
    scene.send(number, mail)
    scene.wait_for_the_rest(seconds=scene.late_after)
    most = worker.child.most_megabytes()
    scene.note(f"the worker had {most:.0f} MB at most, for {number} messages")
    scene.expect(most < 300, f"the worker grew to {most:.0f} MB")
    scene.expect(not worker.restarts, "the worker was started again, and what the first had is not known")
    done(scene)


@case("29-poisonous-content")
def poisonous_content(scene: Scene) -> None:
    """29. Half characters, NUL, wrong headers, an unknown channel: refused with a reason, and the rest goes on."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    ready(scene)
    scene.accept(scene.order(10, mail))
    asked = scene.start("wrong", "tests.faults.wrong", scene.tenants[0].schema_name)
    asked.gone(60)
    answers = [json.loads(line) for line in asked.log.read_text(encoding="utf-8").splitlines() if line[:2] == '["']
    scene.expect(answers, f"no call was answered: see {asked.log}")
    for name, what, text in answers:
        scene.expect(what == "refused", f"{name}: {what}, {text[:120]}")
    scene.accept(scene.order(10, mail))
    done(scene)


@case("29-broken-template")
def broken_template(scene: Scene) -> None:
    """29. A template's stored row is spoilt behind the service's back: its messages fail, the others go."""
    mail = scene.smtp()
    scene.two_tenants(mail)
    one, two = ([tenant] for tenant in scene.tenants)
    spoilt = scene.order(10, mail, tenants=one, expected="failed")
    scene.accept(spoilt + scene.order(10, mail, tenants=two), "--bulk")
    scene.accept(scene.order(10, mail, tenants=one))
    table = TemplateVersion._meta.db_table
    scene.sql(f'UPDATE "{one[0].schema_name}".{table} SET body_text = %s', "{% if %}{{")
    ready(scene)
    done(scene)
    statuses = scene.statuses()
    told = {status for order in spoilt for i in scene.accepted()[order.key].ids if (status := statuses[i])}
    scene.expect(told == {"failed"}, f"messages of a spoilt template are {', '.join(sorted(told))}")
