"""Two tenants with the same keys, addresses and events: nothing of the one is seen by the other."""

import logging
import threading
from contextlib import suppress

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth import authenticate, get_user_model
from django.core.cache import cache
from django.db import connection, transaction

from notifications import jobs, lifecycle, preparing, queues
from notifications.channels import Rejected, Unavailable
from notifications.dispatch.models import Lane, LedgerRow
from notifications.exceptions import CommunicationError, TenantRequired
from notifications.models import (
    Account,
    Outbox,
    OutboxMessage,
    Recipient,
    Suppression,
)
from notifications.models.fields import new_id
from notifications.services import get_messages_for_object, send
from tenants import onboarding
from tenants.context import MissingSchema, public_context, tenant_context
from tenants.models import Tenant
from tenants.scoping import WrongTenant
from tests import factories
from tests.factories import accepted, fresh, on_ledger, turn

CANARY = "canary-of-acme-4711"


@pytest.fixture
def tenants(acme, globex, provider):
    for tenant in (acme, globex):
        with tenant_context(tenant):
            factories.Outbox(address=f"hello@{tenant.name}.test")
    return acme, globex


def test_the_same_address_is_another_user_in_each_tenant(acme, globex):
    users = get_user_model()
    for tenant in (acme, globex):
        with tenant_context(tenant):
            users.objects.create_user("ada", email="ada@example.com", password=f"a password of {tenant.name}")
    for tenant, other in ((acme, globex), (globex, acme)):
        with tenant_context(tenant):
            assert authenticate(username="ada", password=f"a password of {tenant.name}")
            assert not authenticate(username="ada", password=f"a password of {other.name}")
            users.objects.filter(username="ada").update(email=f"ada@{tenant.name}.example")
    with tenant_context(acme):
        assert users.objects.get(username="ada").email == "ada@acme.example"


@pytest.mark.django_db(transaction=True)
def test_every_key_in_valkey_names_its_tenant(tenants, valkey):
    before = set(valkey.keys("*"))
    for tenant in tenants:
        with tenant_context(tenant):
            accepted()
            cache.set("same", tenant.name)
    for tenant in tenants:
        with tenant_context(tenant):
            assert cache.get("same") == tenant.name
            cache.delete("same")
    cache.set("same", "platform")
    try:
        new = {key.decode() for key in set(valkey.keys("*")) - before}
        known = {tenant.schema_name for tenant in tenants} | {"public"}
        # RQ's own lists of queues and of one queue's jobs are no tenant's; all they hold are job ids.
        own = {key for key in new if not key.startswith(("rq:queue", "rq:executions", "rq:results"))}
        assert own
        assert all(any(schema in key for schema in known) for key in own), own
        assert {bell for bell in own if bell.startswith("bell:")} == {f"bell:{t.schema_name}:default" for t in tenants}
        assert {job.rpartition("-")[0] for job in queues.queue_named("default").job_ids} == {
            tenant.schema_name for tenant in tenants
        }
    finally:
        cache.delete("same")


def test_a_turn_of_one_tenant_sends_nothing_of_the_other(tenants, provider):
    acme, globex = tenants
    with tenant_context(acme):
        accepted("a@example.com")
    with tenant_context(globex):
        accepted("g@example.com")
        assert turn().sent == 1
    assert [outgoing.to for outgoing in provider.received] == ["g@example.com"]
    with tenant_context(acme):
        assert on_ledger().filter(tenant_id=acme.pk).count() == 1
        assert OutboxMessage.objects.get().status == "pending"


def test_one_worker_serves_one_tenant_after_the_other_also_after_a_failure(tenants, provider, monkeypatch):
    acme, globex = tenants
    seen = []
    take_turn = jobs.delivery.take_turn

    def looked_at(queue):
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_schema()")
            seen.append(cursor.fetchone()[0])
        if len(seen) == 2:
            raise RuntimeError("a turn breaks")
        return take_turn(queue)

    monkeypatch.setattr(jobs.delivery, "take_turn", looked_at)
    for tenant in tenants:
        with tenant_context(tenant):
            accepted(f"{tenant.name}@example.com")
    jobs.drain(acme.schema_name, "default")
    with pytest.raises(RuntimeError):
        jobs.drain(globex.schema_name, "default")
    assert connection.schema_name == "public"
    jobs.drain(acme.schema_name, "default")
    jobs.drain(globex.schema_name, "default")
    assert seen == [acme.schema_name, globex.schema_name, acme.schema_name, globex.schema_name]
    assert connection.schema_name == "public"
    assert [outgoing.to for outgoing in provider.received] == ["acme@example.com", "globex@example.com"]


def test_a_bell_for_a_tenant_that_does_not_exist_reads_nothing_from_public(provider, db):
    with public_context():
        factories.Outbox(address="ops@platform.test", priority=1)
        message = accepted(tenant="public")
    assert jobs.drain("t_nobodyhere", "default") is None
    assert not provider.received
    with tenant_context("public"):
        assert fresh(message).status == "pending"


