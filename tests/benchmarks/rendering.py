"""How fast an ordinary mail is rendered: by the restricted engine, and by Django's own, whose place it takes."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from django.template import Context, Engine

from notifications import wording
from notifications.rendering import Rendered
from tenants.context import tenant_context
from tests.benchmarks.processes import say
from tests.benchmarks.results import NotMeasured, Row, Target
from tests.benchmarks.stage import EVENT, HTML, SUBJECT, TEXT, Stage, booking

type Render = Callable[[Mapping[str, object]], Rendered]


def render(stage: Stage) -> Iterator[Row]:
    """Subject, text and HTML of the mail that the other benchmarks send."""
    size = stage.size
    contexts = [booking(number) for number in range(size.render)]
    stock = _stock()
    ours, theirs = [], []
    with stage.scene() as scene, tenant_context(scene.tenant()):
        restricted = _restricted()
        if restricted(contexts[0]) != stock(contexts[0]):
            raise NotMeasured("the two engines do not render the same mail")
        for number in range(1, size.runs + 1):
            say(f"rendering {size.render} mails with each engine: run {number} of {size.runs}")
            ours.append(_per_second(restricted, contexts))
            theirs.append(_per_second(stock, contexts))
    yield Row(
        name="rendering subject, text and HTML",
        unit="mails/s",
        runs=ours,
        peer="Django's own engine",
        peer_runs=theirs,
        target=Target("≥", 0.7, of_ratio=True),
        note="Both compiled before; ours as each delivery does it: found among the compiled, then rendered.",
    )


def _restricted() -> Render:
    """The engine as `preparing.content_of` calls it."""
    template = wording.find(EVENT, "email", "", "")

    def call(context: Mapping[str, object]) -> Rendered:
        return wording.compiled(template.scope, template.uuid, template.version).render(context)

    return call


def _stock() -> Render:
    engine = Engine()
    subject, text, html = (engine.from_string(source) for source in (SUBJECT, TEXT, HTML))

    def call(context: Mapping[str, object]) -> Rendered:
        return Rendered(
            subject=subject.render(Context(context, autoescape=False)),
            text=text.render(Context(context, autoescape=False)),
            html=html.render(Context(context)),
        )

    return call


def _per_second(call: Render, contexts: Sequence[Mapping[str, object]]) -> float:
    began = time.perf_counter()
    for context in contexts:
        call(context)
    return len(contexts) / (time.perf_counter() - began)
