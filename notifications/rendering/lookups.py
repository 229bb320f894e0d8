"""How a template reaches a value: by the key of a dict and the index of a list, and in no other way.

Nothing here asks a value for an attribute or calls it, so what a template can reach is what the context holds.
"""

import re
from typing import Any

from django.template import Context, TemplateSyntaxError

MAX_NAME = 200  # characters of a dotted name
MAX_PARTS = 32  # the deepest context within the deepest loop's parentloop chain stays below

NAME = re.compile(r"[^\W\d_]\w*")
PART = re.compile(r"[^\W_]\w*")
INDEX = re.compile(r"[0-9]{1,4}")


class Lookup:
    """A dotted name such as `ticket.lines.0.price`."""

    __slots__ = ("path", "root")

    def __init__(self, name: str) -> None:
        """Read a dotted name. Raises TemplateSyntaxError if it is none."""
        root, *parts = name.split(".")
        if len(name) > MAX_NAME or len(parts) >= MAX_PARTS:
            raise TemplateSyntaxError(f"the name '{name[:40]}…' is too long; use fewer or shorter parts")
        if any(part.startswith("_") for part in (root, *parts)):
            raise TemplateSyntaxError(
                f"'{name}' has a part that starts with '_'; such values cannot be read, rename it"
            )
        if not NAME.fullmatch(root) or not all(PART.fullmatch(part) for part in parts):
            raise TemplateSyntaxError(f"'{name}' is neither a name nor a number; write it like order.lines.0.price")
        self.root = root
        self.path = tuple((part, int(part) if INDEX.fullmatch(part) else None) for part in parts)

    def resolve(self, context: Context, missing: Any = "") -> Any:
        """Find the value; `missing` if there is none."""
        for scope in reversed(context.dicts):
            if self.root in scope:
                value = scope[self.root]
                break
        else:
            return missing
        for key, index in self.path:
            if isinstance(value, dict):
                if key in value:
                    value = value[key]
                elif key == "items":
                    # For `{% for key, value in prices.items %}`: a view costs nothing, however often it is made.
                    value = value.items()
                else:
                    return missing
            elif isinstance(value, list) and index is not None and index < len(value):
                value = value[index]
            else:
                return missing
        return value
