"""The one place a new provider is announced."""

from notifications.channels.base import Adapter, Networks, Settings
from notifications.channels.console import Console
from notifications.channels.email.django import DjangoMail
from notifications.channels.email.smtp import SMTP
from notifications.channels.webhook.https import HTTPS

ADAPTERS: dict[tuple[str, str], type[Adapter]] = {
    ("email", "smtp"): SMTP,
    ("email", "django"): DjangoMail,
    ("email", "console"): Console,
    ("sms", "console"): Console,
    ("webhook", "https"): HTTPS,
}


class UnknownProvider(LookupError):
    """No adapter is registered for this channel and provider."""


def adapter_class(channel: str, provider: str) -> type[Adapter]:
    """The adapter of a provider on a channel.

    Raises:
        UnknownProvider: there is none; the message lists those there are.
    """
    try:
        return ADAPTERS[channel, provider]
    except KeyError:
        known = ", ".join(sorted(other for kind, other in ADAPTERS if kind == channel))
        channels = ", ".join(sorted({kind for kind, _ in ADAPTERS}))
        hint = f"available on {channel!r} are: {known}" if known else f"the channels are: {channels}"
        raise UnknownProvider(f"There is no provider {provider!r} for channel {channel!r}; {hint}.") from None


def secret_settings() -> frozenset[str]:
    """Every setting that some provider's adapter calls a secret.

    Of all providers, not of one: what is about to be stored does not always say whose it is.
    """
    return frozenset[str]().union(*(adapter.secret_settings for adapter in ADAPTERS.values()))


def build(channel: str, provider: str, settings: Settings, *, allowed_networks: Networks = ()) -> Adapter:
    """Build an account's adapter; nothing is connected yet.

    Args:
        channel: "email", "sms", …
        provider: a provider's name on that channel.
        settings: the account's settings, its secrets in clear.
        allowed_networks: private networks the operator lets accounts reach; never a tenant's to set.

    Raises:
        UnknownProvider: no such provider on that channel.
        InvalidSettings: a setting cannot be used; the error names the field.
    """
    return adapter_class(channel, provider)(settings, allowed_networks=allowed_networks)
