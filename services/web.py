"""The web process: WSGI, because tenants' schemas do not follow a request into other threads.

`python -m services.web` serves; `WEB_BIND`, `WEB_WORKERS` and `WEB_THREADS` say where and how widely.
"""

from typing import Any

from services import env
from services.start import configure, require_servers

configure()

from django.core.wsgi import get_wsgi_application  # noqa: E402 (settings are read first)

application = get_wsgi_application()


def main() -> None:
    """Serve until told to stop; a missing database or Redis is said in one line."""
    from gunicorn.app.base import BaseApplication

    require_servers(redis=False)
    from django.db import connections

    # Forked workers must not share a connection.
    connections.close_all()

    class Server(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            for key, value in options().items():
                self.cfg.set(key, value)

        def load(self) -> Any:
            return application

    Server().run()


def options() -> dict[str, Any]:
    """Gunicorn's settings."""
    return {
        "bind": env.text("WEB_BIND", "127.0.0.1:8000"),
        "workers": env.integer("WEB_WORKERS", 2),
        "threads": env.integer("WEB_THREADS", 4),
        "timeout": 30,
        "graceful_timeout": 25,
        "max_requests": 10_000,
        "max_requests_jitter": 1_000,
        "limit_request_line": 4094,
        "loglevel": "warning",
        "control_socket_disable": True,
    }


if __name__ == "__main__":
    main()
