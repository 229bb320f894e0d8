"""What a template may see: a private copy of plain JSON values.

A template author can reach whatever the context holds, so nothing with attributes or methods may be in it.
"""

import math
from collections.abc import Callable, Mapping
from datetime import date, time
from decimal import Decimal
from operator import methodcaller
from typing import Any
from uuid import UUID

from .errors import ContextInvalid

type JSON = bool | int | float | str | list[JSON] | dict[str, JSON] | None

MAX_VALUES = 5_000
MAX_DEPTH = 8
MAX_STRING = 64 * 1024  # characters
MAX_KEY = 200  # characters
MAX_TEXT = 1024 * 1024  # characters in all strings and keys together
MAX_INTEGER = 10**40  # printing an integer takes time quadratic in its digits

REMEDY = "register a serializer or pass plain values"

REGISTERED_SERIALIZERS: dict[type, tuple[str, ...]] = {}

AS_TEXT: dict[type, Callable[[Any], str]] = {
    date: methodcaller("isoformat"),  # and datetime, which is a date
    time: methodcaller("isoformat"),
    Decimal: str,
    UUID: str,
}
# JSON types are copied value by value; a serializer for one of them would never be asked.
NOT_SERIALIZED = (str, int, float, list, tuple, dict, type(None), *AS_TEXT)


def register_serializer(model_or_type: type, fields: tuple[str, ...]) -> None:
    """Let instances of a type into contexts, as a dict of exactly these fields.

    For platform code, at start-up. Raises ValueError for an empty or private field list and when the type is
    registered already with other fields, TypeError for a type that is plain data.
    """
    if not fields or any(not field.isidentifier() or field.startswith("_") for field in fields):
        raise ValueError(f"{model_or_type.__name__}: name at least one field, and none that starts with '_'")
    if issubclass(model_or_type, NOT_SERIALIZED):
        raise TypeError(f"{model_or_type.__name__} is plain data and needs no serializer")
    if REGISTERED_SERIALIZERS.setdefault(model_or_type, tuple(fields)) != tuple(fields):
        raise ValueError(f"{model_or_type.__name__} is registered already, with other fields")


def freeze(context: Mapping[str, object], *, name: str = "context") -> dict[str, JSON]:
    """Copy a context down to plain JSON values that no render can share with another.

    Dates, times, decimals and UUIDs become text; instances of registered types become dicts. Raises ContextInvalid,
    naming the path, for anything else and for what is too big or too deep.
    """
    if not isinstance(context, Mapping):
        raise ContextInvalid(f"{name} is a {type(context).__name__}; pass a dict of named values")
    return Freezer().mapping(context, name, 1)


class Freezer:
    """One copy in progress and how much it holds so far."""

    __slots__ = ("text", "values")

    def __init__(self) -> None:
        self.values = 0
        self.text = 0

    def value(self, value: object, path: str, depth: int) -> JSON:
        """A copy of any value that may be held. Raises ContextInvalid."""
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            # A subclass may call itself safe HTML; what comes in as data is never that.
            return self.string(str.__str__(value), path, MAX_STRING)
        if isinstance(value, (int, float)):
            return number(value, path)
        if isinstance(value, dict):
            return self.mapping(value, path, depth + 1)
        if isinstance(value, (list, tuple)):
            return self.sequence(value, path, depth + 1)
        return self.other(value, path, depth)

    def mapping(self, mapping: Mapping[Any, object], path: str, depth: int) -> dict[str, JSON]:
        """A copy of a dict with text for keys. Raises ContextInvalid."""
        self.enter(len(mapping), path, depth)
        frozen = {}
        for key, value in mapping.items():
            if not isinstance(key, str):
                raise ContextInvalid(f"{path} has the key {key!r:.50}, which is no text; name its values by text")
            name = self.string(str.__str__(key), f"a key of {path}", MAX_KEY)
            frozen[name] = self.value(value, f"{path}.{name}", depth)
        return frozen

    def sequence(self, sequence: list[object] | tuple[object, ...], path: str, depth: int) -> list[JSON]:
        """A copy of a list or tuple, as a list. Raises ContextInvalid."""
        self.enter(len(sequence), path, depth)
        return [self.value(value, f"{path}.{index}", depth) for index, value in enumerate(sequence)]

    def other(self, value: object, path: str, depth: int) -> JSON:
        """What is no JSON, but may be turned into it. Raises ContextInvalid."""
        for known, as_text in AS_TEXT.items():
            if isinstance(value, known):
                if isinstance(value, Decimal) and not value.is_finite():
                    raise ContextInvalid(f"{path} is {value}; pass a finite number or null")
                return self.string(as_text(value), path, MAX_STRING)
        for kind in type(value).__mro__:
            if fields := REGISTERED_SERIALIZERS.get(kind):
                return self.instance(value, fields, path, depth + 1)
        raise ContextInvalid(f"{path} is a {type(value).__name__}, which templates may not hold; {REMEDY}")

    def instance(self, value: object, fields: tuple[str, ...], path: str, depth: int) -> JSON:
        """The registered fields of an instance, as a dict. Raises ContextInvalid."""
        self.enter(len(fields), path, depth)
        frozen = {}
        for field in fields:
            try:
                held = getattr(value, field)
            except Exception as error:
                raise ContextInvalid(f"{path}.{field} cannot be read: {type(error).__name__}") from error
            frozen[field] = self.value(held, f"{path}.{field}", depth)
        return frozen

    def enter(self, size: int, path: str, depth: int) -> None:
        """Count the values of a container, before they are copied. Raises ContextInvalid."""
        self.values += size
        if self.values > MAX_VALUES:
            raise ContextInvalid(f"the context holds more than {MAX_VALUES} values (reached at {path}); pass fewer")
        if depth > MAX_DEPTH:
            raise ContextInvalid(f"{path} is nested more than {MAX_DEPTH} levels deep; pass flatter values")

    def string(self, text: str, path: str, limit: int) -> str:
        """Count a text and hand it back. Raises ContextInvalid."""
        self.text += len(text)
        if len(text) > limit:
            raise ContextInvalid(f"{path} is longer than {limit} characters; pass less text")
        if self.text > MAX_TEXT:
            raise ContextInvalid(f"the context holds more than {MAX_TEXT} characters (reached at {path}); pass less")
        return text


def number(value: float, path: str) -> JSON:
    """A number that can be printed cheaply, and be written as JSON. Raises ContextInvalid otherwise."""
    if isinstance(value, int):
        if not -MAX_INTEGER < value < MAX_INTEGER:
            raise ContextInvalid(f"{path} is an integer of more than 40 digits; pass it as text")
        return int(value)
    if not math.isfinite(value):
        raise ContextInvalid(f"{path} is {value}; pass a finite number or null")
    return float(value)
