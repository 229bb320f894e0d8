"""Columns that several models share."""

from typing import Any
from uuid import UUID

from django.db import models
from uuid_utils.compat import uuid7


def new_id() -> UUID:
    """A time-ordered key (UUIDv7, RFC 9562), so that new rows stand together in an index."""
    return uuid7()


def uuid_key() -> "models.UUIDField[Any, Any]":
    """The primary key of every model of ours."""
    return models.UUIDField(primary_key=True, default=new_id, editable=False)


def one_of(column: str, choices: type[models.TextChoices], *, blank: bool = False) -> models.Q:
    """The condition that `column` holds one of the choices, for a database constraint."""
    return models.Q(**{f"{column}__in": [*choices.values, ""] if blank else choices.values})
