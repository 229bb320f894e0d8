"""Log messages instead of sending them: the default of every channel in development."""

import logging

from notifications.channels.base import Accepted, Adapter, Networks, Outgoing, Settings, refuse_unknown

logger = logging.getLogger("notifications.console")


class Console(Adapter):
    """Writes each message as one readable block; every message is accepted."""

    provider = "console"
    connections = 1

    def __init__(self, settings: Settings, *, allowed_networks: Networks = ()) -> None:  # noqa: ARG002
        self.check_settings(settings)

    @classmethod
    def check_settings(cls, settings: Settings) -> None:
        """Raise InvalidSettings when there is any: nothing can be set."""
        refuse_unknown(settings, ())

    def send(self, message: Outgoing) -> Accepted:
        """Log the message; its reference serves as the provider's id."""
        logger.info("%s", block(message))
        return Accepted(provider_id=message.reference, response="logged")


def block(message: Outgoing) -> str:
    """The message as lines a person can read; no text of it can forge a line or drive the terminal."""
    named = {
        "Message": message.reference,
        "To": f"{message.to_name} <{message.to}>" if message.to_name else message.to,
        "From": f"{message.from_name} <{message.from_address}>" if message.from_name else message.from_address,
        "Reply-To": message.reply_to,
        "Subject": message.subject,
    }
    head = [f"{name}: {_printable(value)}" for name, value in named.items() if value]
    body = [f"  | {_printable(line)}" for line in (message.text or message.html).splitlines()]
    return "\n".join([*head, *body])


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
