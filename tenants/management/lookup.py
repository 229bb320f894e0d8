"""What the commands share: which tenant is meant, and who is asking."""

import getpass

from django.conf import settings
from django.core.management.base import CommandError
from django.db.models import Q

from tenants.hosts import normalize
from tenants.models import Tenant


def tenant_named(text: str) -> Tenant:
    """The tenant with this host, label below `BASE_DOMAIN`, or schema.

    Raises:
        CommandError: there is none.
    """
    host = normalize(text)
    known = Q(domains__domain__in=[host, f"{host}.{settings.BASE_DOMAIN}"]) | Q(schema_name=text)
    tenant = Tenant.objects.filter(known).distinct().first()
    if tenant is None:
        raise CommandError(f"no tenant is known as {text!r}")
    return tenant


def actor() -> str:
    """Who runs the command, for the log."""
    try:
        return f"{getpass.getuser()} (command line)"
    except OSError:
        return "command line"