def test_a_bell_for_a_schema_that_is_gone_fails_loudly(acme, provider):
    type(acme).objects.filter(pk=acme.pk).update(schema_name="t_goneforever0")
    with pytest.raises(MissingSchema):
        jobs.drain("t_goneforever0", "default")
    assert connection.schema_name == "public"


@pytest.mark.parametrize("way", ["thread", "async"])
def test_a_thread_begun_inside_a_tenant_is_in_none_and_may_not_send(tenants, way, transactional_db):
    """What starts in another thread names its tenant; it never works in public by accident."""
    errors = []

    def call():
        try:
            accepted()
        except Exception as error:  # noqa: BLE001
            errors.append(type(error).__name__)
        finally:
            if way == "thread":
                connection.close()

    with tenant_context(tenants[0]):
        if way == "thread":
            thread = threading.Thread(target=call)
            thread.start()
            thread.join()
        else:
            async_to_sync(sync_to_async(call))()
    if way == "thread":
        assert errors == ["TenantRequired"]
    else:
        # The same thread is used, and with it the tenant.
        assert errors == []
        with tenant_context(tenants[0]):
            assert OutboxMessage.objects.count() == 1
    with public_context():
        assert not OutboxMessage.objects.exists()


OBJECTS = {
    "save": lambda message, ada: message.save(),
    "refresh": lambda message, ada: message.refresh_from_db(),
    "attempts": lambda message, ada: list(message.attempts.all()),
    "cancel": lambda message, ada: lifecycle.cancel(message),
    "delete": lambda message, ada: ada.delete(),
    "as another message's recipient": lambda message, ada: OutboxMessage(recipient=ada).save(),
}


@pytest.mark.parametrize("use", OBJECTS.values(), ids=OBJECTS)
def test_an_object_of_one_tenant_is_not_used_in_another(tenants, use):
    acme, globex = tenants
    with tenant_context(acme):
        message, ada = accepted(), factories.Recipient()
    with tenant_context(globex):
        with pytest.raises(WrongTenant):
            use(message, ada)
        for model in (OutboxMessage, Recipient):
            assert not model.objects.exists()


def test_a_suppression_is_its_tenants_own_and_the_platforms_is_everybodys(tenants, provider):
    acme, _ = tenants
    with tenant_context(acme):
        Suppression.objects.create(channel="email", address="ada@example.com")
    with public_context():
        Suppression.objects.create(channel="email", address="spamtrap@example.com")
    found = {}
    for tenant in tenants:
        with tenant_context(tenant):
            made = [accepted(to) for to in ("ada@example.com", "spamtrap@example.com")]
            turn()
            found[tenant.name] = [fresh(message).status for message in made]
    assert found == {"acme": ["suppressed", "suppressed"], "globex": ["sent", "suppressed"]}


def test_a_paused_lane_and_a_backlog_of_one_tenant_hold_up_no_other(tenants, provider):
    acme, globex = tenants
    with tenant_context(acme):
        for _ in range(30):
            accepted("down@example.com")
        provider.script("down@example.com", *[Unavailable("down")] * 30)
        turn(limit=10)
        Lane.objects.filter(tenant=acme).update(paused_reason="by hand")
    with tenant_context(globex):
        message = accepted()
        assert turn().sent == 1
        assert fresh(message).status == "sent"
    assert LedgerRow.objects.filter(tenant_id=acme.pk).count() == 30


def test_one_tenants_fault_on_the_platforms_outbox_holds_no_other(acme, globex, provider):
    with public_context():
        factories.Outbox(address="shared@platform.test", priority=1)
    provider.script("bad@example.com", Rejected("no"), Unavailable("no"))
    for tenant in (acme, globex):
        with tenant_context(tenant):
            for to in ("bad@example.com", "good@example.com"):
                accepted(to)
            assert turn().sent == 1


def test_no_word_of_one_tenant_is_in_the_log_of_another_or_in_any(tenants, provider, caplog):
    acme, globex = tenants
    caplog.set_level(logging.DEBUG)
    provider.script(f"{CANARY}@example.com", Rejected("no"), Unavailable("later"))
    with tenant_context(acme):
        factories.Template(subject=CANARY, body_text=f"{CANARY} {{{{ name }}}}", event_key="acme.event")
        for _ in range(3):
            send(
                to=f"{CANARY}@example.com",
                template_key="acme.event",
                context={"name": CANARY},
                metadata={"note": CANARY},
                related_object=("booking", CANARY),
            )
        turn()
    of_acme = caplog.records[:]
    caplog.clear()
    with tenant_context(globex):
        accepted()
        with pytest.raises(Exception, match=r"acme\.event") as raised:
            send(to="ada@example.com", template_key="acme.event", context={})
        turn()
        jobs.drain(globex.schema_name, "default")
    assert CANARY not in caplog.text
    assert CANARY not in str(raised.value)
    ours = [record for record in of_acme if record.name.startswith(("notifications", "tenants", "services"))]
    assert not any(CANARY in record.getMessage() for record in ours)


