"""End a tenant; with `--drop`, for ever."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from tenants.management.lookup import actor, tenant_named
from tenants.models import Status
from tenants.onboarding import OnboardingError, close, drop_closed_tenant


class Command(BaseCommand):
    """`close_tenant acme`, then `close_tenant acme --drop`."""

    help = "Closes a tenant: its hosts answer 404 and its work ends. --drop also removes its schema, for ever."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("tenant", help="Its host, the label below BASE_DOMAIN, or its schema.")
        parser.add_argument("--reason", default="", help="Why; operators see it.")
        parser.add_argument("--drop", action="store_true", help="Remove the schema of the closed tenant.")
        parser.add_argument("--confirm", metavar="NAME", help="The tenant's name, instead of typing it when asked.")

    def handle(self, *_: Any, **options: Any) -> None:
        """Ask for the name, then do it."""
        tenant = tenant_named(options["tenant"])
        confirmation = options["confirm"]
        if confirmation is None:
            self.stdout.write(f"This ends the tenant {tenant.name!r}. Type its name to go on:")
            confirmation = typed()
        try:
            if tenant.status != Status.CLOSED or not options["drop"]:
                close(tenant, confirmation, actor(), options["reason"])
                self.stdout.write(f"{tenant.name} is closed")
            if options["drop"]:
                drop_closed_tenant(tenant, confirmation)
                self.stdout.write(f"{tenant.name} is gone")
        except OnboardingError as error:
            raise CommandError(str(error)) from error


def typed() -> str:
    """What somebody types at a terminal.

    Raises:
        CommandError: there is none.
    """
    try:
        return input().strip()
    except EOFError:
        raise CommandError("nobody is there to type the name: confirm with --confirm NAME") from None
