"""Messages and recipients by the thousand: one statement for a set of them, none of it row by row."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import batched
from typing import Any
from uuid import UUID

from django.db.models import Field, JSONField

from notifications.models import NotificationChannel, OutboxMessage
from tenants.connection import connection

type Row = tuple[UUID, str, str]

_SAME_PHONE = "recipient.phone = asked.address"
_SAME_ADDRESS: dict[str, str] = {
    # Mailboxes do not differ by letter case, and what somebody switched off stays off in either.
    NotificationChannel.EMAIL: "upper(recipient.email) = upper(asked.address)",
    NotificationChannel.SMS: _SAME_PHONE,
    NotificationChannel.WHATSAPP: _SAME_PHONE,
    NotificationChannel.VOICE: _SAME_PHONE,
}


@dataclass(frozen=True, slots=True)
class Earlier:
    """A message that is stored already."""

    id: UUID
    request_hash: str


def stored_under(keys: Sequence[str]) -> dict[str, Earlier]:
    """The messages that are stored, by their idempotency keys."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT idempotency_key, id, request_hash FROM notifications WHERE idempotency_key = ANY(%s::text[])",
            [_array(keys)],
        )
        return {key: Earlier(*found) for key, *found in cursor.fetchall()}


def insert(common: OutboxMessage, own: Mapping[str, Sequence[Any]], *, size: int) -> set[UUID]:
    """Insert messages, and leave alone what is stored under the same idempotency key.

    Args:
        common: what they have in common.
        own: the columns in which they differ, by attribute, all of one length; JSON as text. Without
            `idempotency_key` they get random ones.
        size: as many rows a statement.

    Returns:
        The keys of those that were inserted.
    """
    fields = {_column(field): field for field in OutboxMessage._meta.concrete_fields}
    differing = [column for column, field in fields.items() if field.attname in own]
    constants = []
    chosen = []
    for column, field in fields.items():
        if column in differing:
            chosen.append(f"own.{column}::{_type(field)}")
        elif field.attname == "idempotency_key":
            chosen.append("gen_random_uuid()::text")
        else:
            constants.append(field.get_db_prep_save(field.pre_save(common, add=True), connection))
            chosen.append(f"%s::{_type(field)}")
    arrays = [
        f"%s::{'text' if isinstance(fields[column], JSONField) else _type(fields[column])}[]" for column in differing
    ]
    statement = f"""
        INSERT INTO notifications ({", ".join(fields)}) SELECT {", ".join(chosen)}
        FROM unnest({", ".join(arrays)}) AS own ({", ".join(differing)})
        ON CONFLICT (idempotency_key) DO NOTHING RETURNING id
        """  # noqa: S608 (names of our own columns)
    inserted: set[UUID] = set()
    with connection.cursor() as cursor:
        for rows in batched(
            zip(*(own[fields[column].attname] for column in differing), strict=True), size, strict=False
        ):
            cursor.execute(statement, [*constants, *map(_array, zip(*rows, strict=True))])
            inserted.update(key for (key,) in cursor.fetchall())
    return inserted


def _array(values: Iterable[Any]) -> str:
    """An array as PostgreSQL reads it. The driver would look at each value several times, a third of the whole call."""
    return "{" + ",".join("NULL" if value is None else f'"{_escaped(str(value))}"' for value in values) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _column(field: "Field[Any, Any]") -> str:
    return str(field.column)


def _type(field: "Field[Any, Any]") -> str:
    # Without its length: a cast to varchar(9) would cut where an insert complains.
    return str(field.db_type(connection)).partition("(")[0]


def recipients_by_id(keys: Iterable[UUID]) -> dict[Any, Row]:
    """The tenant's recipients as (key, name, language), by their keys."""
    return _found("SELECT id, id, name, language FROM notifications_recipient WHERE id = ANY(%s::uuid[])", keys)


def recipients_by_external_id(external_ids: Iterable[str]) -> dict[Any, Row]:
    """The tenant's recipients as (key, name, language), by their external ids."""
    return _found(
        "SELECT external_id, id, name, language FROM notifications_recipient WHERE external_id = ANY(%s::text[])",
        external_ids,
    )


def recipients_at(channel: str, addresses: Iterable[str]) -> dict[Any, Row]:
    """The tenant's recipients as (key, name, language), the first one at each cleaned address of a channel."""
    same = _SAME_ADDRESS.get(channel)
    if same is None:
        return {}
    return _found(
        f"""
        SELECT DISTINCT ON (asked.address) asked.address, recipient.id, name, language
        FROM unnest(%s::text[]) AS asked (address) JOIN notifications_recipient AS recipient ON {same}
        ORDER BY asked.address, recipient.id
        """,  # noqa: S608 (one of two conditions)
        addresses,
    )


def _found(query: str, values: Iterable[Any]) -> dict[Any, Row]:
    distinct = set(values)
    if not distinct:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(query, [_array(distinct)])
        return {given: (key, name, language) for given, key, name, language in cursor.fetchall()}
