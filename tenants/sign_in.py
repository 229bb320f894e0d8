"""How often somebody may try to sign in, by address and by account. Without Redis nobody can be counted: nobody may."""

from collections.abc import Callable
from functools import wraps
from ipaddress import ip_address

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django_ratelimit.core import is_ratelimited
from redis import RedisError

RETRY_SECONDS = 60


def client_ip(request: HttpRequest) -> str:
    """The address a request comes from; behind our own proxy, the one that the proxy saw.

    Proxies append to X-Forwarded-For, so only its last entry is not the client's own invention. Where that is no
    address, such as `unknown`, the proxy's own has to do.
    """
    forwarded = request.headers.get("x-forwarded-for", "") if settings.BEHIND_TLS_PROXY else ""
    return _without_port(forwarded.rpartition(",")[2].strip()) or request.META["REMOTE_ADDR"]


def _without_port(entry: str) -> str:
    """The address in `198.51.100.7:4711`, `[2001:db8::1]:443` or an address alone; empty for anything else."""
    if entry.startswith("["):
        entry = entry[1:].partition("]")[0]
    elif entry.count(":") == 1:
        entry = entry.partition(":")[0]
    try:
        # PostgreSQL's inet, where the audit log keeps it, knows no zones.
        return str(ip_address(entry.partition("%")[0]))
    except ValueError:
        return ""


def _account(_: str, request: HttpRequest) -> str:
    return request.POST.get("username", "").strip().lower()


def _address(_: str, request: HttpRequest) -> str:
    return client_ip(request)


def limit_sign_in[**P](view: Callable[P, HttpResponse]) -> Callable[P, HttpResponse]:
    """Wrap a sign-in view: 10 tries a minute by account, 30 by address; then 429, and 503 while Redis is away."""

    @wraps(view)
    def limited(*args: P.args, **kwargs: P.kwargs) -> HttpResponse:
        request = next(arg for arg in args if isinstance(arg, HttpRequest))
        if request.method != "POST":
            return view(*args, **kwargs)
        try:
            # Both are counted, whichever is over.
            over = [
                is_ratelimited(request, group="sign-in", key=key, rate=rate, increment=True)
                for key, rate in ((_account, "10/m"), (_address, "30/m"))
            ]
        except (RedisError, OSError):
            return _refuse(503, "Signing in is closed for a moment. Try again soon.")
        if any(over):
            return _refuse(429, "Too many tries to sign in. Wait a minute, then try again.")
        return view(*args, **kwargs)

    return limited


def _refuse(status: int, text: str) -> HttpResponse:
    return HttpResponse(
        f"{text}\n", status=status, content_type="text/plain", headers={"Retry-After": str(RETRY_SECONDS)}
    )
