import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from unittest.mock import Mock

import django
import pytest
from django.conf import settings
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from notifications.rendering import TemplateInvalid, TemplateRenderError, compile_template, nodes
from notifications.rendering.budget import MAX_OPERATIONS, MAX_OUTPUT, MAX_WORK, Budget
from notifications.rendering.engine import ENGINE
from notifications.rendering.filters import FILTERS

if not settings.configured:
    settings.configure(USE_TZ=True, TIME_ZONE="UTC")
    django.setup()

CONTEXT = {
    "s": "a" * 65_536,
    "quotes": "'" * 65_536,
    "newlines": "\n" * 65_536,
    "opened": "<a" * 32_768,
    "accents": "\u0301" * 32_768 + "\u0316" * 32_768,
    "digits": "9" * 65_536,
    "mixed": "1A" * 32_768,
    "list": list(range(2_000)),
    "texts": ["x" * 500] * 400,
    "dict": {str(n): n for n in range(400)},
    "big": 10**39,
    "float": 1e308,
    "empty": "",
    "date": "2024-05-01T10:00:00+00:00",
    "first": "0001-01-01T00:00:00+23:59",
    "surrogate": "\ud800",
}


def loops(body):
    return "{% for a in list %}{% for b in list %}" + body + "{% endfor %}{% endfor %}"


def nested(opening, closing, depth, body=""):
    return opening * depth + body + closing * depth


REFUSED = {
    # the lexer
    "a line of variable openers": "{{" * 32_768,
    "a line of tag openers": "{%" * 32_768,
    "a line of comment openers": "{#" * 32_768,
    "openers of all kinds": "{{{%{#" * 10_000,
    "an opener closed on the next line": "{{ s\n}}",
    "a source of more than 64 KB": "x" * 65_537,
    "a NUL": "a\0b",
    "more than 2000 tags": "{{ s }}" * 2_001,
    "a tag of more than 2000 characters": "{% firstof " + "s " * 1_000 + "%}",
    "an empty tag": "{%%}",
    # the parser
    "spaces before nonsense": ("{{ s" + " " * 1_900 + "z }}") * 30,
    "quotes that never close": ("{% if " + '"\\" ' * 480 + "%}") * 30,
    "deep ifs": nested("{% if s %}", "{% endif %}", 21),
    "deep loops": nested("{% for a in list %}", "{% endfor %}", 900),
    "deep withs": nested("{% with a=s %}", "{% endwith %}", 21),
    "unclosed ifs": "{% if s %}" * 1_900,
    "nine filters": "{{ s" + "|upper" * 9 + " }}",
    "31 operands": "{% if " + " or ".join(["s"] * 31) + " %}{% endif %}",
    "a tower of nots": "{% if " + "not " * 400 + "s %}{% endif %}",
    "a path without end": "{{ s" + ".s" * 900 + " }}",
    "a name without end": "{{ " + "s" * 1_900 + " }}",
    # oversized literals
    "a long integer": "{{ " + "9" * 41 + " }}",
    "an infinite float": "{{ 1e400 }}",
    "a long text argument": "{{ s|cut:'" + "x" * 201 + "' }}",
    "a large size argument": "{{ s|truncatechars:1001 }}",
    "a negative large size argument": "{{ s|truncatechars:-1001 }}",
    "a long date format": "{% now '" + "r" * 101 + "' %}",
    # filters that multiply, pad, trust, reach or reveal
    **{
        f"the filter {name}": "{{ s|" + name + " }}"
        for name in (
            *("addslashes", "ljust:999999999", "rjust:999999999", "center:999999999", "stringformat:'999999999d'"),
            *("safe", "safeseq", "force_escape", "escapejs", "json_script", "make_list", "linenumbers", "wordwrap:1"),
            *("urlize", "urlizetrunc:9", "truncatechars_html:9", "truncatewords_html:9", "unordered_list", "slugify"),
            *("pprint", "random", "dictsort:'__class__'", "get_digit:1", "filesizeformat", "timesince", "iriencode"),
        )
    },
    # tags that load, switch, hold or reveal
    **{
        f"the tag {tag.split()[0]}": "{% " + tag + " %}"
        for tag in (
            *("include 'a'", "extends 'a'", "block a", "load static", "verbatim", "autoescape off", "csrf_token"),
            *("debug", "cycle 'a' 'b'", "regroup list by a as b", "filter upper", "ifchanged", "lorem 999999999 p"),
            *("spaceless", "ssi '/etc/passwd'", "static 'a'", "url 'a'", "widthratio 1 2 3", "templatetag openblock"),
            *("querystring", "partialdef a", "partial a", "translate 'a'", "blocktranslate", "cache 9 a", "resetcycle"),
        )
    },
    # names
    "a class": "{{ s.__class__ }}",
    "a private name": "{{ _private }}",
    "a private part": "{{ dict._private }}",
    "a double dot": "{{ dict..a }}",
    "a translated text": "{{ _('a') }}",
    "a translated argument": "{{ s|default:_('a') }}",
    "a call": "{{ dict.clear() }}",
    "a loop that rebinds True": "{% for True in list %}{% endfor %}",
    "a loop that rebinds its own state": "{% for forloop in list %}{% endfor %}",
    "an arithmetic name": "{{ a-b }}",
    "a private loop name": "{% for _a in list %}{% endfor %}",
}

