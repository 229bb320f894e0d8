from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from types import SimpleNamespace
from uuid import UUID

import django
import django.utils.timezone
import django.utils.translation
import pytest
from django.conf import settings
from django.utils.safestring import mark_safe

from notifications.rendering import (
    ContextInvalid,
    TemplateInvalid,
    TemplateRenderError,
    compile_content,
    compile_template,
    freeze,
    register_serializer,
    render_message,
)
from notifications.rendering import (
    context as contexts,
)

if not settings.configured:
    settings.configure(USE_TZ=True, TIME_ZONE="UTC")
    django.setup()

ORDER = {
    "id": 7,
    "lines": [{"name": "Bell", "price": "12.5"}, {"name": "Rope", "price": "3"}],
    "totals": {"net": 1, "tax": 2},
}


def html(source, **context):
    return compile_template(source, autoescape=True).render(context)


def text(source, **context):
    return compile_template(source, autoescape=False).render(context)


@pytest.fixture
def serializers(monkeypatch):
    monkeypatch.setattr(contexts, "REGISTERED_SERIALIZERS", {})


# What an author can write


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ order.id }}", "7"),
        ("{{ order.lines.1.name }}", "Rope"),
        ("{% for line in order.lines %}{{ forloop.counter }}:{{ line.name }} {% endfor %}", "1:Bell 2:Rope "),
        ("{% for line in order.lines reversed %}{{ line.name }}{% endfor %}", "RopeBell"),
        ("{% for key, value in order.totals.items %}{{ key }}={{ value }};{% endfor %}", "net=1;tax=2;"),
        ("{% for key in order.totals %}{{ key }};{% endfor %}", "net;tax;"),
        ("{% for line in nothing %}x{% empty %}none{% endfor %}", "none"),
        ("{% for a in order.lines %}{% if not forloop.first %}, {% endif %}{{ a.name }}{% endfor %}", "Bell, Rope"),
        ("{% for a in order.lines %}{{ forloop.revcounter }}{{ forloop.last }} {% endfor %}", "2False 1True "),
        (
            "{% for a in order.lines %}{% for b in numbers %}{{ forloop.parentloop.counter }}{% endfor %}{% endfor %}",
            "1122",
        ),
        ("{% with first=order.lines.0 n=2 %}{{ first.name }}{{ n }}{% endwith %}", "Bell2"),
        ("{% with order.id as number %}{{ number }}{% endwith %}", "7"),
        ("{% firstof nickname order.name 'friend' %}", "friend"),
        ("{% firstof order.id as number %}[{{ number }}]", "[7]"),
        ("{# a note #}{% comment %}{% anything %} {{ goes|here }}{% endcomment %}.", "."),
        ("{{ missing }}|{{ order.missing.deeper }}|{{ order.lines.9 }}|{{ nothing }}", "|||"),
        ("{{ order.lines }}{{ order }}", ""),
    ],
)
def test_tags_work_as_in_django(source, expected):
    assert text(source, order=ORDER, numbers=[1, 2], nothing=None) == expected


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("n > 2 and n <= 3", True),
        ("n == 4 or not empty", True),
        ("not n == 3", False),
        ("not not n", True),
        ("'a' in word and 'z' not in word", True),
        ("3 in numbers", True),
        ("'k' in table", True),
        ("missing is None", True),
        ("n is not None", True),
        ("n != 3", False),
        ("n == 3 or missing and missing", True),
        ("n < word", False),
        ("n in n", False),
        ("word|length == 3", True),
        ("flag == True", True),
        ("word == 'an and'", False),
    ],
)
def test_conditions_work_as_in_django(condition, holds):
    source = f"{{% if {condition} %}}yes{{% elif False %}}never{{% else %}}no{{% endif %}}"
    context = {"n": 3, "word": "abc", "numbers": [1, 3], "table": {"k": 1}, "empty": "", "flag": True}
    assert text(source, **context) == ("yes" if holds else "no")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('missing|default:"there"', "there"),
        ("missing|default:name", "ada lovelace"),
        ('null|default_if_none:"-"', "-"),
        ("name|upper", "ADA LOVELACE"),
        ("name|title", "Ada Lovelace"),
        ("name|capfirst", "Ada lovelace"),
        ("name|truncatechars:5", "ada …"),
        ("name|truncatewords:1", "ada …"),
        ("name|cut:' '", "adalovelace"),
        ("name|slice:':3'", "ada"),
        ("name|length", "12"),
        ("name|wordcount", "2"),
        ("name|first", "a"),
        ("names|last", "Eve"),
        ("null|upper", ""),
        ("names|upper", ""),
        ("names|join:', '", "Bob, Eve"),
        ("names|slice:'1:'|join:''", "Eve"),
        ("names|length|pluralize", "s"),
        ("one|pluralize:'y,ies'", "y"),
        ("one|yesno:'on,off'", "on"),
        ("one|add:2", "3"),
        ("name|add:'!'", "ada lovelace!"),
        ("price|floatformat:2", "1234.57"),
        ("price|floatformat:'2g'", "1,234.57"),
        ("'12.3456'|floatformat:2", "12.35"),
        ("4|divisibleby:2", "True"),
        ("lines|linebreaksbr", "a<br>b"),
        ("lines|linebreaks", "<p>a<br>b</p>"),
        ("'a b/ü'|urlencode", "a%20b/%C3%BC"),
        ("'<b>a</b> < c'|striptags", "a < c"),
        ("tag|escape", "a&lt;b"),
        ("'it\\'s'|lower", "it's"),
        ("-3|add:5", "2"),
        ("1.5", "1.5"),
    ],
)
def test_filters_work_as_in_django(expression, expected):
    context = {
        "name": "ada lovelace",
        "names": ["Bob", "Eve"],
        "one": 1,
        "price": 1234.567,
        "lines": "a\nb",
        "null": None,
        "tag": "a<b",
    }
    assert text(f"{{{{ {expression} }}}}", **context) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('at|date:"j F Y H:i"', "1 May 2024 10:30"),
        ('day|date:"D d.m.y"', "Wed 01.05.24"),
        ('at|time:"H:i"', "10:30"),
        ('"14:05"|time:"H.i"', "14.05"),
        ('abroad|date:"H:i"', "08:30"),
        ('day|date:"SHORT_DATE_FORMAT"', "05/01/2024"),
        ('"soon"|date:"Y"', ""),
        ('nothing|date:"Y"', ""),
    ],
)
def test_iso_dates_can_be_formatted(expression, expected, monkeypatch):
    monkeypatch.setattr(settings, "TIME_ZONE", "UTC")
    with django.utils.timezone.override(UTC), django.utils.translation.override("en"):
        context = {"at": "2024-05-01T10:30:00Z", "day": "2024-05-01", "abroad": "2024-05-01T10:30:00+02:00"}
        assert text(f"{{{{ {expression} }}}}", **context, nothing=None) == expected


