"""The conditions of `{% if %}`.

Django's own take any exception for false, which would hide a spent budget, and compare values of any size for free.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from django.template import TemplateSyntaxError

from .expressions import Expression, Names
from .nodes import MeteredContext

MAX_OPERANDS = 30
MAX_WORDS = 90  # operands and operators; each `not` is a level of recursion

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "is": operator.is_,
    "is not": operator.is_not,
    "in": lambda left, right: left in right,
    "not in": lambda left, right: left not in right,
}
# How tightly each operator binds, as in Django.
BINDING = {"or": 6, "and": 7, "not": 8, "in": 9, "not in": 9} | dict.fromkeys(COMPARISONS.keys() - {"in", "not in"}, 10)


class Condition(Protocol):
    """Something that has a value, which may be true or false."""

    def value(self, context: MeteredContext) -> Any:
        """The value in this context. Raises BudgetExceeded."""


@dataclass(frozen=True, slots=True)
class Operand:
    """A value as it is."""

    expression: Expression

    def value(self, context: MeteredContext) -> Any:
        """The value, None if it is missing."""
        context.budget.step()
        return self.expression.resolve(context, ignore_failures=True)


@dataclass(frozen=True, slots=True)
class Either:
    """`or`"""

    left: Condition
    right: Condition

    def value(self, context: MeteredContext) -> Any:
        """The first of the two that is true."""
        return self.left.value(context) or self.right.value(context)


@dataclass(frozen=True, slots=True)
class Both:
    """`and`"""

    left: Condition
    right: Condition

    def value(self, context: MeteredContext) -> Any:
        """The first of the two that is false."""
        return self.left.value(context) and self.right.value(context)


@dataclass(frozen=True, slots=True)
class Not:
    """`not`, which binds less tightly than a comparison."""

    condition: Condition

    def value(self, context: MeteredContext) -> bool:
        """Whether the condition is false."""
        return not self.condition.value(context)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two values compared; those that cannot be are in no order and not in each other."""

    compare: Callable[[Any, Any], bool]
    left: Condition
    right: Condition

    def value(self, context: MeteredContext) -> bool:
        """Whether the comparison holds."""
        left, right = self.left.value(context), self.right.value(context)
        context.budget.read(left)
        context.budget.read(right)
        if isinstance(left, str) and isinstance(right, str):
            context.budget.search(right, left)
        try:
            return self.compare(left, right)
        except TypeError:
            return False


def parse_condition(words: list[str], parser: Names) -> Condition:
    """Read the words of a condition. Raises TemplateSyntaxError."""
    if len(words) > MAX_WORDS:
        raise TemplateSyntaxError(f"the condition has more than {MAX_WORDS} words; nest two {{% if %}} tags instead")
    return ConditionParser(words, parser).whole()


class ConditionParser:
    """The words of one condition that are not read yet, the next one last."""

    def __init__(self, words: list[str], parser: Names) -> None:
        self.words = list(reversed(words))
        self.parser = parser
        self.operands = 0

    def whole(self) -> Condition:
        """All words as one condition."""
        condition = self.expression(0)
        if self.words:
            raise TemplateSyntaxError(
                f"'{self.words[-1]:.60}' is left over in the condition; put 'and' or 'or' before it"
            )
        return condition

    def expression(self, binding: int) -> Condition:
        """As many words as hold together more tightly than this."""
        condition = self.single()
        while self.words:
            name = self.operator()
            if BINDING.get(name, 0) <= binding:
                break
            del self.words[-len(name.split()) :]
            right = self.expression(BINDING[name])
            if name == "or":
                condition = Either(condition, right)
            elif name == "and":
                condition = Both(condition, right)
            else:
                condition = Comparison(COMPARISONS[name], condition, right)
        return condition

    def operator(self) -> str:
        """The operator that comes next, which may be of two words; another word if there is none."""
        two_words = " ".join(self.words[:-3:-1])
        # Between two values, `not` can only be the first half of an operator.
        return two_words if two_words in COMPARISONS else self.words[-1] if self.words[-1] != "not" else ""

    def single(self) -> Condition:
        """One value, or the opposite of a condition."""
        if not self.words:
            raise TemplateSyntaxError("the condition ends where a value is awaited; write {% if name == value %}")
        word = self.words.pop()
        if word == "not":
            return Not(self.expression(BINDING[word]))
        if word in BINDING:
            raise TemplateSyntaxError(f"'{word}' stands where a value is awaited; write {{% if name == value %}}")
        self.operands += 1
        if self.operands > MAX_OPERANDS:
            raise TemplateSyntaxError(
                f"the condition has more than {MAX_OPERANDS} operands; nest two {{% if %}} tags instead"
            )
        return Operand(Expression(word, self.parser))