STOPPED = {
    "two empty loops": loops(""),
    "six empty loops": nested("{% for a in list %}", "{% endfor %}", 6),
    "twenty empty loops": nested("{% for a in dict.items %}", "{% endfor %}", 20),
    "loops of nothing visible": loops("{{ empty }}"),
    "loops of ifs": loops("{% if a == b %}{% endif %}"),
    "loops of withs": loops("{% with x=a y=b %}{% endwith %}"),
    "loops of kept values": loops("{% firstof empty a as x %}"),
    "loops of dates": loops("{% now 'r' as x %}"),
    "loops of large integers": loops("{{ big }}"),
    "loops of floats": loops("{{ float }}"),
    "loops of items": loops("{% for k, v in dict.items %}{% endfor %}"),
    "an output without end": loops("{{ s }}"),
    "an output of plain text": loops("x" * 50_000),
    "an escaped output": "{{ quotes }}" * 20,
    "a shared word in a long text": loops("{% if 'aaaaaaaaaaaaaaaaaab' in s %}{% endif %}"),
    "a long text in a long text": loops("{% if quotes in s %}{% endif %}"),
    "a long list compared": loops("{% if texts == texts %}{% endif %}"),
    "a search in a long list": loops("{% if 'y' in texts %}{% endif %}"),
    "a spent budget behind an or": "{% if " + " or ".join(["s|upper == empty"] * 14) + " %}{% endif %}",
    "texts doubled by add": "".join("{% with s=s|add:s|add:s|add:s|add:s %}" for _ in range(9)) + "{% endwith %}" * 9,
    "a list joined by a long text": loops("{{ texts|join:'" + "x" * 200 + "'|length }}"),
    "a filter that outgrows the message": (
        "{% with q=quotes|add:quotes %}{% with q=q|add:q %}{{ q|escape|length }}{% endwith %}{% endwith %}"
    ),
    "a long word cut twice": "{{ s|cut:'" + "b" * 200 + "'|cut:'" + "c" * 200 + "' }}",
    "paragraphs": loops("{% if newlines|linebreaks %}{% endif %}"),
    "unclosed HTML": loops("{% if opened|striptags %}{% endif %}"),
    "quoted emoji": loops("{% if accents|urlencode|urlencode %}{% endif %}"),
    "many dates": loops("{% if date|date:'" + "r" * 100 + "' %}{% endif %}"),
    "many decimals": loops("{% if float|floatformat:20 %}{% endif %}"),
    "eight filters that do nothing": loops("{{ empty" + "|default:empty" * 8 + " }}"),
    **{
        f"endless {name}": loops(
            "{% with x=mixed|" + name + (":2" if filter_.takes.name != "NOTHING" else "") + " %}{% endwith %}"
        )
        for name, filter_ in FILTERS.items()
    },
}

