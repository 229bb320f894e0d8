"""From source text to tokens, in one pass.

Django's own lexer takes time quadratic in the length of a line full of openers, so it never sees the text.
"""

import re
from collections.abc import Iterator

from django.template.base import Token, TokenType

from .errors import TemplateInvalid

MAX_SOURCE = 64 * 1024  # characters
MAX_TAGS = 2_000
MAX_TAG = 2_000  # characters between the brackets of one tag
MAX_DEPTH = 20  # blocks within blocks

OPENER = re.compile(r"\{[{%#]")
CLOSERS = {"{{": "}}", "{%": "%}", "{#": "#}"}
KINDS = {"{{": TokenType.VAR, "{%": TokenType.BLOCK}
EXAMPLES = {"{{": "{{ name }}", "{%": "{% if name %}", "{#": "{# note #}"}


def scan(source: str) -> list[Token]:
    """Split a template into text, variable and block tokens; comments are dropped.

    Takes time linear in the source. Raises TemplateInvalid for a source that is too long, holds NUL or too many tags,
    or has a tag that is empty, too long or not closed on its own line.
    """
    if len(source) > MAX_SOURCE:
        raise TemplateInvalid(f"the template is longer than {MAX_SOURCE} characters; shorten it")
    if "\0" in source:
        line = source.count("\n", 0, source.index("\0")) + 1
        raise TemplateInvalid(f"line {line}: there is a NUL character; remove it")
    return list(tokens(source))


def tokens(source: str) -> Iterator[Token]:
    """The tokens of a source, each with the line it starts on (1 is the first)."""
    line, line_end, position, tags = 1, -1, 0, 0
    while match := OPENER.search(source, position):
        start, opener = match.start(), match[0]
        if start > position:
            yield Token(TokenType.TEXT, source[position:start], None, line)
        line += source.count("\n", position, start)
        if start > line_end:
            # Sought once a line: sought once a tag, a long line full of tags takes quadratic time.
            line_end = end_of_line(source, start)
        end = source.find(CLOSERS[opener], start + 2, line_end)
        if end < 0:
            raise TemplateInvalid(
                f"line {line}: '{opener}' is not closed on its line; write {EXAMPLES[opener]}, "
                f"or put a space between the brackets if they are plain text"
            )
        tags += 1
        if tags > MAX_TAGS:
            raise TemplateInvalid(f"line {line}: there are more than {MAX_TAGS} tags; split the template")
        if opener in KINDS:
            yield Token(KINDS[opener], contents(source[start + 2 : end], opener, line), None, line)
        position = end + 2
    if position < len(source):
        yield Token(TokenType.TEXT, source[position:], None, line)


def end_of_line(source: str, start: int) -> int:
    """Where the line ends that has this position on it."""
    end = source.find("\n", start)
    return end if end >= 0 else len(source)


def contents(text: str, opener: str, line: int) -> str:
    """What stands between the brackets of a tag, if that can be a tag at all."""
    if not (stripped := text.strip()):
        raise TemplateInvalid(f"line {line}: the tag is empty; write {EXAMPLES[opener]}")
    if len(stripped) > MAX_TAG:
        raise TemplateInvalid(f"line {line}: the tag is longer than {MAX_TAG} characters; shorten it")
    return stripped
