"""What a compiled template is made of; each piece counts what it does."""

import html
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from django.conf import settings
from django.template import Context
from django.utils import timezone
from django.utils.formats import localize
from django.utils.html import escape
from django.utils.safestring import SafeData

from .budget import ITEMS, Budget
from .context import JSON
from .errors import TemplateRenderError
from .expressions import Expression
from .filters import DATE_COST, format_date

if TYPE_CHECKING:
    from .conditions import Condition

FLOAT_COST = 200  # in characters of work; the separators of the active language are looked up


class MeteredContext(Context):
    """The variables of one render and its budget."""

    def __init__(self, frozen: dict[str, JSON], budget: Budget, *, autoescape: bool) -> None:
        super().__init__(frozen, autoescape=autoescape)
        self.budget = budget
        # Tags may set names; the next part of the same message must not see them.
        self.push()


class Piece(Protocol):
    """A piece of a template."""

    def render(self, context: MeteredContext) -> str:
        """The piece as text. Raises TemplateRenderError."""


class Body:
    """Pieces in a row: a whole template, or what stands between two tags."""

    __slots__ = ("pieces",)

    def __init__(self, pieces: Sequence[Piece] = ()) -> None:
        self.pieces = tuple(pieces)

    def render(self, context: MeteredContext) -> str:
        """All pieces as one text."""
        return "".join([piece.render(context) for piece in self.pieces])


def shown(value: Any, context: MeteredContext) -> str:
    """A value as it stands in the message: escaped in HTML, nothing for null, lists and dicts."""
    if isinstance(value, str):
        return escape(value) if context.autoescape and not isinstance(value, SafeData) else value
    if isinstance(value, bool) or (isinstance(value, int) and not settings.USE_THOUSAND_SEPARATOR):
        return str(value)
    if isinstance(value, (int, float)):
        context.budget.charge(FLOAT_COST)
        return str(localize(value))
    return ""


class Text:
    """What stands between the tags."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def render(self, context: MeteredContext) -> str:
        """The text as it is."""
        return context.budget.write(self.text)


class Placeholder:
    """`{{ name|filter }}`"""

    __slots__ = ("expression",)

    def __init__(self, expression: Expression) -> None:
        self.expression = expression

    def render(self, context: MeteredContext) -> str:
        """The value, escaped in HTML."""
        budget = context.budget
        budget.step()
        value = self.expression.resolve(context)
        if type(value) is str:
            # The common case; Django's own `escape` does the same, and then marks what it made.
            return budget.write(html.escape(value) if context.autoescape else value)
        return budget.write(shown(value, context))


class If:
    """`{% if %}` with its branches; the condition of `{% else %}` is None."""

    __slots__ = ("branches",)

    def __init__(self, branches: Sequence[tuple["Condition | None", Body]]) -> None:
        self.branches = branches

    def render(self, context: MeteredContext) -> str:
        """The first branch whose condition holds."""
        context.budget.step()
        for condition, body in self.branches:
            if condition is None or condition.value(context):
                return body.render(context)
        return ""


class For:
    """`{% for %}` over a list, a dict's keys or a dict's items; over nothing else, least of all a text's letters."""

    __slots__ = ("backwards", "body", "empty", "names", "values")

    def __init__(self, names: Sequence[str], values: Expression, *, backwards: bool, body: Body, empty: Body) -> None:
        self.names = names
        self.values = values
        self.backwards = backwards
        self.body = body
        self.empty = empty

    def render(self, context: MeteredContext) -> str:
        """The body once for each value, or what follows `{% empty %}`."""
        budget = context.budget
        budget.step()
        values = self.values.resolve(context, ignore_failures=True)
        if not isinstance(values, (list, dict, ITEMS)) or not values:
            return self.empty.render(context)
        rounds = len(values)
        output: list[str] = []
        outer = context.get("forloop", {})
        with context.push() as scope:
            loop = scope["forloop"] = {"parentloop": outer, "length": rounds}
            for index, value in enumerate(reversed(values) if self.backwards else values):
                budget.step()
                loop["counter0"] = index
                loop["counter"] = index + 1
                loop["revcounter"] = rounds - index
                loop["revcounter0"] = rounds - index - 1
                loop["first"] = index == 0
                loop["last"] = index == rounds - 1
                self.assign(scope, value)
                output.append(self.body.render(context))
        return "".join(output)

    def assign(self, scope: dict[str, Any], value: Any) -> None:
        """Give the loop's names their values for one round."""
        if len(self.names) == 1:
            scope[self.names[0]] = value
        elif isinstance(value, (list, tuple)) and len(value) == len(self.names):
            scope.update(zip(self.names, value, strict=True))
        else:
            names = ", ".join(self.names)
            raise TemplateRenderError(
                f"'{{% for {names} in {self.values.source} %}}' needs lists of {len(self.names)} values each"
            )


class With:
    """`{% with name=value %}`"""

    __slots__ = ("body", "values")

    def __init__(self, values: Mapping[str, Expression], body: Body) -> None:
        self.values = values
        self.body = body

    def render(self, context: MeteredContext) -> str:
        """The body, with the names set."""
        context.budget.step()
        with context.push({name: value.resolve(context) for name, value in self.values.items()}):
            return self.body.render(context)


class Assignable:
    """A tag that shows a text, or keeps it under a name with `as name`."""

    name = ""

    def text(self, context: MeteredContext) -> str:
        """What to show or to keep."""
        raise NotImplementedError

    def render(self, context: MeteredContext) -> str:
        """The text, or nothing if it is kept."""
        context.budget.step()
        text = self.text(context)
        if not self.name:
            return context.budget.write(text)
        context.budget.charge(len(text))
        # What `escape` made is marked as such, and not escaped again when it is shown.
        context[self.name] = text
        return ""


class FirstOf(Assignable):
    """`{% firstof a b "fallback" %}`"""

    def __init__(self, values: Sequence[Expression]) -> None:
        self.values = values

    def text(self, context: MeteredContext) -> str:
        """The first value that is true."""
        for expression in self.values:
            context.budget.step()
            if value := expression.resolve(context, ignore_failures=True):
                return shown(value, context)
        return ""


class Now(Assignable):
    """`{% now "Y" %}`, in the current time zone."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def text(self, context: MeteredContext) -> str:
        """The present date or time."""
        context.budget.charge(DATE_COST)
        return format_date(datetime.now(timezone.get_current_timezone()), self.pattern, context)
