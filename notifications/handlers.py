"""Handlers: the platform's own functions, under names that an outbox or an inbox may choose from.

A dotted path that anybody may write into a row would run anything. So a name is one that the platform's code has
registered, or a path that the operator lists in `NOTIFY_HANDLER_ALLOWLIST`.
"""

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.utils.module_loading import import_string

from notifications.exceptions import HandlerNotAllowed

type Handler = Callable[[Any], Any]
"""Takes a message and says whether it worked, at once or as a coroutine."""

_registered: dict[str, Handler] = {}


def register_handler(name: str) -> Callable[[Handler], Handler]:
    """Let outboxes and inboxes choose the decorated function under a name; for platform code, at start-up.

        @register_handler("legacy-gateway")
        async def hand_over(message: OutboxMessage) -> bool: ...

    Raises:
        ValueError: another function has the name.
    """

    def register(handler: Handler) -> Handler:
        if _registered.setdefault(name, handler) is not handler:
            raise ValueError(f"a handler named {name!r} is registered already")
        return handler

    return register


def names() -> list[str]:
    """What may be chosen."""
    return sorted({*_registered, *settings.NOTIFY_HANDLER_ALLOWLIST})


def handler_named(name: str) -> Handler:
    """The handler that a row names.

    Raises:
        HandlerNotAllowed: it may not be chosen (any more), or cannot be imported.
    """
    if name in _registered:
        return _registered[name]
    if name not in settings.NOTIFY_HANDLER_ALLOWLIST:
        raise HandlerNotAllowed(f"handler={name!r} is not registered: {', '.join(names()) or 'none is'}")
    try:
        handler = import_string(name)
    except ImportError as error:
        raise HandlerNotAllowed(f"handler={name!r} cannot be imported: {error}") from error
    if not callable(handler):
        raise HandlerNotAllowed(f"handler={name!r} is not a function")
    return handler  # type: ignore[no-any-return]
