"""A content type cache with a part for each schema.

Django keeps one for the process, and django-tenants empties it at each change of schema. With threads in
different tenants the one empties what the other fills, and each is given the other's ids: permissions and log
entries then name the wrong model. Here every schema has its own part, so nothing needs emptying at a change.
"""

from collections import OrderedDict
from threading import Lock
from typing import Any

from django.contrib.contenttypes.models import ContentType
from django_tenants.postgresql_backend import base

from tenants.connection import connection

# A part holds some fifty small objects; the tenants used longest ago give way.
LARGEST = 256


class SchemaCache:
    """What `ContentTypeManager._cache` is used as: database alias → {id or names: content type}."""

    def __init__(self, largest: int = LARGEST) -> None:
        """Keep the parts of at most `largest` schemas."""
        self._parts: OrderedDict[str, dict[str, dict[Any, ContentType]]] = OrderedDict()
        self._largest, self._lock = largest, Lock()

    def _part(self) -> dict[str, dict[Any, ContentType]]:
        schema = connection.schema_name
        with self._lock:
            part = self._parts.setdefault(schema, {})
            self._parts.move_to_end(schema)
            if len(self._parts) > self._largest:
                self._parts.popitem(last=False)
        return part

    def __getitem__(self, using: str) -> dict[Any, ContentType]:
        return self._part()[using]

    def setdefault(self, using: str, default: dict[Any, ContentType]) -> dict[Any, ContentType]:
        """The current schema's part for a database."""
        return self._part().setdefault(using, default)

    def clear(self) -> None:
        """Forget the current schema's content types, as Django does after migrations."""
        with self._lock:
            self._parts.pop(connection.schema_name, None)


class _Untouched:
    """Stands for `ContentType` where django-tenants empties the cache at each change of schema."""

    class objects:  # noqa: N801 (the name it is called by)
        @staticmethod
        def clear_cache() -> None:
            """Keep everything: no schema can see another one's part."""


def install() -> None:
    """Put the cache in place of Django's."""
    cache = SchemaCache()
    for manager in {ContentType.objects, *ContentType._meta.local_managers}:
        manager._cache = cache  # type: ignore[attr-defined]
    base.ContentType = _Untouched