HARMLESS = {
    "single braces": ("{ { % } }" * 7_000, None),
    "closers only": ("}}%}#}" * 10_000, None),
    "an attribute that is plain data": ("{{ big.numerator }}{% if s.upper or list.append %}x{% endif %}", ""),
    "a list as text": ("{{ texts|upper }}{{ dict|linebreaksbr }}{{ list|add:'x' }}{{ dict.items|lower }}", ""),
    "a loop over letters": ("{% for a in s %}x{% endfor %}", ""),
    "a loop over a number": ("{% for a in big %}x{% endfor %}", ""),
    "an attribute": ("{{ s.upper }}{{ list.append }}{{ dict.keys }}{{ dict.values }}", ""),
    "a method that clears": (
        "{{ dict.clear }}{{ list.pop }}{{ list.clear }}{{ dict.popitem }}{{ list|length }}",
        "2000",
    ),
    "a mutation by items": ("{{ dict.items.clear }}{{ dict.items.mapping }}{{ dict.items }}", ""),
    "a letter by index": ("{{ s.0 }}", ""),
    "a parent block": ("{{ block.super }}", ""),
    "the loop's own state": ("{% for a in texts|slice:':1' %}{{ forloop }}{{ forloop.parentloop }}{% endfor %}", ""),
    "the engine": ("{{ request }}{{ settings.SECRET_KEY }}{{ csrf_token }}{{ template }}{{ budget }}{{ self }}", ""),
    "a variable named after a builtin": ("{% with self=1 context=2 %}{{ self }}{{ context }}{% endwith %}", "12"),
    "division by zero": ("{{ big|divisibleby:0 }}", ""),
    "an overflowing date": ("{{ first|date:'c' }}", ""),
    "an attribute of a format module": ("{{ date|date:'__file__' }}", None),
    "a date that is none": ("{{ s|date }}{{ list|date:'Y' }}{{ big|time }}{{ digits|date:'Y' }}", ""),
    "a size that is none": ("{{ s|truncatechars:s }}{{ s|truncatechars:big }}{{ s|truncatechars:list }}", ""),
    "a shape that is none": (
        "{{ 1.5|floatformat:21 }}{{ float|floatformat:999 }}{{ float|floatformat:'x' }}{{ digits|floatformat:2 }}",
        "",
    ),
    "an argument from a list": ("{{ empty|cut:texts }}{{ empty|join:texts }}{{ float|pluralize:dict }}", None),
    "an argument that is too long": ("{{ s|cut:quotes }}{{ texts|join:s }}", ""),
    "long digits added": ("{{ digits|add:1 }}{{ digits|pluralize }}{{ digits|divisibleby:3 }}", ""),
    "an infinite sum": ("{{ float|add:float|add:float|floatformat }}", None),
    "mixed comparisons": ("{% if s < list or list < dict or 1 in 2 or dict in dict %}x{% endif %}", ""),
    "escapes over and over": ("{{ '<'|upper|escape|upper|escape|upper|escape|upper|escape }}", None),
    "a lone surrogate": ("{{ surrogate|urlencode }}{{ surrogate|length }}", "1"),
    "sorted accents": ("{{ accents|truncatechars:9 }}", "…"),
    "2000 filters": ("{{ empty|upper|lower|title }}" * 2_000, ""),
    "300 conditions of 30 operands": (("{% if " + "s and " * 29 + "empty %}{% endif %}") * 300, ""),
}

