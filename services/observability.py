"""What the service says of itself: log lines as JSON, failures to Sentry, neither with secrets or message content."""

import re
from typing import Any

import structlog

from services import env

_SECRET_NAME = re.compile(
    r"pass(word|wd)?$|secret|token|api_?key|authorization|cookie|dsn|_url$|settings$", re.IGNORECASE
)
_ADDRESS = re.compile(r"[^\s@<>\"']+@[^\s@<>\"']+|\+\d{7,15}")
_CONTENT = {"context", "body_text", "body_html", "subject", "to", "to_address", "to_name", "html", "text", "message"}
HIDDEN = "[hidden]"


def add_schema(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Every line says whose work it is about."""
    from tenants.connection import connection

    event.setdefault("schema", getattr(connection, "schema_name", None))
    return event


_SHARED_PROCESSORS: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    add_schema,
]

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {
            "()": structlog.stdlib.ProcessorFormatter,
            "foreign_pre_chain": _SHARED_PROCESSORS,
            "processors": [
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        },
        "console": {
            "()": structlog.stdlib.ProcessorFormatter,
            "foreign_pre_chain": _SHARED_PROCESSORS,
            "processors": [
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                # Not the library's own choice, which prints local variables: they may hold secrets.
                structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
            ],
        },
    },
    "handlers": {
        "default": {
            "class": "logging.StreamHandler",
            "formatter": env.choice("LOG_FORMAT", "json", ["json", "console"]),
        }
    },
    "root": {"handlers": ["default"], "level": env.text("LOG_LEVEL", "INFO")},
    "loggers": {
        "notifications": {"level": env.text("NOTIFY_LOG_LEVEL", env.text("LOG_LEVEL", "INFO"))},
        "django.server": {"handlers": ["default"], "propagate": False, "level": "WARNING"},
    },
}


def scrub(value: Any, name: str = "") -> Any:
    """A copy of `value` without secrets, message content, e-mail addresses and phone numbers."""
    if _SECRET_NAME.search(name) or name in _CONTENT:
        return HIDDEN
    if isinstance(value, dict):
        return {key: scrub(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [scrub(item) for item in value]
    if isinstance(value, str):
        return _ADDRESS.sub(HIDDEN, value)
    return value


def start_sentry(dsn: str, *, environment: str) -> None:
    """Send failures to Sentry, tagged with the tenant's schema; without a DSN, do nothing."""
    if not dsn:
        return
    import sentry_sdk

    from tenants.connection import connection

    def before_send(event: Any, _: Any) -> Any:
        event.setdefault("tags", {})["schema"] = getattr(connection, "schema_name", None)
        return scrub(event)

    sentry_sdk.init(
        dsn=dsn,
        environment=environment,
        send_default_pii=False,
        include_local_variables=False,
        max_request_body_size="never",
        before_send=before_send,
    )
