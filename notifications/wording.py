"""Which template's wording a message gets, and that wording compiled."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from uuid import UUID

from django.conf import settings

from notifications.exceptions import TemplateNotFoundError
from notifications.models import NotificationTemplate, Scope, TemplateVersion
from notifications.rendering import CompiledContent, compile_content
from notifications.routing import in_scope
from tenants.connection import connection

_KEPT = 2000


@dataclass(frozen=True, slots=True)
class TemplateRef:
    """A template as a message refers to it: pinned to the version that it was accepted with."""

    scope: str
    uuid: UUID
    version: int
    language: str
    muted: bool


def languages(wanted: str, default: str) -> list[str]:
    """The languages to look for, best first: exact, base, the tenant's default, unspecified."""
    wanted, default = (language.lower().replace("_", "-") for language in (wanted, default))
    named = filter(None, [wanted, wanted.partition("-")[0], default])
    return [*dict.fromkeys(named), ""]


def find(event_key: str, channel: str, language: str, default_language: str) -> TemplateRef:
    """The active template for an event: the tenant's in the best language, else the platform's.

    Raises:
        TemplateNotFoundError: there is none.
    """
    order = languages(language, default_language)
    scopes = [Scope.TENANT, Scope.PLATFORM] if connection.schema_name != "public" else [Scope.PLATFORM]
    if not settings.NOTIFY_ALLOW_GLOBAL_TEMPLATE_FALLBACK:
        scopes = scopes[:1]
    for scope in scopes:
        with in_scope(scope):
            found = list(
                NotificationTemplate.objects.filter(
                    event_key=event_key, channel=channel, language__in=order, is_active=True
                ).only("id", "version", "language", "muted")
            )
        if found:
            best = min(found, key=lambda template: order.index(template.language))
            return TemplateRef(scope, best.pk, best.version, best.language, best.muted)
    where = "with the tenant or the platform" if len(scopes) > 1 else "here (the platform's are switched off)"
    raise TemplateNotFoundError(
        f"no active template for event_key={event_key!r}, channel={channel!r}, "
        f"language={language or default_language!r} {where}"
    )


class _Compiled:
    """The most recently used compiled versions. A version never changes, so what is kept is never stale."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, UUID, int], CompiledContent] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, scope: str, template: UUID, version: int) -> CompiledContent:
        key = ("public" if scope == Scope.PLATFORM else connection.schema_name, template, version)
        with self._lock:
            if found := self._kept.get(key):
                self._kept.move_to_end(key)
                return found
        with in_scope(scope):
            wording = TemplateVersion.objects.filter(template_id=template, number=version).first()
        if wording is None:
            raise TemplateNotFoundError(f"version {version} of template {template} is gone")
        found = compile_content(subject=wording.subject, text=wording.body_text, html=wording.body_html)
        if connection.in_atomic_block:
            # The version may be this transaction's own, and never come to be.
            return found
        with self._lock:
            self._kept[key] = found
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found


_compiled = _Compiled()


def compiled(scope: str, template: UUID, version: int) -> CompiledContent:
    """The compiled wording of one version of a template.

    Raises:
        TemplateNotFoundError: the version is gone.
    """
    return _compiled.get(scope, template, version)
