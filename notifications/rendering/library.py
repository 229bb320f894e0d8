"""The tags that templates may use; every other tag is off, and so is every filter that is not in filters.py.

No tag here renders while parsing, reads another template, or switches escaping off.
"""

import re
from typing import TYPE_CHECKING

from django.template import Library, TemplateSyntaxError
from django.template.base import Token

from .conditions import Condition, parse_condition
from .expressions import CONSTANTS, words
from .filters import MAX_DATE_FORMAT
from .lookups import NAME
from .nodes import Body, FirstOf, For, If, Now, With

if TYPE_CHECKING:
    from .engine import RestrictedParser

register = Library()

ASSIGNMENT = re.compile(r"(\w++)=(.+)", re.DOTALL)


@register.tag("if")
def do_if(parser: "RestrictedParser", token: Token) -> If:
    """`{% if %}` … `{% elif %}` … `{% else %}` … `{% endif %}`"""
    branches: list[tuple[Condition | None, Body]] = []
    tag, *rest = words(token.contents)
    while tag != "endif":
        if tag == "else" and rest:
            raise TemplateSyntaxError("'else' takes nothing after it; write {% elif … %} for another condition")
        condition = None if tag == "else" else parse_condition(rest, parser)
        branches.append((condition, parser.body(("endif",) if tag == "else" else ("elif", "else", "endif"))))
        tag, *rest = words(parser.next_token().contents)
    return If(branches)


@register.tag("for")
def do_for(parser: "RestrictedParser", token: Token) -> For:
    """`{% for item in items reversed %}` … `{% empty %}` … `{% endfor %}`"""
    _, *rest = words(token.contents)
    backwards = rest[-1:] == ["reversed"]
    if backwards:
        rest.pop()
    if len(rest) < 3 or rest[-2] != "in":
        raise TemplateSyntaxError("'for' is written {% for item in items %}, with 'reversed' after it if need be")
    names = [valid_name(name.strip()) for name in " ".join(rest[:-2]).split(",")]
    values = parser.compile_filter(rest[-1])
    body = parser.body(("empty", "endfor"), {*names, "forloop"})
    empty = Body()
    if parser.next_token().contents == "empty":
        empty = parser.body(("endfor",))
        parser.delete_first_token()
    return For(names, values, backwards=backwards, body=body, empty=empty)


@register.tag("with")
def do_with(parser: "RestrictedParser", token: Token) -> With:
    """`{% with name=value %}` … `{% endwith %}`"""
    _, *rest = words(token.contents)
    if len(rest) == 3 and rest[1] == "as":
        rest = [f"{rest[2]}={rest[0]}"]
    values = {}
    for word in rest:
        match = ASSIGNMENT.fullmatch(word)
        if match is None:
            raise TemplateSyntaxError(
                f"'with' cannot understand '{word:.60}'; write {{% with name=value other=value %}}"
            )
        values[valid_name(match[1])] = parser.compile_filter(match[2])
    if not values:
        raise TemplateSyntaxError("'with' needs at least one assignment; write {% with name=value %}")
    body = parser.body(("endwith",), set(values))
    parser.delete_first_token()
    return With(values, body)


@register.tag("comment")
def do_comment(parser: "RestrictedParser", token: Token) -> None:  # noqa: ARG001 as Django calls it
    """`{% comment %}` … `{% endcomment %}`"""
    parser.skip_past("endcomment")


@register.tag("firstof")
def do_firstof(parser: "RestrictedParser", token: Token) -> FirstOf:
    """`{% firstof nickname name "friend" as who %}`"""
    rest, name = split_as(words(token.contents)[1:])
    if not rest:
        raise TemplateSyntaxError("'firstof' needs at least one value; write {% firstof nickname name %}")
    return named(parser, FirstOf([parser.compile_filter(word) for word in rest]), name)


@register.tag("now")
def do_now(parser: "RestrictedParser", token: Token) -> Now:
    """`{% now "Y" as year %}`"""
    rest, name = split_as(words(token.contents)[1:])
    if len(rest) != 1 or rest[0][0] not in "\"'" or not 2 < len(rest[0]) <= MAX_DATE_FORMAT + 2:
        raise TemplateSyntaxError(
            f"'now' needs one date format in quotes, of up to {MAX_DATE_FORMAT} characters; write {{% now \"Y-m-d\" %}}"
        )
    return named(parser, Now(rest[0][1:-1]), name)


def split_as(rest: list[str]) -> tuple[list[str], str]:
    """What a tag is given, and the name after `as` ('' if there is none)."""
    if len(rest) > 2 and rest[-2] == "as":
        return rest[:-2], valid_name(rest[-1])
    return rest, ""


def named[N: (FirstOf, Now)](parser: "RestrictedParser", node: N, name: str) -> N:
    """The node, keeping its text under the name if it has one."""
    if name:
        node.name = name
        parser.bind(name)
    return node


def valid_name(name: str) -> str:
    """The name, if a template may give it to a value. Raises TemplateSyntaxError if not."""
    if not NAME.fullmatch(name) or name in CONSTANTS or name == "forloop":
        raise TemplateSyntaxError(f"'{name:.60}' cannot be a name; use letters, digits and '_', a letter first")
    return name
