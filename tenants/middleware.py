"""From the request's host to its tenant's schema, and back."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from django.core.exceptions import DisallowedHost
from django.db import InterfaceError, OperationalError
from django.db.models import BooleanField, Case, F, Func, Value, When
from django.http import FileResponse, HttpRequest, HttpResponse
from django.http.request import split_domain_port
from django.http.response import HttpResponseBase
from django.urls import set_urlconf
from django_tenants.middleware.main import TenantMainMiddleware

from tenants.connection import connection
from tenants.models import Domain, Status, Tenant, up_to_date

logger = logging.getLogger(__name__)

RETRY_AFTER = 30
"""Seconds after which a client should ask again when the database is away or the tenant's migration is running."""


class TenantMiddleware(TenantMainMiddleware):  # type: ignore[misc]
    """Serve each host in its own tenant's schema, and no other host at all.

    An unknown host, or a closed tenant's: 404. A suspended tenant's: 403. A tenant that waits for migrations, or a
    database that does not answer: 503 with `Retry-After`. Whatever happens, the connection ends in public.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        super().__init__(get_response)

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        try:
            refusal = self.process_request(request)
            if refusal is not None:
                return refusal
            response: HttpResponseBase = self.get_response(request)
            # A file holds no query, and the server may send it without going through Python.
            if response.streaming and not isinstance(response, FileResponse):
                _stream_in_schema(response, request.tenant)  # type: ignore[attr-defined]
            return response
        finally:
            connection.set_schema_to_public()
            set_urlconf(None)

    def process_request(self, request: HttpRequest) -> HttpResponse | None:
        """Enter the tenant's schema, or answer why not."""
        connection.set_schema_to_public()
        try:
            host, _ = split_domain_port(request.get_host())
        except DisallowedHost:
            return _plain(404, "Not found.")
        try:
            domain = _domain(host)
        except (OperationalError, InterfaceError):
            logger.exception("the database does not answer")
            return _plain(503, "The database does not answer. Try again soon.")
        if domain is None:
            return _plain(404, "Not found.")
        if refusal := _refusal(domain):
            return refusal
        tenant: Tenant = domain.tenant
        tenant.domain_url = host
        request.tenant = tenant  # type: ignore[attr-defined]
        connection.set_tenant(tenant)
        self.setup_url_routing(request)
        return None

    def process_exception(self, _request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Answer a database that went away during the request in one line, not with a crash."""
        if not isinstance(exception, OperationalError | InterfaceError) or _answers():
            return None
        logger.error("the database went away", exc_info=exception)
        return _plain(503, "The database does not answer. Try again soon.")


def _domain(host: str) -> Any:
    ready = Case(When(up_to_date("tenant__"), then=Value(True)), default=Value(False), output_field=BooleanField())
    quoted = Func(F("tenant__schema_name"), function="quote_ident")
    exists = Func(quoted, template="to_regnamespace(%(expressions)s) IS NOT NULL", output_field=BooleanField())
    domains = Domain.objects.select_related("tenant").defer("tenant__migrations")
    return domains.filter(domain=host).annotate(ready=ready, schema_exists=exists).first()


def _refusal(domain: Any) -> HttpResponse | None:
    tenant: Tenant = domain.tenant
    if tenant.status == Status.CLOSED:
        return _plain(404, "Not found.")
    if tenant.status == Status.SUSPENDED:
        return _plain(403, "This account is suspended.")
    if not domain.schema_exists:
        logger.error("the tenant's schema does not exist", extra={"tenant": tenant.schema_name})
        return _plain(503, "Not available. Try again soon.")
    return None if domain.ready else _plain(503, "An update is running. Try again soon.")


def _plain(status: int, text: str) -> HttpResponse:
    response = HttpResponse(f"{text}\n", status=status, content_type="text/plain; charset=utf-8")
    response["Cache-Control"] = "no-store"
    if status == 503:
        response["Retry-After"] = str(RETRY_AFTER)
    return response


def _answers() -> bool:
    try:
        return connection.connection is not None and connection.is_usable()
    except (OperationalError, InterfaceError):
        return False


def _stream_in_schema(response: HttpResponseBase, tenant: Tenant) -> None:
    # The server asks for the parts after the middleware has gone back to public.
    parts: Iterable[bytes] = response.streaming_content  # type: ignore[attr-defined]

    def stream() -> Iterator[bytes]:
        rest = iter(parts)
        while True:
            connection.set_tenant(tenant)
            try:
                part = next(rest)
            except StopIteration:
                return
            finally:
                connection.set_schema_to_public()
            yield part

    if not response.is_async:  # type: ignore[attr-defined]
        response.streaming_content = stream()  # type: ignore[attr-defined]