# One process for all of them: each has two seconds of processor time before the kernel ends it.
CHILD = r"""
import json, resource, signal, sys

resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))

import django
from django.conf import settings

settings.configure(USE_TZ=True)
django.setup()

from notifications.rendering import TemplateInvalid, TemplateRenderError, compile_template
from notifications.rendering.budget import Budget

work = json.load(sys.stdin)
for name, source in work["templates"].items():
    signal.setitimer(signal.ITIMER_PROF, 2)
    budget, output = Budget(), ""
    try:
        template = compile_template(source, autoescape=True)
        used = {name: value for name, value in work["context"].items() if name in template.variables}
        output = template.render(used, budget)
        verdict = "harmless"
    except TemplateInvalid as error:
        verdict, output = "refused", str(error)
    except TemplateRenderError as error:
        verdict, output = "stopped", str(error)
    except BaseException as error:
        verdict, output = "escaped", repr(error)
    signal.setitimer(signal.ITIMER_PROF, 0)
    size = len(output)
    found = [name, verdict, output[:300], size, budget.operations, budget.output, budget.work]
    print(json.dumps(found), flush=True)
"""


@pytest.fixture(scope="module")
def verdicts():
    templates = REFUSED | STOPPED | {name: source for name, (source, _) in HARMLESS.items()}
    assert len(templates) == len(REFUSED) + len(STOPPED) + len(HARMLESS)
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps({"context": CONTEXT, "templates": templates}),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    found = {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}
    return found, done.stderr[-500:]


def verdict_on(verdicts, name):
    found, errors = verdicts
    assert name in found, f"the process died on or before {name!r}, after {list(found)[-1:]}: {errors}"
    return found[name]


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_template_is_refused_when_it_is_written(verdicts, name):
    verdict, message, *_ = verdict_on(verdicts, name)
    assert (verdict, re.match(r"line \d+: |the template is longer", message) is not None) == ("refused", True), message


@pytest.mark.parametrize("name", STOPPED)
def test_a_hostile_template_is_stopped_within_its_budget(verdicts, name):
    verdict, message, _, operations, output, _ = verdict_on(verdicts, name)
    assert verdict == "stopped", message
    assert "more than" in message or "longer than" in message
    assert operations <= MAX_OPERATIONS + 1
    # The text that does not fit any more is counted, but not shown.
    assert output <= 2 * MAX_OUTPUT


@pytest.mark.parametrize("name", HARMLESS)
def test_a_curious_template_renders_and_learns_nothing(verdicts, name):
    verdict, output, size, operations, _, work = verdict_on(verdicts, name)
    assert verdict == "harmless", output
    assert HARMLESS[name][1] in {None, output}
    assert size <= MAX_OUTPUT
    assert operations <= MAX_OPERATIONS
    assert work <= MAX_WORK
    assert "/" not in output


@pytest.mark.parametrize(
    ("source", "operations"),
    [
        ("{{ a }}", 1),
        ("{{ a|upper|lower }}", 3),
        ("{% if a or b and c %}{% endif %}", 4),
        ("{% for a in list %}{{ a }}{% endfor %}", 7),
        ("{% for a in list %}{% endfor %}", 4),
        ("{% with a=1 %}{% endwith %}", 1),
        ("{% firstof a b 1 %}", 3),
        ("plain {# text #}", 0),
    ],
)
def test_every_node_round_filter_and_operand_counts(source, operations):
    budget = Budget()
    compile_template(source, autoescape=True).render({"b": 1, "list": [1, 2, 3]}, budget)
    assert budget.operations == operations