def test_now_is_in_the_current_time_zone():
    with django.utils.timezone.override(timezone(timedelta(hours=14))):
        assert text('{% now "O" %}{% now "Y" as year %} {{ year }}') == f"+1400 {datetime.now(UTC).year}"


def test_names_may_be_in_any_script():
    assert text("{{ نام }}", نام="سارا") == "سارا"


# What is escaped, and what a recipient gets


def test_values_are_escaped_in_html_only():
    content = compile_content(subject="{{ x }}", text="{{ x }}", html="<b>{{ x }}</b>")
    rendered = content.render({"x": "O'Brien & <Co>"})
    assert rendered.subject == rendered.text == "O'Brien & <Co>"
    assert rendered.html == "<b>O&#x27;Brien &amp; &lt;Co&gt;</b>"


@pytest.mark.parametrize(
    "expression",
    [
        "x|default:y",
        "y|default:x",
        "x|upper",
        "x|linebreaks",
        "x|linebreaksbr",
        "x|add:x",
        "'<i>'|add:x",
        "list|join:'<hr>'",
        "list|first",
        "x|slice:'0:'",
        "x|escape|cut:';'",
        "x|truncatechars:9|capfirst",
        "x|striptags",
    ],
)
def test_no_filter_lets_data_into_html_unescaped(expression):
    hostile = "<script>"
    assert hostile not in html(f"{{{{ {expression} }}}}", x="<" + hostile, y="", list=[hostile, hostile]).lower()


def test_an_escaped_character_is_not_cut_open():
    assert html("{{ x|escape|cut:';' }}", x="<") == "&amp;lt"


