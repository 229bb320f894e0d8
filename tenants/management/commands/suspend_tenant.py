"""Stop a tenant for a while."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from tenants.management.lookup import actor, tenant_named
from tenants.onboarding import OnboardingError, suspend


class Command(BaseCommand):
    """`suspend_tenant acme --reason "unpaid"`."""

    help = "Suspends a tenant: its hosts answer 403 and its work waits until resume_tenant."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("tenant", help="Its host, the label below BASE_DOMAIN, or its schema.")
        parser.add_argument("--reason", required=True, help="Why; operators see it.")

    def handle(self, *_: Any, **options: Any) -> None:
        """Suspend it."""
        tenant = tenant_named(options["tenant"])
        try:
            suspend(tenant, options["reason"], actor())
        except OnboardingError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{tenant.name} is suspended")
