"""The guard against requests forged into our own network."""

import ipaddress
import socket
import time

import pytest

from notifications.channels.network import (
    ForbiddenAddress,
    clean_host,
    connect_pinned,
    is_public,
    readable,
    resolve_public,
)

LOOPBACK = [ipaddress.ip_network("127.0.0.0/8")]
PRIVATE = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")]


class Resolver:
    """Stands in for the system's: answers from a table, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, list[list[str]]] = {}
        self.asked: list[str] = []

    def say(self, name: str, *answers: list[str]) -> None:
        """Answer each further question for a name with the next of these."""
        self.answers[name] = list(answers)

    def __call__(self, host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002
        self.asked.append(host)
        try:
            ipaddress.ip_address(host)
            addresses = [host]
        except ValueError:
            if not self.answers.get(host):
                raise socket.gaierror(socket.EAI_NONAME, "unknown") from None
            addresses = self.answers[host].pop(0)
        return [
            (socket.AF_INET6, type, proto, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, type, proto, "", (address, port))
            for address in addresses
        ]


@pytest.fixture
def resolver(monkeypatch) -> Resolver:
    resolver = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    return resolver


DISGUISED = [
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.1",
    "0",
    "0xa9fea9fe",
    "2852039166",
    "0251.0376.0251.0376",
    "169.254.43518",
    "①②⑦.⓪.⓪.①",
    "127。0。0。1",
    "１２７.0.0.1",
    "127.0.0.1.",
    "0x7f.0.0.1",
    "0X7F.1",
    "017700000001",
    "127.0.0.01",
    "256.256.256.256",
    "1.2.3.4.5",
]


@pytest.mark.parametrize("host", DISGUISED)
def test_an_address_in_disguise_is_refused_without_asking(resolver, host):
    with pytest.raises(ForbiddenAddress):
        resolve_public(host, 587)
    assert resolver.asked in ([], ["127.0.0.1"])


@pytest.mark.parametrize("host", DISGUISED)
def test_the_system_itself_never_gets_to_see_a_disguise(host):
    with pytest.raises(ForbiddenAddress):
        connect_pinned(host, 587, 0.2)


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        "..",
        "http://ok@169.254.169.254/",
        "ok@169.254.169.254",
        "http://ok\\@169.254.169.254/",
        "smtp.example.com:25",
        "smtp.example.com/x",
        "smtp.example.com#x",
        "smtp.example.com?x",
        "smtp.example.com%00.evil.test",
        "smtp.exa\tmple.com",
        "smtp.example.com\r\n",
        " smtp.example.com",
        "smtp..example.com",
        "-smtp.example.com",
        "smtp.example.com\x00",
        "[::1]",
        "[127.0.0.1]",
        "fe80::1%eth0",
        "::ffff:127.0.0.1:25",
        "smtp.пример.рф",
        "a" * 64 + ".com",
        ".".join(["a" * 60] * 5),
    ],
)
def test_what_is_no_host_is_refused_without_asking(resolver, host):
    with pytest.raises(ForbiddenAddress):
        resolve_public(host, 587, allowed=LOOPBACK)
    assert resolver.asked == []


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost.",
        "LOCALHOST",
        "a.localhost",
        "localhost.localdomain",
        "metadata.google.internal",
        "metadata.google.internal.",
        "Metadata.Google.Internal",
        "metadata",
        "redis",
        "redis.default.svc",
        "redis.default.svc.cluster.local",
        "redis.default.svc.cluster.local.",
        "printer.local",
        "db.corp.internal",
        "router.lan",
    ],
)
def test_a_name_of_our_own_network_is_refused_without_asking(resolver, host):
    with pytest.raises(ForbiddenAddress):
        resolve_public(host, 587)
    assert resolver.asked == []


INSIDE = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fc00::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "100::1",
    "2001:db8::1",
    "3fff::1",
    "64:ff9b:1::a9fe:a9fe",
    "5f00::1",
    "4000::1",
]
WRAPPED = [
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:10.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b::10.0.0.1",
    "2002:7f00:1::1",
    "2002:a9fe:a9fe::1",
    "2002:808:808::1",
    "2001:0:a9fe:a9fe::1",
    "2001:0:808:808:0:0:5601:5601",
    "::127.0.0.1",
    "::169.254.169.254",
    "::8.8.8.8",
    "::ffff:0:169.254.169.254",
    "::ffff:0:8.8.8.8",
    "2a00:1450::5efe:169.254.169.254",
    "2a00:1450::200:5efe:10.0.0.1",
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "198.20.0.1", "2a00:1450:4001::1a", "64:ff9b::8.8.8.8"]


@pytest.mark.parametrize("address", INSIDE + WRAPPED)
def test_an_address_of_ours_is_refused_however_it_is_wrapped(resolver, address):
    resolver.say("mail.evil.test.", [address])
    with pytest.raises(ForbiddenAddress) as raised:
        resolve_public("mail.evil.test", 587)
    assert address not in str(raised.value)
    assert str(raised.value).startswith("Host:")


@pytest.mark.parametrize("address", INSIDE + WRAPPED)
def test_an_address_of_ours_is_refused_when_written_out(resolver, address):
    with pytest.raises(ForbiddenAddress):
        resolve_public(address, 587)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_passes(resolver, address):
    resolver.say("mail.example.com.", [address])
    assert [found[:2] for found in resolve_public("mail.example.com", 587)] == [(address, 587)]
    assert is_public(ipaddress.ip_address(address))


def test_one_bad_address_among_good_ones_is_enough(resolver):
    resolver.say("mail.evil.test.", ["8.8.8.8", "1.1.1.1", "10.0.0.1"])
    with pytest.raises(ForbiddenAddress):
        resolve_public("mail.evil.test", 587)


def test_a_name_is_asked_for_absolutely(resolver):
    """Or a cluster's search list makes `mail.shop` a service of the namespace `shop`."""
    resolver.say("mail.shop", ["8.8.8.8"])
    with pytest.raises(OSError, match="unknown"):
        resolve_public("mail.shop", 587)


