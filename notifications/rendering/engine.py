"""The restricted engine: compiles templates whose authors are not trusted."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NoReturn, cast

from django.template import Engine, Library, TemplateSyntaxError
from django.template.base import Parser, TextNode, Token, VariableNode

from .budget import Budget
from .context import JSON, freeze
from .errors import TemplateInvalid, TemplateRenderError
from .expressions import Expression, Filter
from .filters import FILTERS
from .lookups import Lookup
from .nodes import Body, MeteredContext, Placeholder, Text
from .scan import MAX_DEPTH, scan

INNER_TAGS = {"elif", "else", "endif", "empty", "endfor", "endwith", "endcomment"}


class RestrictedParser(Parser):
    """Django's parser with our own expressions and nodes; notes which names a template expects from its context."""

    def __init__(self, tokens: list[Token], builtins: list[Library]) -> None:
        super().__init__(tokens, {}, builtins)
        self.variables: set[str] = set()
        self.bound: list[set[str]] = []

    def body(self, until: tuple[str, ...] = (), names: Iterable[str] = ()) -> Body:
        """Read up to one of these tags, within which the template itself sets names. Raises TemplateSyntaxError."""
        if len(self.bound) > MAX_DEPTH:
            raise TemplateSyntaxError(f"blocks are nested more than {MAX_DEPTH} levels deep; nest fewer")
        self.bound.append(set(names))
        pieces: list[Any] = self.parse(until)
        self.bound.pop()
        return Body(pieces)

    def bind(self, name: str) -> None:
        """Note that the template itself sets this name from here on."""
        self.bound[-1].add(name)

    def look_up(self, name: str) -> Lookup:
        """A lookup; its root is noted unless the template itself sets it. Raises TemplateSyntaxError."""
        lookup = Lookup(name)
        if not any(lookup.root in names for names in self.bound):
            self.variables.add(lookup.root)
        return lookup

    def compile_filter(self, token: str) -> Expression:  # type: ignore[override]
        """Read an expression. Raises TemplateSyntaxError."""
        return Expression(token, self)

    def offered_filter(self, name: str) -> Filter:
        """The filter of a name. Raises TemplateSyntaxError if it is not offered."""
        if found := FILTERS.get(name):
            return found
        raise TemplateSyntaxError(f"unknown filter '{name:.60}'; {available(name, FILTERS)}")

    def extend_nodelist(self, nodelist: list[Any], node: Any, token: Token) -> None:  # noqa: ARG002 as Django calls it
        """Put our own counted pieces in the place of Django's nodes, and nothing in that of comments."""
        if isinstance(node, TextNode):
            nodelist.append(Text(node.s))
        elif isinstance(node, VariableNode):
            nodelist.append(Placeholder(cast("Expression", node.filter_expression)))
        elif node is not None:
            nodelist.append(node)

    def invalid_block_tag(self, token: Token, command: str, parse_until: Iterable[str] | None = None) -> NoReturn:
        """Say which tags there are, or which belongs here."""
        if command in INNER_TAGS:
            raise self.error(token, f"'{command:.60}' has no open block here; {closes(parse_until)}")
        raise self.error(token, f"unknown tag '{command:.60}'; {available(command, self.tags)}")

    def unclosed_block_tag(self, parse_until: Iterable[str]) -> NoReturn:
        """Say what would close the tag."""
        command, token = self.command_stack.pop()
        raise self.error(token, f"'{command}' is not closed; write {{% {list(parse_until)[-1]} %}} where it ends")


def closes(tags: Iterable[str] | None) -> str:
    """The remedy for a tag that continues or closes another block than the open one."""
    if not tags:
        return "remove it, or open the block before it"
    return f"write {' or '.join(f'{{% {tag} %}}' for tag in tags)} first"


def available(wanted: str, offered: Iterable[str]) -> str:
    """The remedy for an unknown name."""
    names = sorted(offered)
    close = get_close_matches(wanted[:60], names, 1)
    return f"{f"did you mean '{close[0]}'? " if close else ''}available: {', '.join(names)}"


class RestrictedEngine(Engine):
    """An engine that offers our own tags and filters only, and can load nothing."""

    # Django puts these before any other built-ins, so its own must not be named here.
    default_builtins = ["notifications.rendering.library"]

    def __init__(self) -> None:
        super().__init__(dirs=[], loaders=[], context_processors=[], libraries={}, debug=False, autoescape=True)

    def from_string(self, template_code: str) -> NoReturn:  # noqa: ARG002 as Django calls it
        """Refuse: Django would read the source with its own lexer and parser."""
        raise TypeError("templates of tenants are read by compile_template")


ENGINE = RestrictedEngine()


class CompiledTemplate:
    """A template that can be rendered any number of times, by any number of threads at once."""

    __slots__ = ("autoescape", "body", "variables")

    def __init__(self, body: Body, variables: frozenset[str], *, autoescape: bool) -> None:
        self.body = body
        self.variables = variables
        self.autoescape = autoescape

    def render(self, context: Mapping[str, JSON], budget: Budget | None = None) -> str:
        """The text for one recipient. Raises TemplateRenderError, and nothing else."""
        return self.render_frozen(freeze(context), budget or Budget())

    def render_frozen(self, frozen: dict[str, JSON], budget: Budget) -> str:
        """The text for a context that `freeze` has made, on a budget that several parts may share."""
        try:
            return self.body.render(MeteredContext(frozen, budget, autoescape=self.autoescape))
        except TemplateRenderError:
            raise
        except Exception as error:
            raise TemplateRenderError(f"the template cannot be rendered: {type(error).__name__}") from error


def compile_template(source: str, *, autoescape: bool) -> CompiledTemplate:
    """Read a template. Raises TemplateInvalid, naming the line (1 is the first), the culprit and the remedy."""
    try:
        parser = RestrictedParser(scan(source), ENGINE.template_builtins)
        body = parser.body()
    except TemplateInvalid:
        raise
    except TemplateSyntaxError as error:
        token = getattr(error, "token", None)
        line = token.lineno if token else 1
        raise TemplateInvalid(f"line {line}: {error}") from error
    except Exception as error:
        raise TemplateInvalid(f"the template cannot be read: {type(error).__name__}; simplify it") from error
    return CompiledTemplate(body, frozenset(parser.variables), autoescape=autoescape)
