"""The content of one message: a subject, a text and an HTML body, rendered from one context."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .budget import Budget
from .context import freeze
from .engine import CompiledTemplate, compile_template
from .errors import TemplateInvalid

LINE_END = re.compile(r"\r\n?")
# All but tab and line feed; a lone surrogate cannot be encoded, so no provider could be given it.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class Rendered:
    """What one recipient gets; '' for a part that has no template."""

    subject: str
    text: str
    html: str


@dataclass(frozen=True, slots=True)
class CompiledContent:
    """Compiled templates of one message; may be kept and shared between threads.

    `variables` are the names that the templates expect of a context, without what they set themselves.
    """

    subject: CompiledTemplate
    text: CompiledTemplate
    html: CompiledTemplate
    variables: frozenset[str]

    def render(self, context: Mapping[str, object]) -> Rendered:
        """The content for one recipient; all parts share one budget. Raises TemplateRenderError, and nothing else."""
        frozen = freeze(context)
        budget = Budget()
        return Rendered(
            subject=one_line(self.subject.render_frozen(frozen, budget)),
            text=printable(self.text.render_frozen(frozen, budget)),
            html=printable(self.html.render_frozen(frozen, budget)),
        )


def compile_content(*, subject: str, text: str, html: str) -> CompiledContent:
    """Read the templates of one message; values are escaped in `html` only.

    Raises TemplateInvalid, naming the part, the line (1 is the first), the culprit and the remedy.
    """
    sources = {"subject": subject, "text": text, "html": html}
    parts = {part: compile_part(part, source) for part, source in sources.items()}
    return CompiledContent(**parts, variables=frozenset().union(*(part.variables for part in parts.values())))


def compile_part(part: str, source: str) -> CompiledTemplate:
    """Read one of the templates of a message. Raises TemplateInvalid, naming the part."""
    try:
        return compile_template(source, autoescape=part == "html")
    except TemplateInvalid as error:
        raise TemplateInvalid(f"{part}, {error}") from error


def render_message(*, subject: str, text: str, html: str, context: Mapping[str, object]) -> Rendered:
    """Read and render in one go, as for a preview. Raises TemplateInvalid, TemplateRenderError."""
    return compile_content(subject=subject, text=text, html=html).render(context)


def printable(text: str) -> str:
    """Text with `\\n` line ends and without control characters and lone surrogates."""
    if text.replace("\n", "").isprintable():
        return text
    return UNPRINTABLE.sub("", LINE_END.sub("\n", text))


def one_line(text: str) -> str:
    """Text fit for a header: line ends of any kind and runs of white space become one space."""
    line = " ".join(text.split())
    return line if line.isprintable() else UNPRINTABLE.sub("", line)