@pytest.mark.parametrize("port", [22, 80, 443, 5432, 6379])
def test_a_port_that_is_not_for_mail_is_refused(resolver, port):
    resolver.say("mail.example.com.", ["8.8.8.8"])
    with pytest.raises(ForbiddenAddress, match=r"^Port:"):
        resolve_public("mail.example.com", port)


@pytest.mark.parametrize("port", [25, 465, 587, 2525])
def test_the_ports_of_mail_pass(resolver, port):
    resolver.say("mail.example.com.", ["8.8.8.8"])
    assert resolve_public("mail.example.com", port) == [("8.8.8.8", port)]


def test_other_channels_bring_their_own_ports(resolver):
    resolver.say("hook.example.com.", ["8.8.8.8"], ["8.8.8.8"])
    assert resolve_public("hook.example.com", 443, ports=frozenset({443}))
    with pytest.raises(ForbiddenAddress):
        resolve_public("hook.example.com", 587, ports=frozenset({443}))


# What the operator opened


@pytest.mark.parametrize(
    ("host", "asked", "address"),
    [
        ("10.2.3.4", "10.2.3.4", "10.2.3.4"),
        ("relay.corp.test", "relay.corp.test.", "10.2.3.4"),
        ("relay.mail.svc.cluster.local", "relay.mail.svc.cluster.local", "10.2.3.4"),
        ("relay", "relay", "fd00::7"),
        ("relay", "relay", "::ffff:10.2.3.4"),
    ],
)
def test_an_opened_network_is_reached_on_any_port(resolver, host, asked, address):
    resolver.say(asked, [address])
    assert resolve_public(host, 1025, allowed=PRIVATE)[0][:2] == (address, 1025)


