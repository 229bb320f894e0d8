"""Make a tenant from the command line."""

import os
import secrets
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from tenants.context import tenant_context
from tenants.onboarding import OnboardingError, create_tenant


class Command(BaseCommand):
    """`create_tenant NAME --domain acme --owner you@example.com`; may be repeated."""

    help = "Creates a tenant: its schema, its host and its owner. Repeating it adds only what is missing."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="The tenant's name, as people say it.")
        parser.add_argument("--domain", required=True, help="A label below BASE_DOMAIN, or a full host name.")
        parser.add_argument("--owner", required=True, help="The owner's e-mail address.")
        parser.add_argument(
            "--password-env",
            metavar="VARIABLE",
            help="The environment variable that holds the owner's password; without it one is made and shown once.",
        )

    def handle(self, *_: Any, **options: Any) -> None:
        """Make it, and say where it answers."""
        password = self._given_password(options["password_env"])
        made = None if password else secrets.token_urlsafe(18)
        try:
            tenant = create_tenant(
                options["name"],
                domain=options["domain"],
                owner_email=options["owner"],
                owner_password=password or made,
            )
        except ValidationError as error:
            raise CommandError("; ".join(error.messages)) from error
        except OnboardingError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{tenant.name}: schema {tenant.schema_name}, host {tenant.get_primary_domain()}")
        if made and _has_password(tenant.schema_name, options["owner"], made):
            self.stdout.write(f"{options['owner']} signs in with this password, shown only now: {made}")

    @staticmethod
    def _given_password(variable: str | None) -> str | None:
        if variable is None:
            return None
        if not os.environ.get(variable):
            raise CommandError(f"{variable} is not set or empty")
        return os.environ[variable]


def _has_password(schema_name: str, email: str, password: str) -> bool:
    from django.contrib.auth import get_user_model

    with tenant_context(schema_name):
        owner = get_user_model()._default_manager.get(username=email.strip().lower())
        return bool(owner.check_password(password))
