"""What crosses the seam between the service and a provider, and the only three ways to fail."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import Any, ClassVar, Literal

type ErrorClass = Literal["transient", "throttled", "permanent", "auth", "invalid_recipient"]
type Networks = Sequence[IPv4Network | IPv6Network]
type Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """Everything an adapter knows about one message; no model crosses this line."""

    reference: str
    """The message's id, the same on every attempt."""
    to: str
    to_name: str = ""
    from_address: str = ""
    from_name: str = ""
    reply_to: str = ""
    subject: str = ""
    text: str = ""
    html: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Extra headers the sender asked for; what the service answers for is refused here."""
    service_headers: Mapping[str, str] = field(default_factory=dict)
    """Headers the service itself adds, such as List-Unsubscribe."""
    message_id: str = ""
    """The Message-ID with its angle brackets, kept over attempts; derived from the reference when empty."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The provider took the message."""

    provider_id: str = ""
    response: str = ""
    """The provider's own words: short, printable, without secrets."""


class Failure(Exception):
    """A hand-over that did not end in acceptance; its text may be shown to the tenant."""

    def __init__(self, text: str, *, error_class: ErrorClass = "transient", code: str = "") -> None:
        super().__init__(text)
        self.error_class: ErrorClass = error_class
        self.code = code
        """The provider's own code, empty when there was none."""


class Rejected(Failure):
    """The provider will never take this message; retrying is pointless."""

    def __init__(
        self, text: str, *, error_class: ErrorClass = "permanent", code: str = "", dead_address: bool = False
    ) -> None:
        super().__init__(text, error_class=error_class, code=code)
        self.dead_address = dead_address
        """Whether the provider said in so many words that the address does not exist: nothing is sent there again."""


class Unavailable(Failure):
    """The provider did not take the message; the same send may work later."""

    def __init__(
        self,
        text: str,
        *,
        error_class: ErrorClass = "transient",
        code: str = "",
        retry_after: timedelta | None = None,
        account_wide: bool | None = None,
    ) -> None:
        super().__init__(text, error_class=error_class, code=code)
        self.retry_after = retry_after
        self.account_wide = error_class in {"throttled", "auth"} if account_wide is None else account_wide
        """Whether it is about the account or the way to its provider, and so meets its next message too."""


class Uncertain(Failure):
    """The provider may have taken the message: wait for a receipt, do not resend blindly."""

    def __init__(
        self, text: str, *, error_class: ErrorClass = "transient", code: str = "", account_wide: bool = True
    ) -> None:
        super().__init__(text, error_class=error_class, code=code)
        self.account_wide = account_wide
        """As with Unavailable: a server that stops answering does so for all, an address of its own for itself."""


class InvalidSettings(ValueError):
    """A setting of an account cannot be used; `field` names it for forms."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class Adapter(ABC):
    """One account with one provider. It outlives many batches and keeps its connections open.

    `send` is called from several threads at once, at most `connections` of them.
    """

    provider: ClassVar[str]
    platform_only: ClassVar[bool] = False
    """True when a tenant may not choose it for an account of its own."""
    secret_settings: ClassVar[frozenset[str]] = frozenset()
    """The settings to encrypt at rest and never to show again."""
    can_look_up: ClassVar[bool] = False
    """True when `look_up` can tell whether the provider took a message."""
    connections: int = 1

    @abstractmethod
    def __init__(self, settings: Settings, *, allowed_networks: Networks = ()) -> None:
        """Read the account's settings; nothing is connected yet.

        Args:
            settings: what `check_settings` accepts.
            allowed_networks: private networks the operator lets accounts reach; never a tenant's to set.

        Raises:
            InvalidSettings: as `check_settings`.
        """

    @classmethod
    @abstractmethod
    def check_settings(cls, settings: Settings) -> None:
        """Raise InvalidSettings naming the first field that cannot be used."""

    @abstractmethod
    def send(self, message: Outgoing) -> Accepted:
        """Hand one message over.

        Raises:
            Rejected: it will never be taken.
            Unavailable: it was not taken; the same send may work later.
            Uncertain: it may have been taken.
        """

    def look_up(self, message: Outgoing) -> Accepted | None:
        """Ask the provider about a hand-over of unknown fate: how it took it, or None when it does not have it.

        Raises:
            Failure: it cannot be told now.
        """
        raise Unavailable(f"{self.provider} cannot be asked about message {message.reference}")

    def close(self) -> None:
        """Close what is kept open; hand-overs in flight finish first, and a later send opens anew."""
        return


def refuse_unknown(settings: Settings, known: Sequence[str]) -> None:
    """Raise InvalidSettings for a setting that would silently do nothing."""
    for name in settings:
        if name not in known:
            raise InvalidSettings(name, f"there is no such setting. Known are: {', '.join(known) or 'none'}.")


def read_connections(settings: Settings, default: int) -> int:
    """The number of hand-overs that may run at once, 1 to 64."""
    connections = settings.get("connections", default)
    if not isinstance(connections, int) or isinstance(connections, bool) or not 1 <= connections <= 64:
        raise InvalidSettings("connections", "give a whole number from 1 to 64.")
    return connections
