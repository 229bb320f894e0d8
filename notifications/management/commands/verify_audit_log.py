"""Say whether the audit logs are still as they were written."""

from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from notifications import audit
from tenants import onboarding
from tenants.context import public_context, tenant_context
from tenants.models import PUBLIC_SCHEMA, Tenant


class Command(BaseCommand):
    """`verify_audit_log`, or `verify_audit_log --schema public`."""

    help = (
        "Follows the chain of hashes through the audit log of each schema. Keep the heads that it prints somewhere "
        "else: with them, entries removed from the end show too. Ends with an error if a log was tampered with."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("-s", "--schema", help="Verify this schema's log only.")

    def handle(self, *_: Any, **options: Any) -> None:
        """Verify one log after the other, and fail at the end if one is broken."""
        broken = []
        for schema_name, context in self._contexts(options["schema"]):
            with context:
                verdict = audit.verify()
            self.stdout.write(f"{schema_name}: {verdict.entries} entries, head {verdict.head or 'none'}")
            for problem in verdict.problems:
                self.stderr.write(f"{schema_name}: {problem}")
            if verdict.problems:
                broken.append(schema_name)
        if broken:
            raise CommandError(f"the audit log was tampered with in: {', '.join(broken)}")

    def _contexts(self, only: str | None) -> Iterator[tuple[str, AbstractContextManager[object]]]:
        tenants = list(Tenant.objects.order_by("schema_name"))
        names = {tenant.schema_name for tenant in tenants} | {PUBLIC_SCHEMA}
        if only and only not in names:
            raise CommandError(f"no tenant has the schema {only!r}")
        if only in {None, PUBLIC_SCHEMA}:
            yield PUBLIC_SCHEMA, public_context()
        for tenant in tenants:
            if tenant.is_public or only not in {None, tenant.schema_name}:
                continue
            if not onboarding.schema_exists(tenant.schema_name):
                self.stderr.write(f"{tenant.schema_name}: the schema does not exist")
                continue
            yield tenant.schema_name, tenant_context(tenant)
