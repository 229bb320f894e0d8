"""One key, one message."""

from contextlib import suppress

import pytest
from django.db import transaction

from notifications.exceptions import CommunicationError, IdempotencyConflict
from notifications.models import OutboxMessage
from notifications.services import send
from tenants.context import tenant_context
from tests import factories
from tests.factories import Undone, accepted, fresh, on_ledger, race, turn


@pytest.mark.django_db(transaction=True)
def test_one_key_under_32_racing_threads_is_one_message_and_one_mail(acme, mail):
    with tenant_context(acme):
        account = factories.Account(provider="smtp", settings=mail.settings())
        factories.Outbox(account=account)
    answers = race(32, lambda _: accepted(tenant=acme, idempotency_key="order-17").pk)
    assert len(set(answers)) == 1, answers
    with tenant_context(acme):
        assert [message.pk for message in OutboxMessage.objects.all()] == [answers[0]]
        assert on_ledger().count() == 1
        for _ in range(2):
            turn()
        assert len(mail.mails) == 1
        assert accepted(idempotency_key="order-17").pk == answers[0]
        assert not on_ledger().exists()


def test_the_same_call_again_gives_the_message_as_it_is_now(acme_sends):
    first = accepted(idempotency_key="k", context={"a": 1, "b": 2})
    turn()
    again = accepted(idempotency_key="k", context={"b": 2, "a": 1})
    assert (again.pk, again.status) == (first.pk, "sent")


OTHERS = [
    {"to": "grace@example.com"},
    {"body_text": "other"},
    {"subject": "other"},
    {"context": {"a": 1}},
    {"metadata": {"a": 1}},
    {"headers": {"X-A": "1"}},
    {"priority": "high"},
    {"related_object": ("booking", 1)},
]


@pytest.mark.parametrize("other", OTHERS, ids=[next(iter(other)) for other in OTHERS])
def test_the_same_key_for_other_arguments_is_a_conflict(acme_sends, other):
    first = accepted(idempotency_key="k")
    with pytest.raises(IdempotencyConflict, match="'k'"):
        accepted(**{"idempotency_key": "k", **other})
    assert list(OutboxMessage.objects.all()) == [first]


@pytest.mark.django_db(transaction=True)
def test_of_different_calls_racing_with_one_key_one_wins_and_the_others_are_told(acme, provider):
    with tenant_context(acme):
        factories.Outbox()
    answers = race(8, lambda position: accepted(tenant=acme, idempotency_key="k", body_text=f"text {position}"))
    won = [answer for answer in answers if isinstance(answer, OutboxMessage)]
    assert len(won) == 1
    assert all(isinstance(answer, IdempotencyConflict) for answer in answers if answer is not won[0])
    with tenant_context(acme):
        assert OutboxMessage.objects.get().body_text == won[0].body_text


def test_the_same_key_of_another_tenant_is_independent(acme, globex, provider):
    made = []
    for tenant in (acme, globex):
        with tenant_context(tenant):
            factories.Outbox()
            made.append(accepted(idempotency_key="k", body_text=tenant.name))
    assert made[0].pk != made[1].pk
    for tenant, message in zip((acme, globex), made, strict=True):
        with tenant_context(tenant):
            assert fresh(message).body_text == tenant.name


def test_without_a_key_the_same_call_is_another_message(acme_sends):
    first, second = accepted(), accepted()
    assert first.pk != second.pk
    assert first.idempotency_key != second.idempotency_key
    assert min(len(first.idempotency_key), len(second.idempotency_key)) >= 32


def test_a_key_used_in_a_transaction_that_was_rolled_back_is_free(acme_sends):
    with suppress(Undone), transaction.atomic():
        accepted(idempotency_key="k")
        raise Undone
    assert accepted(idempotency_key="k", body_text="other").body_text == "other"


def test_a_key_beyond_200_characters_is_refused(acme_sends):
    assert accepted(idempotency_key="k" * 200).idempotency_key == "k" * 200
    with pytest.raises(CommunicationError, match="200"):
        send(to="ada@example.com", channel="email", subject="x", body_text="x", idempotency_key="k" * 201)
