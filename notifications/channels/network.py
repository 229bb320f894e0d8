"""Where an account's host may lead: the guard against requests forged into our own network (SSRF).

Names are checked, resolved once, every address is checked, and the connection goes to what was checked:
a second look-up by the socket could be answered differently (DNS rebinding).
"""

import ipaddress
import re
import select
import socket
import ssl
import time
from ipaddress import IPv4Address, IPv6Address

from notifications.channels.base import Networks

type Address = IPv4Address | IPv6Address
type SocketAddress = tuple[str, int] | tuple[str, int, int, int]

SMTP_PORTS = frozenset({25, 465, 587, 2525})

INSIDE_SUFFIXES = (
    "localhost",
    "localdomain",
    "local",
    "internal",
    "intranet",
    "lan",
    "home.arpa",
    "in-addr.arpa",
    "ip6.arpa",
    "svc",
    "cluster.local",
)

# `is_global` is not enough: it is true for multicast, NAT64, 6to4, the metadata services of Azure and Oracle.
DENIED_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    )
)
GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
DENIED_V6 = tuple(
    ipaddress.IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
ISATAP = (0x00005EFE, 0x02005EFE)

HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
)
NUMERIC_LABEL = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)")


class ForbiddenAddress(ValueError):
    """A host that may not be reached. Its text never holds what the host resolved to."""


def clean_host(host: str) -> str:
    """A host as it may be stored: a name in ASCII without trailing dot, a dotted quad or an IPv6 address.

    Raises:
        ForbiddenAddress: it is none of these, or a disguised address (`2130706433`, `0x7f.1`, `127.1`, `①②⑦.⓪.⓪.①`).
    """
    name = host.removesuffix(".").lower()
    if ":" in name:
        try:
            address = IPv6Address(name)
        except ValueError:
            address = None
        if address is None or address.scope_id is not None:
            raise ForbiddenAddress("Host: write a host name alone, without scheme, port, path or user name.")
        return str(address)
    if not HOST_NAME.fullmatch(name):
        raise ForbiddenAddress(
            "Host: write a host name alone, such as smtp.example.com, in ASCII (xn--… for other scripts)."
        )
    if NUMERIC_LABEL.fullmatch(name.rpartition(".")[2]):
        try:
            return str(IPv4Address(name))
        except ValueError:
            raise ForbiddenAddress("Host: write an IPv4 address as four decimal numbers.") from None
    return name


def resolve_public(
    host: str, port: int, *, allowed: Networks = (), ports: frozenset[int] = SMTP_PORTS
) -> list[SocketAddress]:
    """Resolve a host once and return the addresses to connect to, each of them checked.

    Args:
        host: a name or an address, as somebody typed it.
        port: must be one of `ports`, unless every address is in `allowed`.
        allowed: networks that the operator opened; a tenant never sets them.
        ports: what a public host may be asked for.

    Raises:
        ForbiddenAddress: the name, the port or any one of the addresses is not to be reached.
        OSError: the name could not be resolved.
    """
    name = clean_host(host)
    inside = _is_inside(name)
    forbidden = ForbiddenAddress("Host: this host may not be reached from here.")
    if inside and not allowed:
        raise forbidden
    try:
        found, as_written = _look_up(name, port, inside=inside, allowed=allowed)
    except OSError:
        if inside:
            # Or the answer would tell which names exist in our own network.
            raise forbidden from None
        raise
    addresses = [_address(sockaddr) for sockaddr in found]
    if not addresses:
        raise forbidden
    if all(_is_in(address, allowed) for address in addresses):
        return found
    if as_written or not all(_is_in(address, allowed) or is_public(address) for address in addresses):
        raise forbidden
    if port not in ports:
        raise ForbiddenAddress(f"Port: use one of {', '.join(map(str, sorted(ports)))}.")
    return found


def connect_pinned(
    host: str, port: int, timeout: float, *, allowed: Networks = (), ports: frozenset[int] = SMTP_PORTS
) -> socket.socket:
    """Connect to a host at the addresses that were checked, with no second look-up.

    Args:
        timeout: seconds for all addresses together; it stays the socket's timeout.

    Raises:
        ForbiddenAddress: as `resolve_public`.
        OSError: none of the addresses answered.
    """
    addresses = resolve_public(host, port, allowed=allowed, ports=ports)
    deadline = time.monotonic() + timeout
    failure: OSError = TimeoutError("timed out")
    for position, sockaddr in enumerate(addresses):
        # A share each, so that a dead first address leaves time for the others, and a hundred cost no more than one.
        share = (deadline - time.monotonic()) / (len(addresses) - position)
        if share <= 0:
            break
        connection = socket.socket(socket.AF_INET6 if len(sockaddr) == 4 else socket.AF_INET, socket.SOCK_STREAM)
        try:
            connection.settimeout(share)
            connection.connect(sockaddr)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(timeout)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise failure


def is_public(address: Address) -> bool:
    """Whether an address is somebody else's on the public internet, whatever it is wrapped in.

    Mapped (RFC 4291) and NAT64 (RFC 6052) addresses are what they wrap, as DNS64 clusters reach all of IPv4 that
    way. 6to4, Teredo, IPv4-compatible, translated and ISATAP forms of anything are refused: no mail server lives there.
    """
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in NAT64:
            return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
        if (int(address) >> 32) & 0xFFFFFFFF in ISATAP:
            return False
        return address in GLOBAL_V6 and not any(address in network for network in DENIED_V6)
    return address.is_global and not any(address in network for network in DENIED_V4)


def readable(connection: socket.socket | None) -> bool:
    """Whether reading would give something at once, be it the connection's end; never when there is none."""
    if connection is None:
        return False
    if connection.fileno() < 0:
        return True
    if isinstance(connection, ssl.SSLSocket) and connection.pending():
        return True
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _is_inside(name: str) -> bool:
    """Whether a name belongs to somebody's own network; a name of one label is found by search lists only."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name or any(name == suffix or name.endswith(f".{suffix}") for suffix in INSIDE_SUFFIXES)
    return False


def _look_up(name: str, port: int, *, inside: bool, allowed: Networks) -> tuple[list[SocketAddress], bool]:
    """What a name resolves to, and whether search lists and hosts files had a say in it."""
    if not inside:
        literal = ":" in name or NUMERIC_LABEL.fullmatch(name.rpartition(".")[2])
        try:
            # Absolute, or a cluster's search list turns `mail.shop` into `mail.shop.svc.cluster.local`.
            return _getaddrinfo(name if literal else f"{name}.", port), False
        except OSError:
            if not allowed:
                raise
    return _getaddrinfo(name, port), True


def _getaddrinfo(name: str, port: int) -> list[SocketAddress]:
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [
        sockaddr  # type: ignore[misc]  # a pair of ints only where Python has no IPv6
        for family, _, _, _, sockaddr in found
        if family in {socket.AF_INET, socket.AF_INET6}
    ]


def _address(sockaddr: SocketAddress) -> Address:
    address = ipaddress.ip_address(sockaddr[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _is_in(address: Address, networks: Networks) -> bool:
    return any(address in network for network in networks)