def test_what_firstof_keeps_is_escaped_once():
    assert html("{% firstof x as y %}{{ y }}", x="<") == "&lt;"


def test_data_cannot_claim_to_be_safe():
    assert html("{{ x }}", x=mark_safe("<b>")) == "&lt;b&gt;"


def test_the_words_of_the_author_are_trusted():
    assert html("{{ missing|default:'<i>guest</i>' }}") == "<i>guest</i>"


def test_a_subject_is_one_line():
    rendered = render_message(
        subject="Hi {{ x }}\n", text="", html="", context={"x": "a\r\nBcc: b\x00\x85\u2028\t c\x07"}
    )
    assert rendered.subject == "Hi a Bcc: b c"


def test_bodies_keep_lines_and_lose_control_characters():
    dirty = "a\r\nb\rc\td\x00\x1b\x9f\ud800e"
    rendered = render_message(subject="", text="{{ x }}", html="{{ x }}", context={"x": dirty})
    assert rendered.text == rendered.html == "a\nb\nc\tde"


def test_content_names_the_variables_it_expects():
    content = compile_content(
        subject="{{ order.id|default:fallback }}",
        text="{% for line in order.lines %}{{ line.name }}{{ forloop.counter }}{% empty %}{{ line }}{% endfor %}",
        html="{% with a=b %}{{ a }}{% if c > 1 %}{% endif %}{% endwith %}{% firstof d as e %}{{ e }}{{ a }}",
    )
    assert content.variables == {"order", "fallback", "line", "a", "b", "c", "d"}


def test_parts_and_renders_do_not_see_each_others_names():
    content = compile_content(subject="{% firstof x as y %}", text="{{ y }}", html="{{ y }}")
    context = {"x": "secret"}
    assert [content.render(context).text for _ in range(2)] == ["", ""]
    assert context == {"x": "secret"}


def test_threads_may_share_content():
    content = compile_content(subject="{{ n }}", text="{% for a in list %}{{ n }},{% endfor %}", html="")

    def render(n):
        return {content.render({"n": n, "list": [1] * 50}).text for _ in range(30)}

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(render, range(8))) == [{f"{n}," * 50} for n in range(8)]


# What an author is told


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("\n\n{{ a|ljust:9 }}", ["line 3", "unknown filter 'ljust'", "available: add,"]),
        ("{{ a|truncatchars:9 }}", ["did you mean 'truncatechars'"]),
        ("a\n{% include 'b' %}", ["line 2", "unknown tag 'include'", "available: comment,"]),
        ("\n{% if a %}\n{% for b in c %}\n{% endif %}", ["line 4", "'endif' has no open block", "{% endfor %}"]),
        ("{% endif %}", ["line 1", "remove it"]),
        ("{% if a %}\n{% for b in c %}", ["line 2", "'for' is not closed", "{% endfor %}"]),
        ("{{ a\n}}", ["line 1", "'{{' is not closed on its line", "{{ name }}"]),
        ("a\n{{ }}", ["line 2", "empty"]),
        ("{{ a b }}", ["' b' cannot be understood"]),
        ("{% if a>1 %}{% endif %}", ["'>1'", "space on both sides"]),
        ("{% if a == %}{% endif %}", ["ends where a value is awaited"]),
        ("{% if and %}{% endif %}", ["'and' stands where a value is awaited"]),
        ("{% if a b %}{% endif %}", ["'b' is left over"]),
        ("{% if a 'b %}{% endif %}", ["quote is not closed"]),
        ("{{ a._b }}", ["starts with '_'"]),
        ("{{ a|truncatechars }}", ["'truncatechars' needs an argument", "whole number up to 1000"]),
        ("{{ a|upper:1 }}", ["'upper' takes no argument"]),
        ("{{ a|truncatechars:1001 }}", ["'truncatechars' cannot use this argument"]),
        ("{% for a b %}{% endfor %}", ["{% for item in items %}"]),
        ("{% with a %}{% endwith %}", ["'a'", "{% with name=value"]),
        ("{% now %}", ['{% now "Y-m-d" %}']),
        ("{% firstof %}", ["'firstof' needs"]),
    ],
)
def test_an_invalid_template_is_refused_with_line_culprit_and_remedy(source, words):
    with pytest.raises(TemplateInvalid) as caught:
        compile_template(source, autoescape=True)
    assert [word for word in words if word not in str(caught.value)] == []


