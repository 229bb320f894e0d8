"""The audit log: what is written to it, and whether it is still as it was written.

Whoever changes an account, a wording, a user or a tenant leaves an entry in the schema of the change, written by
django-auditlog. A trigger refuses every later change, and chains a hash over the entries (migration
`0003_audit_log`), so that one made with the trigger switched off shows. Messages and attempts are not logged: they
are records themselves; only what a person does to them is (`lifecycle.requeue`, `cancel`).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from auditlog.models import LogEntry
from auditlog.registry import auditlog
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.contrib.auth.signals import user_logged_in
from django.db import connection

from notifications.models import (
    Account,
    CommunicationSettings,
    EventType,
    NotificationPreference,
    NotificationTemplate,
    Outbox,
    Suppression,
)
from tenants.models import ApiKey, Domain, Tenant

_STAMPS = ["created_at", "updated_at"]
_BATCH = 2_000


def register_all() -> None:
    """Log the changes of what people configure. Recipients are left out: an entry could not be erased with them."""
    user = get_user_model()
    masked = "notifications.audit.hidden"
    auditlog.register(Account, exclude_fields=_STAMPS, mask_fields=["settings", "sealed"], mask_callable=masked)
    for model in (
        Outbox,
        EventType,
        NotificationTemplate,
        CommunicationSettings,
        Suppression,
        NotificationPreference,
        Domain,
    ):
        auditlog.register(model, exclude_fields=_STAMPS)
    auditlog.register(
        user,
        exclude_fields=["last_login", "date_joined"],
        mask_fields=["password"],
        mask_callable=masked,
        m2m_fields={"groups", "user_permissions"},
    )
    auditlog.register(Group, m2m_fields={"permissions"})
    auditlog.register(Tenant, exclude_fields=["created_at", "migrations"])
    auditlog.register(ApiKey, exclude_fields=["created_at", "secret_hash", "last_used_at"])
    user_logged_in.connect(_log_in, dispatch_uid="notifications.audit")


def hidden(value: str) -> str:
    """What stands in the log for a value that must not."""
    return "(hidden)" if value not in {"", "{}", "None"} else value


def _log_in(sender: Any, user: Any, request: Any, **_: Any) -> None:  # noqa: ARG001 (a signal's arguments)
    LogEntry.objects.log_create(
        user,
        force_log=True,
        action=LogEntry.Action.ACCESS,
        changes={},
        actor=user,
        actor_email=user.email,
        additional_data={"event": "logged in"},
    )


@dataclass(slots=True)
class Verdict:
    """What became of a schema's audit log."""

    entries: int = 0
    head: str = ""
    """The last link's hash: kept elsewhere, it shows entries removed from the end."""
    problems: list[str] = field(default_factory=list)


def verify() -> Verdict:
    """Follow the chain through the current schema's audit log.

    The hashes are calculated here and not by the database, whose functions somebody could have replaced.
    """
    verdict = Verdict()
    previous = b""
    expected = 0
    for position, entry_id, link, found, actor_fits, text in _links():
        expected += 1
        if position != expected:
            verdict.problems.append(f"links {expected} to {position - 1} of the chain are missing")
            expected = position
        if not found:
            verdict.problems.append(f"entry {entry_id} was removed")
        elif not actor_fits or hashlib.sha256(previous + text.encode()).digest() != link:
            verdict.problems.append(f"entry {entry_id} was changed")
        verdict.entries += 1
        verdict.head = link.hex()
        previous = link
    verdict.problems += [f"entry {entry_id} was added past the chain" for entry_id in _unchained()]
    return verdict


# Written out as in the trigger: position, actor, and the entry without its actor and without empty columns.
_LINKS = """
SELECT chain.position, chain.entry_id, chain.hash, entry.id IS NOT NULL,
       entry.actor_id IS NULL OR entry.actor_id = chain.actor_id,
       jsonb_build_array(chain.position, chain.actor_id, (
           SELECT jsonb_object_agg(key, value) FROM jsonb_each(to_jsonb(entry) - 'actor_id') WHERE value <> 'null'
       ))::text
FROM notifications_auditchain AS chain LEFT JOIN auditlog_logentry AS entry ON entry.id = chain.entry_id
WHERE chain.position > %s ORDER BY chain.position LIMIT %s
"""


def _links() -> Iterator[tuple[int, int, bytes, bool, bool, str]]:
    position = 0
    with connection.cursor() as cursor:
        while True:
            cursor.execute(_LINKS, [position, _BATCH])
            rows = cursor.fetchall()
            yield from rows
            if len(rows) < _BATCH:
                return
            position = rows[-1][0]


def _unchained() -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM auditlog_logentry AS entry WHERE NOT EXISTS "
            "(SELECT FROM notifications_auditchain WHERE entry_id = entry.id) ORDER BY id LIMIT %s",
            [_BATCH],
        )
        return [entry_id for (entry_id,) in cursor.fetchall()]
