"""SMTP (RFC 5321) to a server of the account's choice, over kept-open connections."""

from dataclasses import dataclass, field, fields
from typing import Self

from notifications.channels import network
from notifications.channels.base import (
    Accepted,
    Adapter,
    InvalidSettings,
    Networks,
    Outgoing,
    Rejected,
    Settings,
    read_connections,
    refuse_unknown,
)
from notifications.channels.email.mime import compose
from notifications.channels.email.session import Connection, Stale
from notifications.channels.pool import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """An account's settings, checked; times in seconds."""

    host: str
    port: int
    username: str = ""
    password: str = field(default="", repr=False)
    use_tls: bool = True
    """STARTTLS; without it and without `use_ssl` mail goes in clear."""
    use_ssl: bool = False
    timeout: float = 30.0
    """For connecting and for each reply."""
    data_timeout: float = 120.0
    """For the reply to the message itself, which the server may scan first."""
    connections: int = 8

    @classmethod
    def read(cls, settings: Settings) -> Self:
        """Read settings as stored.

        Raises:
            InvalidSettings: names the first field that cannot be used.
        """
        refuse_unknown(settings, [option.name for option in fields(cls)])
        use_ssl = _flag(settings, "use_ssl", default=False)
        use_tls = _flag(settings, "use_tls", default=not use_ssl)
        if use_ssl and use_tls:
            raise InvalidSettings("use_tls", "choose STARTTLS or TLS from the start (use_ssl), not both.")
        username, password = _credential(settings, "username"), _credential(settings, "password")
        if bool(username) != bool(password):
            raise InvalidSettings("password" if username else "username", "give user name and password, or neither.")
        return cls(
            host=_host(settings),
            port=_port(settings, default=465 if use_ssl else 587),
            username=username,
            password=password,
            use_tls=use_tls,
            use_ssl=use_ssl,
            timeout=_seconds(settings, "timeout", 30.0, most=60),
            data_timeout=_seconds(settings, "data_timeout", 120.0, most=180),
            connections=read_connections(settings, default=8),
        )


class SMTP(Adapter):
    """An account with an SMTP server: up to `connections` mails at once, each connection used again."""

    provider = "smtp"
    secret_settings = frozenset({"password"})

    def __init__(self, settings: Settings, *, allowed_networks: Networks = ()) -> None:
        options = Options.read(settings)
        self.connections = options.connections
        self._name = f"{options.host}:{options.port}"
        template = Connection(
            host=options.host,
            port=options.port,
            username=options.username,
            password=options.password,
            use_tls=options.use_tls,
            use_ssl=options.use_ssl,
            timeout=options.timeout,
            data_timeout=options.data_timeout,
            allowed=tuple(allowed_networks),
        )
        self._pool = Pool(template.another, options.connections)

    def __repr__(self) -> str:
        return f"<SMTP {self._name}>"

    @classmethod
    def check_settings(cls, settings: Settings) -> None:
        """Raise InvalidSettings naming the first field that cannot be used."""
        Options.read(settings)

    def send(self, message: Outgoing) -> Accepted:
        """Hand one mail over; its Message-ID is the provider's id, as bounces quote it.

        Raises:
            Rejected: a header or address cannot be sent, the host is forbidden, or the server refused for good.
            Unavailable: the server could not be reached, would not log us in, or refused for now.
            Uncertain: the connection broke after the mail went out and before the server's answer.
        """
        try:
            mail = compose(message)
        except ValueError as error:
            raise Rejected(str(error)) from None
        with self._pool.lend() as connection:
            try:
                response = connection.hand_over(mail)
            except Stale:
                # Kept open and gone meanwhile, before any of the mail went out: a fresh one tells the truth.
                response = connection.hand_over(mail)
        return Accepted(provider_id=mail.message_id, response=response)

    def close(self) -> None:
        """Say goodbye on the idle connections; those in use close when their mail is through."""
        self._pool.close()


def _host(settings: Settings) -> str:
    host = settings.get("host")
    if not isinstance(host, str) or not host:
        raise InvalidSettings("host", "give the mail server's name, such as smtp.example.com.")
    try:
        return network.clean_host(host)
    except network.ForbiddenAddress as error:
        raise InvalidSettings("host", str(error).removeprefix("Host: ")) from None


def _port(settings: Settings, default: int) -> int:
    port = settings.get("port", default)
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        raise InvalidSettings("port", "give a port number; 587, 465, 2525 and 25 are usual.")
    return port


def _flag(settings: Settings, name: str, *, default: bool) -> bool:
    flag = settings.get(name, default)
    if not isinstance(flag, bool):
        raise InvalidSettings(name, "say true or false.")
    return flag


def _seconds(settings: Settings, name: str, default: float, most: int) -> float:
    seconds = settings.get(name, default)
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds <= most:
        raise InvalidSettings(name, f"give a number of seconds up to {most}.")
    return float(seconds)


def _credential(settings: Settings, name: str) -> str:
    credential = settings.get(name, "")
    if not isinstance(credential, str) or not credential.isascii() or not (credential.isprintable()):
        # smtplib logs in with ASCII only, and its error would quote the password.
        raise InvalidSettings(name, "use ASCII letters, digits and signs only.")
    return credential
