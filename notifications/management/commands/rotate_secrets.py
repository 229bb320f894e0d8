"""`rotate_secrets`: encrypt every stored secret again under the first of `FIELD_ENCRYPTION_KEYS`."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from notifications import vault
from notifications.models import Account
from tenants.context import tenant_context
from tenants.models import Tenant


class Command(BaseCommand):
    """Go through all tenants and the platform; safe to repeat, and to stop in between."""

    help = "Encrypt all stored secrets again under the first key. When it succeeds, older keys can be removed."

    def handle(self, *_: Any, **__: Any) -> None:
        """Rotate, and print one line about it.

        Raises:
            CommandError: some secrets could not be opened with any key; they are listed, the others are rotated.
        """
        rotated, broken = 0, []
        for schema_name in Tenant.objects.order_by("pk").values_list("schema_name", flat=True):
            with tenant_context(schema_name):
                for key in Account.objects.exclude(sealed="").values_list("pk", flat=True):
                    try:
                        with transaction.atomic():
                            account = Account.objects.select_for_update().get(pk=key)
                            Account.objects.filter(pk=key).update(sealed=vault.rotate(account.sealed))
                    except vault.SealBroken:
                        broken.append(f"{schema_name}/{key}")
                    else:
                        rotated += 1
        self.stdout.write(f"{rotated} secrets are under the first key")
        if broken:
            raise CommandError(f"no key opens these accounts' secrets, enter them again: {', '.join(broken)}")
