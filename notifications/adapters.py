"""Warm adapters: one an account and process, kept over many turns with its connections open."""

import threading
from collections import OrderedDict
from ipaddress import ip_network
from typing import Any
from uuid import UUID

from django.conf import settings

from notifications import channels
from notifications.channels import Adapter, InvalidSettings, Rejected, Unavailable, UnknownProvider
from notifications.models import Account, Scope
from notifications.vault import SealBroken
from tenants.connection import connection

_EVERYWHERE = ("0.0.0.0/0", "::/0")
_KEPT = 200


class _Adapters:
    """The most recently used adapters, by schema and account; an account's last change makes a new one."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, UUID], tuple[Any, Adapter]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, account: Account, schema_name: str) -> Adapter:
        key = (schema_name, account.pk)
        with self._lock:
            kept = self._kept.get(key)
            if kept and kept[0] == account.updated_at:
                self._kept.move_to_end(key)
                return kept[1]
        made = build(account, schema_name)
        with self._lock:
            replaced = [self._kept.pop(key, None)]
            self._kept[key] = (account.updated_at, made)
            if len(self._kept) > _KEPT:
                replaced.append(self._kept.popitem(last=False)[1])
        for old in filter(None, replaced):
            old[1].close()
        return made

    def close(self) -> None:
        with self._lock:
            kept, self._kept = self._kept, OrderedDict()
        for _, adapter in kept.values():
            adapter.close()


_adapters = _Adapters()


def build(account: Account, schema_name: str) -> Adapter:
    """A new adapter from an account of the given schema.

    Raises:
        Rejected: the account's settings cannot be used; the text says which and why.
        Unavailable: its provider is not known here, or its secrets do not open with this process's keys.
    """
    platform = schema_name == "public"
    try:
        kind = channels.adapter_class(account.kind, account.provider_name)
        if kind.platform_only and not platform:
            raise Rejected(
                f"the provider {account.provider_name!r} is the platform's own: choose another for {account}"
            )
        # What an operator set up may be anywhere; what a tenant set up must not reach inside.
        allowed = _EVERYWHERE if platform else settings.NOTIFY_PRIVATE_NETWORKS
        return channels.build(
            account.kind,
            account.provider_name,
            account.adapter_settings(),
            allowed_networks=[ip_network(network) for network in allowed],
        )
    except InvalidSettings as error:
        raise Rejected(f"account {account}: {error}", error_class="auth") from error
    except (UnknownProvider, SealBroken) as error:
        # While keys are rotated or versions rolled out, another worker may know what this one does not yet.
        raise Unavailable(f"account {account}: {error}", error_class="auth") from error


def adapter_for(account: Account, scope: str = Scope.TENANT) -> Adapter:
    """The warm adapter of an account of the current tenant, or of the platform.

    Raises:
        Rejected, Unavailable: as `build`.
    """
    return _adapters.get(account, "public" if scope == Scope.PLATFORM else connection.schema_name)


def get_adapter(channel: str, account: Account | None = None) -> Adapter:
    """The adapter of an account, or of the sender that the current tenant would use on a channel.

    Raises:
        CommunicationError: nobody can send on this channel.
        Rejected, Unavailable: as `build`.
    """
    from notifications import routing
    from notifications.models import CommunicationSettings

    if account is not None:
        return adapter_for(account)
    sender = routing.choose_sender(channel, None, CommunicationSettings.objects.get())
    return adapter_for(sender.outbox.account, sender.scope)


def close_all() -> None:
    """Close every connection that is kept open: called when a process ends."""
    _adapters.close()
