"""What the demo shows: two tenants, their accounts and wording, and the messages that they send."""

from collections.abc import Iterator

from django.contrib.auth import get_user_model

from notifications.models import (
    Account,
    EventType,
    MessageType,
    NotificationChannel,
    NotificationTemplate,
    Outbox,
    OutboxMessage,
    Recipient,
    TemplateType,
)
from notifications.services import enqueue_notification
from tenants.context import public_context, tenant_context
from tenants.models import Tenant
from tenants.onboarding import create_tenant

CONFIRMED = "booking.confirmed"
RESET = "account.password_reset"
EMAIL = NotificationChannel.EMAIL

_PAGE = """<!doctype html>
<html lang="en"><body style="font-family:sans-serif;max-width:36em;margin:2em auto;color:#1f2933">
{body}
</body></html>"""


def make_operator(password: str) -> None:
    """The platform's operator, who sees all tenants."""
    with public_context():
        users = get_user_model().objects
        if not users.filter(username="operator").exists():
            users.create_superuser("operator", "operator@example.com", password)


def make_platform_templates() -> None:
    """What the platform offers to every tenant that has no wording of its own."""
    with public_context():
        EventType.objects.get_or_create(
            key=CONFIRMED,
            defaults={
                "name": "Booking confirmed",
                "message_type": MessageType.TRANSACTIONAL,
                "template_type": TemplateType.BOOKING_CONFIRMATION,
                "category": "booking",
                "required_placeholders": ["name", "room"],
            },
        )
        EventType.objects.get_or_create(key=RESET, defaults={"name": "Password reset", "security": True})
        _template(
            CONFIRMED,
            name="Booking confirmed",
            subject="Your booking is confirmed, {{ name }}",
            body_text="Hello {{ name }},\n\nyour booking of {{ room }} is confirmed.\n",
            body_html=_PAGE.format(
                body="<p>Hello {{ name }},</p>\n<p>your booking of <b>{{ room }}</b> is confirmed.</p>"
            ),
        )
        _template(
            RESET,
            name="Password reset",
            subject="Set a new password",
            body_text="Hello {{ name }},\n\nset a new password here: {{ link }}\n",
        )


def _template(event_key: str, **wording: str) -> None:
    if not NotificationTemplate.objects.filter(event_key=event_key, channel=EMAIL, language="").exists():
        NotificationTemplate.objects.create(event_key=event_key, channel=EMAIL, **wording)


def make_tenant(key: str, name: str, password: str, smtp_port: int) -> Tenant:
    """A tenant with its owner, an account on the demo's mail server and a sender; acme has wording of its own."""
    tenant = create_tenant(name, domain=key, owner_email=f"owner@{key}.example", owner_password=password)
    with tenant_context(tenant):
        account = Account.objects.filter(kind=EMAIL).first() or Account(
            kind=EMAIL, name="Mail server", domain=f"{key}.example"
        )
        # The port may be another one than at the last start.
        account.settings = {"smtp": {"host": "127.0.0.1", "port": smtp_port, "use_tls": False}}
        account.save()
        if not account.outboxes.exists():
            Outbox.objects.create(account=account, address=f"hello@{key}.example", name=name)
        if key == "acme":
            _template(
                CONFIRMED,
                name="Booking confirmed, our way",
                subject="{{ name }}, {{ room }} is yours",
                body_text="Dear {{ name }},\n\nwe look forward to seeing you in {{ room }}.\n\nYour Acme Rooms\n",
                body_html=_PAGE.format(
                    body="<h1>See you soon, {{ name }}</h1>\n<p>We look forward to seeing you in <b>{{ room }}</b>.</p>"
                ),
            )
        Recipient.objects.get_or_create(email="ada@example.com", defaults={"name": "Ada Lovelace", "external_id": "17"})
    return tenant


def send_messages(tenant: Tenant) -> Iterator[OutboxMessage]:
    """What a booking service would call."""
    guests = [("ada@example.com", "Ada", "the Blue Room"), ("grace@example.org", "Grace", "the Garden Room")]
    for email, name, room in guests:
        yield enqueue_notification(
            event_key=CONFIRMED,
            to={"email": email, "name": name},
            context={"name": name, "room": room},
            tenant=tenant,
        )
    yield enqueue_notification(
        event_key=RESET,
        to={"email": "ada@example.com", "name": "Ada"},
        context={"name": "Ada", "link": "https://example.com/reset/…"},
        tenant=tenant,
    )


def refresh(tenant: Tenant, message: OutboxMessage) -> OutboxMessage:
    """The message as it is now."""
    with tenant_context(tenant):
        message.refresh_from_db()
    return message
