"""Let a suspended tenant work again."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from tenants.management.lookup import actor, tenant_named
from tenants.onboarding import OnboardingError, resume


class Command(BaseCommand):
    """`resume_tenant acme`."""

    help = "Resumes a suspended tenant."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("tenant", help="Its host, the label below BASE_DOMAIN, or its schema.")

    def handle(self, *_: Any, **options: Any) -> None:
        """Resume it."""
        tenant = tenant_named(options["tenant"])
        try:
            resume(tenant, actor())
        except OnboardingError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{tenant.name} is active")