def test_a_hosts_file_is_heard_for_opened_networks_only(resolver):
    resolver.say("relay.corp.test", ["10.2.3.4"], ["8.8.8.8"])
    assert resolve_public("relay.corp.test", 25, allowed=PRIVATE) == [("10.2.3.4", 25)]
    with pytest.raises(ForbiddenAddress):
        resolve_public("relay.corp.test", 25, allowed=PRIVATE)


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("relay.corp.test.", ["10.2.3.4", "192.168.0.1"]),
        ("relay.corp.test.", ["127.0.0.1"]),
        ("relay.corp.test.", ["64:ff9b::10.2.3.4"]),
    ],
)
def test_an_opened_network_opens_nothing_else(resolver, name, addresses):
    resolver.say(name, addresses)
    with pytest.raises(ForbiddenAddress):
        resolve_public(name, 25, allowed=PRIVATE)


def test_an_inside_name_tells_nothing_beyond_the_opened_networks(resolver):
    resolver.say("known.default.svc", ["192.168.0.1"])
    with pytest.raises(ForbiddenAddress) as known:
        resolve_public("known.default.svc", 25, allowed=PRIVATE)
    with pytest.raises(ForbiddenAddress) as unknown:
        resolve_public("unknown.default.svc", 25, allowed=PRIVATE)
    assert str(known.value) == str(unknown.value)


# Connecting


def test_the_connection_goes_where_the_first_answer_led(resolver):
    """DNS rebinding: the second answer would lead elsewhere, and is never asked for."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        resolver.say("rebind.evil.test.", ["127.0.0.1"], ["127.0.0.2"])
        with connect_pinned("rebind.evil.test", port, 2, allowed=LOOPBACK) as connection:
            assert connection.getpeername() == ("127.0.0.1", port)
            assert connection.gettimeout() == 2
    assert resolver.asked == ["rebind.evil.test."]


def test_the_next_address_is_tried_when_one_is_dead(resolver):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        resolver.say("mail.acme.test.", ["127.0.0.9", "127.0.0.1"])
        with connect_pinned("mail.acme.test", port, 2, allowed=LOOPBACK) as connection:
            assert connection.getpeername() == ("127.0.0.1", port)


def test_many_addresses_take_no_longer_than_one(resolver, monkeypatch):
    waited = []

    class Dead:
        def __init__(self, *_):
            self.timeout = 0.0

        def settimeout(self, seconds):
            self.timeout = seconds

        def connect(self, _):
            waited.append(self.timeout)
            time.sleep(self.timeout)
            raise TimeoutError("timed out")

        def close(self):
            pass

    monkeypatch.setattr(socket, "socket", Dead)
    resolver.say("mail.example.com.", ["8.8.8.8"] * 100)
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        connect_pinned("mail.example.com", 587, 0.3)
    assert time.monotonic() - started < 0.6
    assert max(waited) < 0.1


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("SMTP.Example.com.", "smtp.example.com"),
        ("8.8.8.8", "8.8.8.8"),
        ("2A00:1450:0::1A", "2a00:1450::1a"),
        ("xn--mnchen-3ya.de", "xn--mnchen-3ya.de"),
        ("_mx.example.com", "_mx.example.com"),
    ],
)
def test_a_host_has_one_spelling(typed, stored):
    assert clean_host(typed) == stored


def test_a_connection_is_readable_once_something_came_or_it_ended():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not readable(ours)
        theirs.sendall(b"x")
        assert readable(ours)
        ours.recv(1)
        assert not readable(ours)
        theirs.close()
        assert readable(ours)
    assert readable(ours)
    assert not readable(None)


def test_with_no_port_to_go_to_only_allowed_networks_are_left(resolver):
    resolver.say("hooks.example.com.", ["8.8.8.8"])
    with pytest.raises(ForbiddenAddress):
        resolve_public("hooks.example.com", 443, allowed=LOOPBACK, ports=frozenset())
    assert resolve_public("127.0.0.1", 443, allowed=LOOPBACK, ports=frozenset())
