"""Due messages as the drain needs them: plain values of a whole batch, from one query.

A model instance costs some fifty microseconds to make, which at thousands of messages a second is most of a core.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from notifications.models import NotificationPreference, OutboxMessage, Suppression
from notifications.models.recipient import Switches, allowed_by
from tenants.connection import connection


@dataclass(slots=True)
class DueMessage:
    """What the drain knows about a message; the names are those of `OutboxMessage`."""

    pk: UUID
    status: str
    channel: str
    category: str
    security: bool
    priority: str
    expires_at: datetime
    to_address: str
    to_name: str
    from_address: str
    from_name: str
    from_fixed: bool
    reply_to: str
    subject: str
    body_text: str
    body_html: str
    context: Mapping[str, Any]
    headers: Mapping[str, str]
    template_scope: str
    template_uuid: UUID | None
    template_version: int | None
    attempt_count: int
    max_attempts: int
    retry_count: int
    switches: Switches
    """The recipient's preferences, else the tenant's defaults."""

    def allows(self, category: str, channel: str) -> bool:
        """Whether the recipient wants messages of the category on the channel."""
        return allowed_by(self.switches, category, channel)


_MESSAGES = OutboxMessage._meta.db_table
_PREFERENCES = NotificationPreference._meta.db_table
_SUPPRESSIONS = Suppression._meta.db_table
_JSON = ("context", "headers", "switches")
_NAMES = [field.name for field in fields(DueMessage)]
_COLUMNS = ", ".join(
    {
        "pk": "message.id",
        "switches": "coalesce(own.switches, everybody.switches, '{}')::text",
        **{name: f"message.{name}::text" for name in _JSON if name != "switches"},
    }.get(name, f"message.{name}")
    for name in _NAMES
)


def load(items: Sequence[UUID]) -> list[DueMessage]:
    """The messages of the current tenant with these keys, in their order; those that are gone are left out."""
    if not items:
        return []
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT {_COLUMNS}
            FROM {_MESSAGES} AS message
            LEFT JOIN {_PREFERENCES} AS own ON own.recipient_id = message.recipient_id
            LEFT JOIN {_PREFERENCES} AS everybody ON everybody.recipient_id IS NULL
            WHERE message.id = ANY(%s)
            """,  # noqa: S608 (the models' own tables)
            [list(items)],
        )
        found: dict[UUID, DueMessage] = {}
        places = [_NAMES.index(name) for name in _JSON]
        for row in cursor.fetchall():
            values = list(row)
            for place in places:
                values[place] = json.loads(values[place]) if values[place] != "{}" else {}
            found[values[0]] = DueMessage(*values)
    return [found[item] for item in items if item in found]


def suppressed(messages: Sequence[DueMessage]) -> dict[tuple[str, str], str]:
    """Why addresses get nothing, by channel and address, from the tenant's own list and the platform's."""
    found: dict[tuple[str, str], str] = {}
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            SELECT channel, address, reason FROM {_SUPPRESSIONS} WHERE address = ANY(%(addresses)s)
            UNION ALL
            SELECT channel, address, reason FROM public.{_SUPPRESSIONS} WHERE address = ANY(%(addresses)s)
            """,  # noqa: S608
            {"addresses": list({message.to_address.lower() for message in messages})},
        )
        for channel, address, reason in cursor.fetchall():
            # An opt-out lets security messages pass, and so hides no other reason.
            if found.get((channel, address), "unsubscribed") == "unsubscribed":
                found[channel, address] = reason
    return found
