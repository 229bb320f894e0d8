"""Whatever mail backend the platform itself is set up with; for the platform's own accounts only."""

import contextlib
import smtplib
import time

from django.core.mail import EmailMultiAlternatives, mailers
from django.core.mail.backends.base import BaseEmailBackend

from notifications.channels.base import (
    Accepted,
    Adapter,
    Failure,
    InvalidSettings,
    Networks,
    Outgoing,
    Rejected,
    Settings,
    Unavailable,
    Uncertain,
    read_connections,
    refuse_unknown,
)
from notifications.channels.email.mime import django_message, message_id
from notifications.channels.email.session import IDLE_SECONDS, NOT_LOGGED_IN, UNREACHABLE, refusal
from notifications.channels.pool import Pool


class DjangoMail(Adapter):
    """Sends through the platform's `MAILERS` (or its `EMAIL_BACKEND`), on connections that stay open."""

    provider = "django"
    platform_only = True

    def __init__(self, settings: Settings, *, allowed_networks: Networks = ()) -> None:  # noqa: ARG002
        self.check_settings(settings)
        self.connections = read_connections(settings, default=1)
        alias = settings.get("mailer", "default")
        self._pool = Pool(lambda: KeptBackend(alias), self.connections)

    @classmethod
    def check_settings(cls, settings: Settings) -> None:
        """Raise InvalidSettings unless `mailer` (a name in MAILERS) and `connections` can be used."""
        refuse_unknown(settings, ["mailer", "connections"])
        read_connections(settings, default=1)
        alias = settings.get("mailer", "default")
        if alias != "default" and alias not in list(mailers):
            raise InvalidSettings("mailer", "there is no such mailer in the platform's MAILERS.")

    def send(self, message: Outgoing) -> Accepted:
        """Hand one mail to the backend; its Message-ID is the provider's id.

        Raises:
            Rejected: a header or address cannot be sent, or the server refused for good.
            Unavailable: the backend could not connect, or its server refused for now.
            Uncertain: the backend failed in a way that does not tell whether the mail went out.
        """
        try:
            mail = django_message(message)
        except ValueError as error:
            raise Rejected(str(error)) from None
        with self._pool.lend() as backend:
            backend.hand_over(mail)
        return Accepted(provider_id=message_id(message))

    def close(self) -> None:
        """Close the idle backends; those in use close when their mail is through."""
        self._pool.close()


class KeptBackend:
    """One backend that stays open between mails."""

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._backend: BaseEmailBackend | None = None
        self._idle_since = 0.0

    def hand_over(self, mail: EmailMultiAlternatives) -> None:
        """Send one mail, or raise one of the three failures."""
        backend = self._opened()
        try:
            taken = backend.send_messages([mail])
        except Exception as error:
            self.close()
            raise _meaning(error) from error
        if taken == 0:
            raise Unavailable("The platform's mail backend did not take the message.")
        self._idle_since = time.monotonic()

    def close(self) -> None:
        """Close the backend; the next mail opens another."""
        backend, self._backend = self._backend, None
        if backend is not None:
            with contextlib.suppress(OSError):
                backend.close()

    def _opened(self) -> BaseEmailBackend:
        if self._backend is not None and not self._alive(self._backend):
            self.close()
        if self._backend is None:
            backend = mailers[self._alias]
            try:
                # Opened here, as a backend that opens by itself closes after each mail.
                backend.open()
            except smtplib.SMTPAuthenticationError as error:
                raise Unavailable(NOT_LOGGED_IN, error_class="auth", code=str(error.smtp_code)) from None
            except OSError:
                raise Unavailable(UNREACHABLE, account_wide=True) from None
            self._backend = backend
        return self._backend

    def _alive(self, backend: BaseEmailBackend) -> bool:
        session = getattr(backend, "connection", None)
        if not isinstance(session, smtplib.SMTP) or time.monotonic() - self._idle_since < IDLE_SECONDS:
            return True
        try:
            return session.noop()[0] == 250
        except OSError:
            return False


def _meaning(error: Exception) -> Failure:
    """Which of the three a backend's failure is; what cannot be told apart is uncertain."""
    match error:
        case smtplib.SMTPRecipientsRefused(recipients=refused) if len(refused) == 1:
            return refusal("RCPT", *next(iter(refused.values())))
        case smtplib.SMTPResponseException(smtp_code=code, smtp_error=reply) if 400 <= code < 600:
            return refusal("DATA", code, reply if isinstance(reply, bytes) else reply.encode())
        case ValueError():
            return Rejected(str(error))
        case ConnectionRefusedError():
            return Unavailable(UNREACHABLE, account_wide=True)
    return Uncertain(f"The platform's mail backend failed ({type(error).__name__}); the message may have gone out.")