def test_an_invalid_part_is_named():
    with pytest.raises(TemplateInvalid, match=r"^html, line 2: "):
        compile_content(subject="", text="", html="\n{{ }}")


def test_a_loop_over_values_of_another_shape_says_so():
    with pytest.raises(TemplateRenderError, match=r"for k, v in pairs.*lists of 2 values"):
        text("{% for k, v in pairs %}{% endfor %}", pairs=[[1, 2, 3]])


# What may be in a context


class Person:
    def __init__(self, **fields):
        self.__dict__.update(fields)


def test_plain_values_are_copied():
    original = {"a": [1, {"b": (2.5, None, True)}], "c": "d"}
    frozen = freeze(original)
    assert frozen == {"a": [1, {"b": [2.5, None, True]}], "c": "d"}
    assert frozen["a"] is not original["a"]


def test_dates_decimals_and_uuids_become_text():
    values = {
        "day": date(2024, 5, 1),
        "at": datetime(2024, 5, 1, 10, tzinfo=UTC),
        "price": Decimal("12.50"),
        "id": UUID(int=1),
    }
    assert freeze(values) == {
        "day": "2024-05-01",
        "at": "2024-05-01T10:00:00+00:00",
        "price": "12.50",
        "id": "00000000-0000-0000-0000-000000000001",
    }


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ({"user": {"profile": Person()}}, ["context.user.profile is a Person", "register a serializer"]),
        ({"a": [0, print]}, ["context.a.1 is a builtin_function_or_method"]),
        ({"a": {1}}, ["context.a is a set"]),
        ({"a": b"x"}, ["context.a is a bytes"]),
        ({"a": {1: 2}}, ["context.a has the key 1"]),
        ({"a": float("nan")}, ["context.a is nan"]),
        ({"a": Decimal("Infinity")}, ["context.a is Infinity"]),
        ({"a": 10**40}, ["context.a", "40 digits"]),
        ({"a": "x" * 65_537}, ["context.a", "65536"]),
        ({"a": ["x" * 60_000] * 20}, ["context.a.17", "1048576"]),
        ({"a": [[[[[[[[1]]]]]]]]}, ["nested more than 8"]),
        ({"a": list(range(5_000))}, ["more than 5000 values"]),
        ([1], ["a list"]),
    ],
)
def test_a_context_of_anything_else_is_refused_by_path(context, words):
    with pytest.raises(ContextInvalid) as caught:
        freeze(context)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_context_that_contains_itself_is_refused():
    loop = []
    loop.append(loop)
    with pytest.raises(ContextInvalid):
        freeze({"loop": loop})


@pytest.mark.usefixtures("serializers")
def test_an_instance_of_a_registered_type_shows_the_named_fields_only():
    register_serializer(Person, fields=("name", "born", "boss"))
    boss = Person(name="Bo", born=None, boss=None, password="x")
    ada = Person(name="Ada", born=date(1815, 12, 10), boss=boss, password="x")
    assert text("{{ p.name }} {{ p.born|date:'Y' }} {{ p.boss.name }}{{ p.password }}", p=ada) == "Ada 1815 Bo"


@pytest.mark.usefixtures("serializers")
def test_a_registered_field_is_frozen_like_any_other_value():
    register_serializer(Person, fields=("boss",))
    with pytest.raises(ContextInvalid, match=r"context\.p\.boss is a SimpleNamespace"):
        freeze({"p": Person(boss=SimpleNamespace())})
    with pytest.raises(ContextInvalid, match=r"context\.p\.boss cannot be read: AttributeError"):
        freeze({"p": Person()})


@pytest.mark.usefixtures("serializers")
@pytest.mark.parametrize(
    ("kind", "fields"),
    [(Person, ()), (Person, ("_password",)), (Person, ("a b",)), (dict, ("keys",)), (date, ("year",))],
)
def test_a_careless_serializer_is_refused(kind, fields):
    with pytest.raises((ValueError, TypeError), match=kind.__name__):
        register_serializer(kind, fields=fields)


@pytest.mark.usefixtures("serializers")
def test_a_serializer_is_not_widened_by_registering_again():
    register_serializer(Person, fields=("name",))
    register_serializer(Person, fields=("name",))
    with pytest.raises(ValueError, match="other fields"):
        register_serializer(Person, fields=("name", "password"))
