"""The operators' commands, as they are called from cron and by hand."""

from io import StringIO
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.management import CommandError, call_command

from notifications.models import Account, Outbox, OutboxMessage
from notifications.services import send_email
from tenants.context import tenant_context
from tenants.models import Tenant


def run(command: str, *arguments: str) -> str:
    out = StringIO()
    call_command(command, *arguments, stdout=out)
    return out.getvalue().strip()


def send(tenant: Tenant, number: int = 1) -> None:
    """Accept messages for a sender that logs instead of sending."""
    with tenant_context(tenant):
        account, made = Account.objects.get_or_create(kind=Account.EMAIL, provider="console")
        if made:
            Outbox.objects.create(account=account, address="hello@acme.example")
    for _ in range(number):
        send_email(to_address="ada@example.com", subject="Hi", message="Hello", tenant=tenant)


def statuses(tenant: Tenant) -> list[str]:
    with tenant_context(tenant):
        return sorted(OutboxMessage.objects.values_list("status", flat=True))


def test_send_notifications_delivers_what_is_due_and_says_so_in_one_line(acme: Tenant, globex: Tenant) -> None:
    send(acme, 2)
    send(globex)
    assert run("send_notifications") == "3 sent, 0 later, 0 failed, 0 suppressed in 2 tenants"
    assert statuses(acme) == ["sent", "sent"]


def test_send_notifications_takes_what_is_kept_for_it(acme: Tenant, settings: Any) -> None:
    settings.NOTIFY_SEND_IMMEDIATELY = False
    send(acme)
    assert run("send_notifications").startswith("1 sent")


def test_the_limit_counts_for_each_tenant(acme: Tenant, globex: Tenant) -> None:
    send(acme, 3)
    send(globex, 2)
    assert run("send_notifications", "--limit", "2").startswith("4 sent")
    assert statuses(acme) == ["pending", "sent", "sent"]


def test_one_schema_alone_can_be_served(acme: Tenant, globex: Tenant) -> None:
    send(acme)
    send(globex)
    assert run("send_notifications", "--schema", acme.schema_name).startswith("1 sent")
    assert statuses(globex) == ["pending"]


def test_the_worker_id_is_kept_with_each_attempt(acme: Tenant) -> None:
    send(acme)
    run("send_notifications", "--worker-id", "worker-1")
    with tenant_context(acme):
        assert OutboxMessage.objects.get().attempts.get().worker == "worker-1"


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(CommandError, match="--limit must be at least 1"):
        run("send_notifications", "--limit", "0")


def test_rotated_secrets_open_with_the_new_key_alone(acme: Tenant, settings: Any) -> None:
    with tenant_context(acme):
        account = Account.objects.create(kind=Account.EMAIL, settings={"smtp": {"host": "h", "password": "s3cret"}})
    new = Fernet.generate_key().decode()
    settings.FIELD_ENCRYPTION_KEYS = [new, *settings.FIELD_ENCRYPTION_KEYS]
    assert run("rotate_secrets") == "1 secrets are under the first key"
    settings.FIELD_ENCRYPTION_KEYS = [new]
    with tenant_context(acme):
        assert Account.objects.get(pk=account.pk).get_setting("smtp") == {"host": "h", "password": "s3cret"}


def test_a_secret_that_no_key_opens_is_named_and_the_others_are_rotated(acme: Tenant) -> None:
    with tenant_context(acme):
        lost = Account.objects.create(kind=Account.EMAIL, settings={"password": "one"})
        Account.objects.filter(pk=lost.pk).update(sealed=Fernet(Fernet.generate_key()).encrypt(b"[]").decode())
        Account.objects.create(kind=Account.EMAIL, settings={"password": "two"})
    with pytest.raises(CommandError, match=str(lost.pk)):
        run("rotate_secrets")
