"""What other apps do when a tenant ends; they register it, so that this app need not know them.

A hook is called in the public schema, inside the transaction that ends the tenant: what it raises undoes all.
"""

from collections.abc import Callable

from tenants.models import Tenant

type Hook = Callable[[Tenant], object]

_on_close: list[Hook] = []
_on_drop: list[Hook] = []


def on_close[H: Hook](hook: H) -> H:
    """Register what to do when a tenant is closed: stop its work."""
    _on_close.append(hook)
    return hook


def on_drop[H: Hook](hook: H) -> H:
    """Register what to do when a closed tenant's schema is dropped: remove what public holds of it."""
    _on_drop.append(hook)
    return hook


def closed(tenant: Tenant) -> None:
    """Run the hooks of a closed tenant."""
    for hook in _on_close:
        hook(tenant)


def dropped(tenant: Tenant) -> None:
    """Run the hooks of a tenant whose schema goes."""
    for hook in _on_drop:
        hook(tenant)
