"""Renders templates that tenants have written, and that are therefore treated as hostile.

    content = compile_content(subject="Hi {{ name }}", text="…", html="…")   # once a version, may be cached
    rendered = content.render({"name": "Ada"})                               # once a recipient

A template can reach what its context holds and nothing else; what a render may cost is bounded, however the template
is written.
"""

from .content import CompiledContent, Rendered, compile_content, render_message
from .context import JSON, freeze, register_serializer
from .engine import CompiledTemplate, compile_template
from .errors import BudgetExceeded, ContextInvalid, TemplateInvalid, TemplateRenderError

__all__ = [
    "JSON",
    "BudgetExceeded",
    "CompiledContent",
    "CompiledTemplate",
    "ContextInvalid",
    "Rendered",
    "TemplateInvalid",
    "TemplateRenderError",
    "compile_content",
    "compile_template",
    "freeze",
    "register_serializer",
    "render_message",
]
