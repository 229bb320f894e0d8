"""A mail server that takes everything and remembers who logged in to send what."""

import email
import email.policy
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from threading import Condition
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword


@dataclass(frozen=True)
class Caught:
    """One mail as it arrived."""

    sender: str
    recipient: str
    login: str
    """`user:password` of the connection it came over; empty without a log-in."""
    message: EmailMessage

    @property
    def subject(self) -> str:
        return str(self.message["Subject"])

    def part(self, kind: str) -> str:
        """The `plain` or `html` body, '' when there is none."""
        body = self.message.get_body((kind,))
        return body.get_content().replace("\r\n", "\n").rstrip("\n") if body else ""


class Catcher:
    """Listens on a free loopback port."""

    def __init__(self) -> None:
        self.mails: list[Caught] = []
        self._arrived = Condition()
        self._controller = _Controller(
            self, hostname="127.0.0.1", port=0, authenticator=_welcome, auth_require_tls=False, decode_data=False
        )
        self._controller.start()
        self.port: int = self._controller.port

    def stop(self) -> None:
        self._controller.stop()

    def settings(self, **more: Any) -> dict[str, Any]:
        """What an account at this server has in its settings."""
        return {"smtp": {"host": "127.0.0.1", "port": self.port, "use_tls": False, **more}}

    def wait_for(self, number: int, seconds: float = 20) -> list[Caught]:
        """The mails, once there are so many."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.mails) >= number, seconds), f"{len(self.mails)} of {number}"
        return self.mails

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        with self._arrived:
            self.mails += [
                Caught(
                    sender=envelope.mail_from,
                    recipient=recipient,
                    login=session.auth_data or "",
                    message=email.message_from_bytes(envelope.content, policy=email.policy.default),
                )
                for recipient in envelope.rcpt_tos
            ]
            self._arrived.notify_all()
        return "250 2.0.0 taken"


class _Controller(Controller):
    def _trigger_server(self) -> None:
        # The port is known only once the system has chosen a free one.
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


def _welcome(server: Any, session: Any, envelope: Any, mechanism: str, data: LoginPassword) -> AuthResult:
    return AuthResult(success=True, auth_data=f"{data.login.decode()}:{data.password.decode()}")


@pytest.fixture
def mail() -> Iterator[Catcher]:
    """A mail server for the test."""
    catcher = Catcher()
    yield catcher
    catcher.stop()
