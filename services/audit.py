"""Who did it: what the audit log notes of a request."""

from auditlog.middleware import AuditlogMiddleware
from django.http import HttpRequest

from tenants.sign_in import client_ip


class AuditMiddleware(AuditlogMiddleware):  # type: ignore[misc]
    """As the library's, with the address that our own proxy saw: the first one forwarded is the client's invention."""

    @staticmethod
    def _get_remote_addr(request: HttpRequest) -> str:
        return client_ip(request)
