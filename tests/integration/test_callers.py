"""The ways in which a platform's own code calls: from signals, from task queues, from views."""

import json
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db.models.signals import post_save
from django.http import HttpRequest, JsonResponse
from django.test import RequestFactory

from notifications.models import Account, Outbox, OutboxMessage
from notifications.services import send_email, send_sms
from tenants.context import tenant_context
from tenants.models import Tenant

User = get_user_model()


@pytest.fixture
def sender(in_acme: Tenant) -> None:
    for kind, address in ((Account.EMAIL, "hello@acme.example"), (Account.SMS, "ACME")):
        account = Account.objects.create(kind=kind, provider="console")
        Outbox.objects.create(account=account, address=address)


def test_a_signal_welcomes_a_new_user(sender: None) -> None:
    def welcome(instance: Any, created: bool, **_: Any) -> None:
        if created:
            send_email(
                to_address=instance.email,
                subject="Welcome",
                message=f"Hello {instance.username}",
                user=instance,
                metadata={"trigger": "user_registration"},
            )

    post_save.connect(welcome, sender=User)
    try:
        user = User.objects.create_user("ada", "ada@example.com")
    finally:
        post_save.disconnect(welcome, sender=User)
    message = OutboxMessage.objects.get()
    assert (message.user, message.get_metadata_value("trigger")) == (user, "user_registration")


def test_a_task_of_another_queue_sends_for_a_tenant(acme: Tenant, sender: None) -> None:
    user = User.objects.create_user("ada", "ada@example.com")

    def send_notification_email(schema_name: str, user_id: int, subject: str, message: str) -> str:
        with tenant_context(schema_name):
            user = User.objects.get(pk=user_id)
            return str(send_email(to_address=user.email, subject=subject, message=message, user=user).id)

    message_id = send_notification_email(acme.schema_name, user.pk, "Hi", "Hello")
    assert OutboxMessage.objects.get(id=message_id).to_address == "ada@example.com"


def test_a_view_sends_a_text_message_and_answers_with_its_id_and_status(sender: None) -> None:
    user = User.objects.create_user("ada", "ada@example.com")

    def view(request: HttpRequest) -> JsonResponse:
        asked = json.loads(request.body)
        sent = send_sms(to_address=asked["phone"], message=asked["message"], user=request.user)  # type: ignore[arg-type]
        return JsonResponse({"message_id": sent.id, "status": sent.status})

    request = RequestFactory().post(
        "/", {"phone": "+49 30 901820", "message": "Your parcel is here"}, content_type="application/json"
    )
    request.user = user
    answer = json.loads(view(request).content)
    stored = OutboxMessage.objects.get(id=answer["message_id"])
    assert answer["status"] == "pending"
    assert (stored.recipient_phone, stored.message, stored.user) == ("+4930901820", "Your parcel is here", user)
