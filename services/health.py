"""Probes: alive, and ready to serve. They answer on any host, before tenants are routed, and tell no details."""

from collections.abc import Callable

from django.conf import settings
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse
from redis import RedisError

from notifications import queues
from tenants.connection import connection
from tenants.models import Tenant


class ProbeMiddleware:
    """Answers `/healthz` (the process lives) and `/readyz` (database, Redis and migrations are there)."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.path == "/healthz":
            return HttpResponse("ok\n", content_type="text/plain")
        if request.path == "/readyz":
            missing = what_is_missing()
            return HttpResponse(f"{missing or 'ok'}\n", content_type="text/plain", status=503 if missing else 200)
        return self.get_response(request)


def what_is_missing() -> str:
    """One word for the first thing that keeps this process from serving, or nothing."""
    try:
        connection.set_schema_to_public()
        if not Tenant.objects.serving().filter(schema_name="public").exists():
            return "migrations"
    except DatabaseError:
        return "database"
    try:
        queues.redis().ping()
    except (RedisError, OSError):
        # Accepting works without Redis; the drain then waits for the sweep or the commands.
        return "redis" if settings.NOTIFY_DISPATCH_MODE == "rq" else ""
    return ""