def test_messages_are_found_for_an_object_in_its_own_tenant_only(tenants):
    acme, globex = tenants
    with tenant_context(acme):
        accepted(related_object=("booking", 7))
    with tenant_context(globex):
        assert get_messages_for_object(("booking", 7)) == []
        accepted(related_object=("booking", 7))
        assert len(get_messages_for_object(("booking", 7))) == 1


def test_nothing_of_a_dropped_tenant_stays_in_public(globex, provider, transactional_db):
    with tenant_context(globex):
        factories.Outbox(address="hello@globex.test")
        accepted()
    key = globex.pk
    onboarding.close(globex, "globex", "operator")
    onboarding.drop_closed_tenant(globex, "globex")
    assert not LedgerRow.objects.filter(tenant_id=key).exists()
    assert not Lane.objects.filter(tenant_id=key).exists()


def test_what_two_tenants_have_under_one_key_are_two_things(tenants):
    acme, globex = tenants
    with tenant_context(acme):
        key = Outbox.objects.get().pk
        account = Account.objects.get().pk
    with tenant_context(globex):
        Account.objects.bulk_create([Account(id=account, kind="email", provider="fake", name="globex")])
        Outbox.objects.bulk_create([Outbox(id=key, account_id=account, address="same@globex.test")])
        message = accepted(from_address="same@globex.test")
        assert message.outbox_uuid == key
        assert message.outbox.address == "same@globex.test"
        turn()
        assert fresh(message).from_address == "same@globex.test"
    with tenant_context(acme):
        assert accepted().outbox.address == "hello@acme.test"


# Objects of one schema are nobody's in another


def test_sending_again_or_cancelling_never_touches_another_tenants_row(acme, globex):
    key = new_id()
    for tenant in (acme, globex):
        with tenant_context(tenant):
            factories.Outbox(account=factories.Account())
            message = accepted()
            OutboxMessage.objects.filter(pk=message.pk).update(id=key, status="failed")
    with tenant_context(acme):
        ours = OutboxMessage.objects.get(pk=key)
    for act in (lifecycle.requeue, lifecycle.cancel):
        with tenant_context(globex), pytest.raises(WrongTenant):
            act(ours)
    with tenant_context(globex):
        assert OutboxMessage.objects.get(pk=key).status == "failed"


def test_a_user_of_the_platform_is_not_taken_for_a_tenants(acme):
    platform_user = get_user_model().objects.create_user("root", "root@example.com")
    with tenant_context(acme):
        factories.Outbox(account=factories.Account())
        get_user_model().objects.create_user("mallory", pk=platform_user.pk)
    message = send(to=platform_user, subject="Hi", body_text="Hello", tenant=acme)
    assert message.user_id is None
    with pytest.raises(CommunicationError, match="user is an object of the schema that the call is made in"):
        send(to="ada@example.com", subject="Hi", body_text="Hello", user=platform_user, tenant=acme)


@pytest.mark.parametrize("role", ["to", "related_object"])
def test_another_tenants_recipient_is_refused(acme, globex, role):
    with tenant_context(globex):
        stranger = factories.Recipient(email="eve@example.com")
    with tenant_context(acme), pytest.raises(WrongTenant):
        send(**{"to": "ada@example.com", role: stranger}, subject="Hi", body_text="Hello")


@pytest.mark.parametrize("state", ["closed", "behind"])
def test_a_tenant_that_is_not_served_accepts_nothing_from_inside_either(acme, state):
    with tenant_context(acme):
        factories.Outbox(account=factories.Account())
        changed = {"status": "closed"} if state == "closed" else {"migrations": []}
        Tenant.objects.filter(pk=acme.pk).update(**changed)
        with pytest.raises(TenantRequired):
            accepted()


def test_inline_delivery_waits_for_a_suspended_tenant_too(acme, settings):
    settings.NOTIFY_DISPATCH_MODE = "inline"
    with tenant_context(acme):
        factories.Outbox(account=factories.Account())
    onboarding.suspend(acme, "unpaid", "operator")
    message = send(to="ada@example.com", subject="Hi", body_text="Hello", tenant=acme)
    assert message.status == "pending"


def test_wording_that_was_rolled_back_is_never_sent(acme):
    with tenant_context(acme):
        factories.Outbox(account=factories.Account())
        template = factories.Template(body_text="one")
        with suppress(ZeroDivisionError), transaction.atomic():
            template.body_text = "never published"
            template.save()
            send(to="ada@example.com", template_key=template.event_key, context={})
            1 / 0  # noqa: B018
        template.refresh_from_db()
        template.body_text = "two"
        template.save()
        message = send(to="ada@example.com", template_key=template.event_key, context={})
        assert preparing.content_of(message)[1] == "two"