@pytest.mark.parametrize(
    ("source", "least"),
    [
        ("{{ text|upper }}", 1_000),
        ("{{ text|add:text }}", 2_000),
        ("{% now 'Y' as year %}", 450),
        ("{{ text|linebreaks }}", 10_000),
        ("{{ date|date:'" + "r" * 100 + "' }}", 10_000),
        ("{% now '" + "r" * 100 + "' as now %}", 10_000),
        ("{% if text in text %}{% endif %}", 60_000),
        ("{{ text|cut:'" + "b" * 160 + "' }}", 10_000),
        ("{{ list|join:'" + "b" * 200 + "' }}", 20_000),
        ("{% if list == list %}{% endif %}", 3_000),
        ("{% if list in list %}{% endif %}", 3_000),
        ("{% if dict.items == dict.items %}{% endif %}", 3_000),
        ("{% if dict.items in list %}{% endif %}", 3_000),
        ("{% for pair in dict.items %}{% if pair == pair %}{% endif %}{% endfor %}", 3_000),
        ("{{ list|slice:':1'|length }}", 100),
        ("{{ 1.5 }}{{ 1.5|floatformat:2 }}", 500),
    ],
)
def test_slow_work_is_charged_for(source, least):
    budget = Budget()
    context = {"text": "x" * 1_000, "list": ["y"] * 100, "dict": {"z" * 200: ["y"] * 100}, "date": "2024-05-01"}
    compile_template(source, autoescape=True).render(context, budget)
    assert least <= budget.work <= 20 * least


@pytest.mark.parametrize("error", [RecursionError, OverflowError, ValueError, RuntimeError, KeyError])
def test_no_other_error_escapes_a_render(monkeypatch, error):
    monkeypatch.setattr(nodes.Placeholder, "render", Mock(side_effect=error))
    with pytest.raises(TemplateRenderError, match=error.__name__):
        compile_template("{{ a }}", autoescape=True).render({})


def test_the_engine_reads_no_template_with_djangos_own_lexer():
    with pytest.raises(TypeError):
        ENGINE.from_string("{{ a }}")
    assert [*ENGINE.template_libraries, *ENGINE.template_loaders] == []
    assert ENGINE.builtins == ["notifications.rendering.library"]


FRAGMENTS = st.sampled_from(
    [
        *("{{", "}}", "{%", "%}", "{#", "#}", " ", "\n", "|", ":", ".", "'", '"', "\\", ",", "=", "_(", ")", "\0", "é"),
        *(
            "if ",
            "elif ",
            "else",
            "endif",
            "for ",
            " in ",
            "endfor",
            "empty",
            "with ",
            "as ",
            "endwith",
            "not ",
            "and ",
        ),
        *(
            "firstof ",
            "now ",
            "comment",
            "endcomment",
            "reversed",
            "a",
            "b.c",
            "d.items",
            "0",
            "-1",
            "1.5",
            "True",
            "==",
        ),
        *("{{ a }}", "{% if a %}", "{% endif %}", "{% for x in b %}", "{% for k, v in d.items %}", "{% endfor %}"),
        *FILTERS,
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**39), 10**39)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(source=st.lists(FRAGMENTS, max_size=30).map("".join) | st.text(), autoescape=st.booleans())
@hypothesis_settings(max_examples=300, derandomize=True, deadline=None, database=None)
def test_random_text_is_a_template_or_refused(source, autoescape):
    with suppress(TemplateInvalid, TemplateRenderError):
        compile_template(source, autoescape=autoescape).render({"a": "x", "b": [1], "d": {"k": 2}})


@given(
    chain=st.lists(
        st.tuples(st.sampled_from(sorted(FILTERS)), st.sampled_from(["", ":a", ":b", ":'x,y'", ":2", ":-1"])),
        min_size=1,
        max_size=4,
    ),
    a=VALUES,
    b=VALUES,
    autoescape=st.booleans(),
)
@hypothesis_settings(max_examples=400, derandomize=True, deadline=None, database=None)
def test_any_chain_of_filters_takes_any_value(chain, a, b, autoescape):
    source = "{{ a|" + "|".join(name + argument for name, argument in chain) + " }}"
    budget = Budget()
    try:
        output = compile_template(source, autoescape=autoescape).render({"a": a, "b": b}, budget)
    except (TemplateInvalid, TemplateRenderError):
        return
    assert len(output) == budget.output <= MAX_OUTPUT
