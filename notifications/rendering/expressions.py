"""What stands in a variable tag or a tag's argument: a value and the filters applied to it.

Django's own expression pattern is searched for from every position, which takes quadratic time on a long tag; here
each piece is matched once, where the last one ended.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol

from django.template import TemplateSyntaxError
from django.utils.safestring import SafeData, SafeString, mark_safe

from .budget import MAX_OUTPUT, Budget
from .errors import BudgetExceeded
from .lookups import Lookup

MAX_FILTERS = 8
MAX_TEXT_ARGUMENT = 200  # characters
MAX_SIZE_ARGUMENT = 1_000
MAX_NUMBER = 40  # characters of a number, literal or in text

STRING = r"""(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"|'[^'\\]*+(?:\\.[^'\\]*+)*+')"""
OPERAND = re.compile(rf"(?P<text>{STRING})|(?P<name>[\w.+-]++)")
FILTER = re.compile(rf"\s*+\|\s*+(?P<filter>\w++)(?::(?:(?P<text>{STRING})|(?P<name>[\w.+-]++)))?+")
WORD = re.compile(rf"""\s*+((?:[^\s"']|{STRING})++)""")
NUMBER = re.compile(r"[+-]?[0-9]+(?P<fraction>\.[0-9]+)?")
CONSTANTS = {"True": True, "False": False, "None": None}


def plain(value: Any) -> str:
    """A value as text: nothing for null, and for lists and dicts, whose text is never meant for a recipient."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, (int, float)) else ""


class Takes(Enum):
    """What a filter's argument may be."""

    NOTHING = "no argument"
    SIZE = f"a whole number up to {MAX_SIZE_ARGUMENT}"
    TEXT = f"text of up to {MAX_TEXT_ARGUMENT} characters"
    ANYTHING = "any value"


class Surroundings(Protocol):
    """What a filter may know of the render it is part of."""

    autoescape: bool
    budget: Budget


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter that templates may use.

    `price` is charged for each character of a text value, `base` for each call; one unit stands for some 30 ns.
    `keeps_safe` says that HTML which needs no escaping needs none afterwards either.
    """

    name: str
    call: Callable[[Any, Any, Surroundings], Any]
    takes: Takes = Takes.NOTHING
    optional: bool = False
    price: int = 1
    base: int = 0
    keeps_safe: bool = False

    def apply(self, value: Any, argument: Any, context: Surroundings) -> Any:
        """The filtered value, or '' where the filter cannot make sense of it. Raises BudgetExceeded."""
        budget = context.budget
        budget.step()
        budget.charge(self.base + (self.price * len(value) if isinstance(value, str) else 0))
        try:
            result = self.call(value, self.admit(argument), context)
        except BudgetExceeded:
            raise
        except Exception:  # noqa: BLE001 a value that a filter cannot handle must not keep a message from being sent
            return ""
        if isinstance(result, str):
            if len(result) > MAX_OUTPUT:
                raise BudgetExceeded(f"'{self.name}' makes more than {MAX_OUTPUT} characters; give it a shorter value")
            if self.keeps_safe and isinstance(value, SafeData):
                return mark_safe(result)  # noqa: S308 it was safe before, and the filter keeps it so
        return result

    def admit(self, argument: Any) -> Any:
        """The argument in the form that the filter takes. Raises ValueError if it has none."""
        if argument is None or self.takes is Takes.ANYTHING:
            return argument
        text = plain(argument)
        if len(text) > (MAX_TEXT_ARGUMENT if self.takes is Takes.TEXT else MAX_NUMBER):
            raise ValueError
        if self.takes is Takes.TEXT:
            return text
        size = int(text)
        if abs(size) > MAX_SIZE_ARGUMENT:
            raise ValueError
        return size


class Step(NamedTuple):
    """A filter in its place, with its argument: None, a literal or a Lookup."""

    filter: Filter
    argument: Any


class Names(Protocol):
    """What an expression needs of the parser that reads it."""

    def look_up(self, name: str) -> Lookup:
        """A lookup, noted among the names that the template uses."""

    def offered_filter(self, name: str) -> Filter:
        """The filter of a name. Raises TemplateSyntaxError if templates may not use it."""


class Expression:
    """`value|filter:argument|filter`, ready to be resolved any number of times, by any number of threads."""

    __slots__ = ("operand", "source", "steps")

    is_var = False  # asked by Django's parser, which would then look into its own kind of variable

    def __init__(self, source: str, parser: Names) -> None:
        """Read an expression. Raises TemplateSyntaxError, naming what cannot be understood."""
        self.source = source
        if source.startswith("_("):
            raise TemplateSyntaxError("'_(' is not offered; write one template for each language")
        match = OPERAND.match(source)
        if match is None:
            raise TemplateSyntaxError(f"'{source:.60}' does not start with a name, a number or a closed quoted text")
        self.operand = operand(match, parser)
        self.steps: list[Step] = []
        while match.end() < len(source):
            position = match.end()
            match = FILTER.match(source, position)
            if match is None:
                raise TemplateSyntaxError(
                    f"'{source[position : position + 60]}' cannot be understood after '{source[:position]:.60}'; "
                    f'filters are written |name or |name:"text", and operators need a space on both sides'
                )
            self.steps.append(step(match, parser))
        if len(self.steps) > MAX_FILTERS:
            raise TemplateSyntaxError(f"'{source:.60}' has more than {MAX_FILTERS} filters; use fewer")

    def resolve(self, context: Any, ignore_failures: bool = False) -> Any:
        """The value in this context; a missing one is '', or None with ignore_failures. Raises BudgetExceeded."""
        value = self.operand
        if isinstance(value, Lookup):
            value = value.resolve(context, None if ignore_failures else "")
        for used, argument in self.steps:
            value = used.apply(value, argument.resolve(context) if isinstance(argument, Lookup) else argument, context)
        return value


def operand(match: re.Match[str], parser: Names) -> Any:
    """A literal value or a Lookup, from a match that has the groups `text` and `name`."""
    if (text := match["text"]) is not None:
        # The author's own words are as trusted as the text around the tag.
        return literal(text)
    name = match["name"]
    if name in CONSTANTS:
        return CONSTANTS[name]
    if number := NUMBER.fullmatch(name):
        if len(name) > MAX_NUMBER:
            raise TemplateSyntaxError(f"the number {name[:20]}… has more than {MAX_NUMBER} digits; write it as text")
        return float(name) if number["fraction"] else int(name)
    return parser.look_up(name)


def literal(quoted: str) -> SafeString:
    """The text between two quotes, with escaped quotes and backslashes resolved."""
    quote = quoted[0]
    return SafeString(quoted[1:-1].replace(f"\\{quote}", quote).replace("\\\\", "\\"))


def step(match: re.Match[str], parser: Names) -> Step:
    """A filter with its argument, if the two go together. Raises TemplateSyntaxError if not."""
    used = parser.offered_filter(match["filter"])
    given = match["text"] is not None or match["name"] is not None
    if not given:
        if used.takes is not Takes.NOTHING and not used.optional:
            raise TemplateSyntaxError(f"the filter '{used.name}' needs an argument: {used.takes.value}")
        return Step(used, None)
    if used.takes is Takes.NOTHING:
        raise TemplateSyntaxError(f"the filter '{used.name}' takes no argument; leave out what follows the colon")
    argument = operand(match, parser)
    if not isinstance(argument, Lookup):
        too_long = isinstance(argument, str) and len(argument) > MAX_TEXT_ARGUMENT
        try:
            used.admit(argument)
        except ValueError:
            too_long = True
        if too_long:
            raise TemplateSyntaxError(f"the filter '{used.name}' cannot use this argument; it takes {used.takes.value}")
    return Step(used, argument)


def words(contents: str) -> list[str]:
    """Split what is in a tag at spaces outside of quotes. Raises TemplateSyntaxError for an open quote."""
    found = []
    position = 0
    while position < len(contents):
        match = WORD.match(contents, position)
        if match is None:
            raise TemplateSyntaxError(f"a quote is not closed in '{contents[position : position + 60].strip()}'")
        found.append(match[1])
        position = match.end()
    return found
