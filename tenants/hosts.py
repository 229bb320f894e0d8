"""Host names: how they are written in the database, and which ones a tenant may have."""

import re

from django.conf import settings
from django.core.exceptions import ValidationError

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
HOST_PATTERN = rf"^{_LABEL}(\.{_LABEL})*$"
LONGEST_HOST = 253


def normalize(host: str) -> str:
    """The host in lower case, without the root's trailing dot."""
    return host.strip().lower().removesuffix(".")


def validate_host(host: str) -> None:
    """Refuse whatever is not a lower-case DNS name.

    Raises:
        ValidationError: it is not one.
    """
    if len(host) > LONGEST_HOST or not re.fullmatch(HOST_PATTERN, host):
        raise ValidationError("%(host)r is not a lower-case DNS name.", code="host", params={"host": host})


def tenant_host(domain: str) -> str:
    """The host of a tenant: a bare label becomes one below `BASE_DOMAIN`, a full name stays as it is.

    Raises:
        ValidationError: it is no DNS name, the platform's own host, more than one label below
            `BASE_DOMAIN` (which no wildcard certificate would cover), or an IP address.
    """
    host, base = normalize(domain), normalize(settings.BASE_DOMAIN)
    if "." not in host and host != base:
        host = f"{host}.{base}"
    validate_host(host)
    label = host.removesuffix(f".{base}")
    if host == base:
        raise ValidationError("%(host)s is the platform's own host.", code="host", params={"host": host})
    if label != host and "." in label:
        message = "%(host)s is more than one label below %(base)s."
        raise ValidationError(message, code="host", params={"host": host, "base": base})
    if host.rpartition(".")[2].isdigit():
        raise ValidationError("%(host)s is an IP address, not a name.", code="host", params={"host": host})
    return host
