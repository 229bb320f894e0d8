"""Rows and queries remember their tenant: what is made in one schema cannot be used in another.

A lazy query built for one tenant and run for another reads the other's rows without an error, and an object
loaded from one tenant and saved in another overwrites the row with the same key. With these bases both raise
`WrongTenant` instead. The comparison is of two strings: no query is added.
"""

from collections.abc import Callable, Collection, Iterator
from functools import wraps
from typing import Any, Self

from django.db import models
from django.db.models.query import RawQuerySet

from tenants.connection import connection


class WrongTenant(Exception):
    """Something of one tenant was about to be used in another one's schema."""

    def __init__(self, what: str, made_in: str) -> None:
        super().__init__(
            f"{what} belongs to the schema {made_in}, and the connection is in {connection.schema_name}: "
            "take values out of a tenant's context, not queries or objects"
        )


def guard(instance: Any) -> None:
    """Refuse an object, or what is cached on it, that came from another schema.

    Raises:
        WrongTenant: it did.
    """
    here = connection.schema_name
    state = getattr(instance, "_state", None)
    for found in (instance, *state.fields_cache.values()) if state else ():
        made_in = getattr(getattr(found, "_state", None), "schema", here)
        if made_in != here:
            raise WrongTenant(f"{type(found).__name__} {found.pk}", made_in)


def _stamp(instance: models.Model) -> None:
    instance._state.schema = connection.schema_name  # type: ignore[attr-defined]


class TenantQuerySet[M: models.Model](models.QuerySet[M]):
    """A query that runs only in the schema in which it was made."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._schema: str | None = connection.schema_name

    def anywhere(self) -> Self:
        """The same query bound to no schema yet: for declarations at import time, such as a form's choices.

        Each copy of it is bound where it first runs.
        """
        unbound: Self = self._chain()  # type: ignore[attr-defined]
        unbound._schema = None
        return unbound

    def check_schema(self) -> None:
        """Refuse to go on in another schema than the query's own.

        Raises:
            WrongTenant: the connection is in another one.
        """
        here = connection.schema_name
        if self._schema is None:
            self._schema = here
        elif self._schema != here:
            raise WrongTenant(f"a query of {self.model.__name__}", self._schema)
        if instance := self._hints.get("instance"):  # type: ignore[attr-defined]
            guard(instance)

    def _clone(self) -> Self:
        clone: Self = super()._clone()  # type: ignore[misc]
        clone._schema = self._schema
        return clone

    def _merge_sanity_check(self, other: "TenantQuerySet[Any]") -> None:
        self.check_schema()
        other.check_schema()
        super()._merge_sanity_check(other)  # type: ignore[misc]

    def _combinator_query(self, combinator: str, *others: "TenantQuerySet[Any]", **kwargs: Any) -> Self:
        self.check_schema()
        for other in others:
            other.check_schema()
        return super()._combinator_query(combinator, *others, **kwargs)  # type: ignore[misc,no-any-return]

    def iterator(self, *args: Any, **kwargs: Any) -> Iterator[M]:
        """As Django's, and it may not be carried into another schema half read."""
        self.check_schema()
        return self._guarded(super().iterator(*args, **kwargs))

    def _guarded(self, rows: Iterator[M]) -> Iterator[M]:
        while True:
            self.check_schema()
            try:
                row = next(rows)
            except StopIteration:
                return
            yield row

    def raw(self, *args: Any, **kwargs: Any) -> "TenantRawQuerySet":
        """As Django's, bound to this query's schema."""
        self.check_schema()
        raw = super().raw(*args, **kwargs)
        raw.__class__ = TenantRawQuerySet
        raw._schema = self._schema  # type: ignore[attr-defined]
        return raw  # type: ignore[return-value]

    def bulk_create(self, objs: Any, *args: Any, **kwargs: Any) -> list[M]:
        """As Django's, for objects of this schema only."""
        self.check_schema()
        objs = _guard_all(objs)
        created = super().bulk_create(objs, *args, **kwargs)
        for instance in created:
            _stamp(instance)
        return created

    def bulk_update(self, objs: Any, *args: Any, **kwargs: Any) -> int:
        """As Django's, for objects of this schema only."""
        self.check_schema()
        return super().bulk_update(_guard_all(objs), *args, **kwargs)


class TenantRawQuerySet(RawQuerySet):  # type: ignore[type-arg]
    """Written SQL that runs only in the schema in which it was made."""

    _schema: str

    def _clone(self) -> Self:
        clone: Self = super()._clone()  # type: ignore[misc]
        clone._schema = self._schema
        return clone

    def iterator(self) -> Iterator[Any]:
        """As Django's, in this schema only."""
        if self._schema != connection.schema_name:
            raise WrongTenant(f"a query of {self.model.__name__}", self._schema)  # type: ignore[union-attr]
        return super().iterator()


def _guard_all(objs: Collection[Any]) -> list[Any]:
    objs = list(objs)
    for instance in objs:
        guard(instance)
    return objs


def _checked(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def checked(self: TenantQuerySet[Any], *args: Any, **kwargs: Any) -> Any:
        self.check_schema()
        return method(self, *args, **kwargs)

    return checked


# Every method through which a query reaches the database, or becomes a part of another query.
for _name in (
    "_fetch_all", "count", "exists", "aggregate", "explain", "create", "update", "_update", "delete", "_raw_delete",
    "resolve_expression",
):  # fmt: skip
    setattr(TenantQuerySet, _name, _checked(getattr(models.QuerySet, _name)))

TenantManager = models.Manager.from_queryset(TenantQuerySet)


class TenantModel(models.Model):
    """The base of every model in tenants' schemas."""

    objects = TenantManager()

    class Meta:
        abstract = True
        # Related objects are fetched through the base manager.
        base_manager_name = "objects"

    @classmethod
    def from_db(cls, *args: Any, **kwargs: Any) -> Self:
        """As Django's; the object remembers where it was read."""
        instance = super().from_db(*args, **kwargs)
        _stamp(instance)
        return instance

    def save_base(self, *args: Any, **kwargs: Any) -> None:
        """As Django's, in the object's own schema only."""
        guard(self)
        super().save_base(*args, **kwargs)
        _stamp(self)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        """As Django's, in the object's own schema only."""
        guard(self)
        return super().delete(*args, **kwargs)

    def refresh_from_db(self, *args: Any, **kwargs: Any) -> None:
        """As Django's, in the object's own schema only; deferred fields come this way too."""
        guard(self)
        super().refresh_from_db(*args, **kwargs)


class SameTenantRouter:
    """Refuses to follow a relation of an object of another schema, also to models without these bases (users)."""

    def db_for_read(self, _model: type[models.Model], instance: Any = None, **_: Any) -> None:
        """Say nothing of the database; look only where the object came from.

        Raises:
            WrongTenant: it came from another schema.
        """
        if instance is not None:
            guard(instance)

    db_for_write = db_for_read
