"""The admin: each host shows its own tenant, secrets go in and never out, and nobody rises above themselves."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from auditlog.models import LogEntry
from django.contrib.auth.models import Group, Permission, User
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import NoReverseMatch, reverse
from django.utils import timezone

from notifications import audit, routing
from notifications.admin import platform_site, tenant_site
from notifications.dispatch import circuits
from notifications.models import (
    Account,
    CommunicationSettings,
    MessageStatus,
    NotificationTemplate,
    Outbox,
    OutboxMessage,
    Recipient,
    Suppression,
    TemplateVersion,
)
from tenants.context import public_context, tenant_context
from tenants.models import Status, Tenant
from tests import factories
from tests.conftest import OWNER_PASSWORD

ADMIN = "/admin/notifications"
CANARY = "canary-of-acme"


@pytest.fixture(autouse=True)
def quick_passwords(settings: Any) -> None:
    settings.PASSWORD_HASHERS = [
        "django.contrib.auth.hashers.MD5PasswordHasher",
        "django.contrib.auth.hashers.ScryptPasswordHasher",
    ]


def host(tenant: Tenant) -> str:
    return "carillon.test" if tenant.is_public else f"{tenant.name}.carillon.test"


def signed_in(tenant: Tenant, user: Any = None) -> Client:
    """A browser on a tenant's host in which its owner, or a user, has signed in."""
    client = Client(headers={"host": host(tenant)})
    with tenant_context(tenant):
        client.force_login(user or User.objects.get(username__startswith="owner@"))
    return client


def staff(tenant: Tenant, *permissions: str, **more: Any) -> Any:
    with tenant_context(tenant):
        user = User.objects.create_user(f"{uuid4().hex}@acme.example", password="x", is_staff=True, **more)
        for name in permissions:
            label, _, codename = name.partition(".")
            user.user_permissions.add(Permission.objects.get(content_type__app_label=label, codename=codename))
    return user


@pytest.fixture
def platform(db: None) -> Tenant:
    return Tenant.objects.get(schema_name="public")


@pytest.fixture
def operator(platform: Tenant) -> Client:
    with public_context():
        user = User.objects.create_superuser("operator", "operator@example.com", "x")
    return signed_in(platform, user)


@pytest.fixture
def message(acme: Tenant, provider: Any) -> OutboxMessage:
    """A message of acme that waits."""
    with tenant_context(acme):
        factories.Outbox()
        return factories.accepted(to="ada@example.com", subject=f"Hi from {CANARY}", body_text="Hello")


def failed(message: OutboxMessage, tenant: Tenant) -> OutboxMessage:
    with tenant_context(tenant):
        OutboxMessage.objects.filter(pk=message.pk).update(status=MessageStatus.FAILED)
    return message


def stored(message: OutboxMessage, tenant: Tenant) -> str:
    with tenant_context(tenant):
        return OutboxMessage.objects.get(pk=message.pk).status


# Walls.


def test_an_owner_signs_in_on_the_own_host_and_sees_only_own_messages(
    acme: Tenant, globex: Tenant, message: OutboxMessage
) -> None:
    with tenant_context(globex):
        factories.Outbox(address="hello@globex.test")
        factories.accepted(to="grace@example.org", subject="From globex")
    client = Client(headers={"host": host(acme)})
    answer = client.post("/admin/login/", {"username": "owner@acme.example", "password": OWNER_PASSWORD})
    assert (answer.status_code, answer.headers["Location"]) == (302, "/admin/")
    page = client.get(f"{ADMIN}/outboxmessage/").text
    assert "ada@example.com" in page
    assert "grace@example.org" not in page
    assert "Carillon · acme" in page


def test_a_session_means_nothing_on_another_tenants_host(acme: Tenant, globex: Tenant) -> None:
    client = signed_in(acme)
    assert client.get("/admin/").status_code == 200
    for other in ("globex.carillon.test", "carillon.test"):
        answer = client.get("/admin/", headers={"host": other})
        assert (answer.status_code, answer.headers["Location"]) == (302, "/admin/login/?next=/admin/")


def everything_of(tenant: Tenant) -> list[str]:
    """The address of every page that a tenant's admin has, with the keys of the tenant's own rows."""
    found = ["/admin/", "/admin/password_change/", "/admin/search/?s=canary", "/admin/notifications/", "/admin/jsi18n/"]
    with tenant_context(tenant):
        for model, admin in tenant_site._registry.items():
            name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
            keys = [row.pk for row in model._default_manager.all()[:3]]
            views = [("changelist", ()), ("add", ())]
            views += [(view, (key,)) for view in ("change", "delete", "history") for key in keys]
            for action in admin._get_base_actions_detail():
                name_of_action = action.action_name.removeprefix(f"{name.removeprefix('admin:')}_")
                views += [(name_of_action, (key,)) for key in keys]
            for view, arguments in views:
                try:
                    found.append(reverse(f"{name}_{view}", args=arguments))
                except NoReverseMatch:
                    assert view == "delete"
    return found


@pytest.fixture
def canaries(acme: Tenant, message: OutboxMessage) -> list[str]:
    """A row of each kind in acme that names it, and the addresses of all its pages."""
    with tenant_context(acme):
        factories.Account(name=CANARY, provider="smtp", settings={"smtp": {"host": "smtp.example.com"}})
        factories.Template(name=CANARY)
        factories.Event(name=CANARY)
        factories.Recipient(name=CANARY)
        Suppression.objects.create(channel="email", address=f"{CANARY}@example.com")
        for number in range(3):
            User.objects.create_user(f"{CANARY}-{number}")
            Group.objects.create(name=f"{CANARY}-{number}")
    return everything_of(acme)


def test_every_page_of_a_tenant_answers_its_owner_and_nobody_of_another_tenant(
    acme: Tenant, globex: Tenant, canaries: list[str]
) -> None:
    owner, stranger = signed_in(acme), signed_in(globex)
    seen = 0
    for url in canaries:
        answer = owner.get(url)
        assert answer.status_code in {200, 302, 403}, url
        seen += CANARY in answer.text
        # On the own host with ids of the other tenant; on the other tenant's host with the own session.
        answer = stranger.get(url)
        assert CANARY not in answer.text, url
        if any(len(part) == 36 for part in url.split("/")):
            assert answer.status_code in {302, 403, 404} or "dialog" in answer.text, url
        answer = stranger.get(url, headers={"host": host(acme)})
        assert answer.status_code == 302 or url == "/admin/jsi18n/", url
        assert CANARY not in answer.text, url
    assert seen > 20


def test_a_stranger_moves_no_message_by_its_id(acme: Tenant, globex: Tenant, message: OutboxMessage) -> None:
    client = signed_in(globex)
    for name in ("send-again", "cancel", "arrived", "lost"):
        client.post(f"{ADMIN}/outboxmessage/{message.pk}/{name}/", {"_form_submitted": "on"})
    client.post(f"{ADMIN}/outboxmessage/", {"action": "cancel_selected", "_selected_action": [str(message.pk)]})
    assert stored(message, acme) == "pending"


def test_the_platforms_pages_are_on_no_tenants_host_and_the_other_way_round(
    acme: Tenant, operator: Client, platform: Tenant
) -> None:
    client = signed_in(acme)
    for url in ("/admin/tenants/tenant/", "/admin/tenants/domain/", f"/admin/tenants/tenant/{acme.pk}/end/"):
        assert client.get(url).status_code == 404
        assert operator.get(url).status_code == 200
    for url in (f"{ADMIN}/recipient/", f"{ADMIN}/notificationpreference/"):
        assert operator.get(url).status_code == 404
    assert "Carillon platform" in operator.get("/admin/").text


def test_a_console_page_needs_staff(acme: Tenant) -> None:
    client = signed_in(acme, staff(acme))
    assert client.get(f"{ADMIN}/outboxmessage/").status_code == 403
    with tenant_context(acme):
        nobody = User.objects.create_user("nobody")
    assert signed_in(acme, nobody).get("/admin/").status_code == 302


# Messages.


def test_a_messages_page_shows_hostile_content_as_text_and_in_a_sandbox(acme: Tenant, provider: Any) -> None:
    hostile = "<script>alert(1)</script>"
    with tenant_context(acme):
        factories.Outbox()
        sent = factories.accepted(
            subject=hostile,
            body_text=f"text {hostile}",
            body_html=f'"><p>html</p>{hostile}',
            metadata={"note": hostile},
        )
    client = signed_in(acme)
    page = client.get(f"{ADMIN}/outboxmessage/{sent.pk}/change/")
    assert hostile not in page.text
    assert page.text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4
    assert 'sandbox="" ' in page.text
    assert "allow-" not in page.text.partition("<iframe")[2].partition(">")[0]
    assert 'srcdoc="&quot;&gt;&lt;p&gt;html' in page.text
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "object-src 'none'" in policy
    assert hostile not in client.get(f"{ADMIN}/outboxmessage/").text


def test_messages_are_read_only_for_everybody(acme: Tenant, message: OutboxMessage) -> None:
    client = signed_in(acme)
    assert client.get(f"{ADMIN}/outboxmessage/add/").status_code == 403
    assert client.post(f"{ADMIN}/outboxmessage/{message.pk}/change/", {"status": "sent"}).status_code == 403
    assert client.post(f"{ADMIN}/outboxmessage/{message.pk}/delete/", {"post": "yes"}).status_code == 403
    assert stored(message, acme) == "pending"


def entries(tenant: Tenant, **conditions: Any) -> list[LogEntry]:
    with tenant_context(tenant):
        return list(LogEntry.objects.filter(**conditions).select_related("actor").order_by("id"))


@pytest.mark.parametrize("way", ["list", "detail"])
def test_a_failed_message_is_sent_again_and_the_log_names_who_did_it(
    acme: Tenant, message: OutboxMessage, way: str
) -> None:
    failed(message, acme)
    client = signed_in(acme)
    if way == "list":
        data = {"action": "send_selected_again", "_selected_action": [str(message.pk)]}
        page = client.post(f"{ADMIN}/outboxmessage/", data, follow=True)
    else:
        url = f"{ADMIN}/outboxmessage/{message.pk}/send-again/"
        assert client.get(url).status_code == 200
        assert stored(message, acme) == "failed", "asking is not doing"
        page = client.post(url, {"_form_submitted": "on", "reason": "the relay is back"}, follow=True)
    assert "sent again" in page.text
    assert stored(message, acme) == "pending"
    (entry,) = entries(acme, object_pk=str(message.pk))
    assert entry.actor.username == "owner@acme.example"
    assert entry.changes == {"status": ["failed", "pending"]}
    assert entry.additional_data == {"reason": "selected in a list" if way == "list" else "the relay is back"}


@pytest.mark.parametrize("way", ["list", "detail"])
def test_a_person_sends_again_what_has_used_up_its_retries(acme: Tenant, message: OutboxMessage, way: str) -> None:
    failed(message, acme)
    with tenant_context(acme):
        OutboxMessage.objects.update(retry_count=message.max_retries)
    client = signed_in(acme)
    if way == "list":
        data = {"action": "send_selected_again", "_selected_action": [str(message.pk)]}
        client.post(f"{ADMIN}/outboxmessage/", data)
    else:
        client.post(f"{ADMIN}/outboxmessage/{message.pk}/send-again/", {"_form_submitted": "on"})
    assert stored(message, acme) == "pending"


@pytest.mark.parametrize("way", ["list", "detail"])
def test_a_waiting_message_is_cancelled_and_the_log_names_who_did_it(
    acme: Tenant, message: OutboxMessage, way: str
) -> None:
    client = signed_in(acme)
    if way == "list":
        data = {"action": "cancel_selected", "_selected_action": [str(message.pk)]}
        page = client.post(f"{ADMIN}/outboxmessage/", data, follow=True)
    else:
        page = client.post(f"{ADMIN}/outboxmessage/{message.pk}/cancel/", {"_form_submitted": "on"}, follow=True)
    assert "cancelled." in page.text
    assert stored(message, acme) == "cancelled"
    (entry,) = entries(acme, object_pk=str(message.pk))
    assert (entry.actor.username, entry.changes) == ("owner@acme.example", {"status": ["pending", "cancelled"]})


def uncertain(message: OutboxMessage, tenant: Tenant) -> OutboxMessage:
    """The message, of unknown fate and left to a person."""
    with tenant_context(tenant):
        factories.on_ledger(message).delete()
        OutboxMessage.objects.filter(pk=message.pk).update(status=MessageStatus.SENDING)
        OutboxMessage.objects.filter(pk=message.pk).update(
            status=MessageStatus.UNCERTAIN, error_class="transient", dead_lettered_at=timezone.now()
        )
    return message


@pytest.mark.parametrize(
    ("path", "asks", "status", "said"),
    [
        ("arrived", "Did this message arrive?", "sent", "The message counts as sent."),
        ("lost", "Send this message again?", "pending", "The message is sent again."),
    ],
)
def test_an_uncertain_message_is_settled_by_a_person_and_the_log_names_who_did_it(
    acme: Tenant, message: OutboxMessage, path: str, asks: str, status: str, said: str
) -> None:
    client = signed_in(acme)
    url = f"{ADMIN}/outboxmessage/{message.pk}/{path}/"
    assert url not in client.get(f"{ADMIN}/outboxmessage/{message.pk}/change/").text
    uncertain(message, acme)
    page = client.get(f"{ADMIN}/outboxmessage/{message.pk}/change/").text
    assert url in page
    assert "/send-again/" not in page
    assert asks in client.get(url).text
    assert stored(message, acme) == "uncertain", "asking is not doing"
    page = client.post(url, {"_form_submitted": "on", "reason": "asked her"}, follow=True).text
    assert said in page
    assert stored(message, acme) == status
    (entry,) = entries(acme, object_pk=str(message.pk))
    assert (entry.actor.username, entry.changes) == ("owner@acme.example", {"status": ["uncertain", status]})
    assert entry.additional_data == {"reason": "asked her"}


@pytest.mark.parametrize("path", ["arrived", "lost"])
def test_settling_needs_the_permission_to_send_again(acme: Tenant, message: OutboxMessage, path: str) -> None:
    uncertain(message, acme)
    view = "notifications.view_outboxmessage"
    client = signed_in(acme, staff(acme, view, "notifications.cancel_outboxmessage"))
    url = f"{ADMIN}/outboxmessage/{message.pk}/{path}/"
    assert client.post(url, {"_form_submitted": "on"}).status_code == 403
    client.post(f"{ADMIN}/outboxmessage/", {"action": "settle_selected", "_selected_action": [str(message.pk)]})
    assert stored(message, acme) == "uncertain"
    client = signed_in(acme, staff(acme, view, "notifications.requeue_outboxmessage"))
    assert client.post(url, {"_form_submitted": "on"}).status_code == 302
    assert stored(message, acme) != "uncertain"


def test_dead_letters_are_a_list_of_their_own_from_which_they_are_settled_or_sent_again(
    acme: Tenant, message: OutboxMessage
) -> None:
    uncertain(message, acme)
    with tenant_context(acme):
        lost, refused, settled = (failed(factories.accepted(to=f"{name}@example.com"), acme) for name in "lrs")
        dead = OutboxMessage.objects.filter(pk__in=[lost.pk, settled.pk])
        dead.update(dead_lettered_at=timezone.now(), error_class="transient")
        # A late receipt says that it arrived after all.
        OutboxMessage.objects.filter(pk=settled.pk).update(status="delivered", sent_at=timezone.now())
    client = signed_in(acme)

    everybody = [each.to_address for each in (lost, refused, settled)]

    def listed(kind: str) -> set[str]:
        page = client.get(f"{ADMIN}/outboxmessage/?dead={kind}").text
        return {to for to in (*everybody, "ada@example.com") if f"{to}</a>" in page}

    assert listed("all") == {"ada@example.com", "l@example.com"}
    assert (listed("failed"), listed("uncertain")) == ({"l@example.com"}, {"ada@example.com"})
    assert len(listed("")) == 4
    chosen = [str(message.pk), str(lost.pk)]
    page = client.post(
        f"{ADMIN}/outboxmessage/?dead=all", {"action": "settle_selected", "_selected_action": chosen}, follow=True
    ).text
    assert "1 message was settled as arrived." in page
    assert "1 message was not settled as arrived, because of their status: 1 failed." in page
    client.post(
        f"{ADMIN}/outboxmessage/?dead=all", {"action": "send_selected_again", "_selected_action": [str(lost.pk)]}
    )
    assert (stored(message, acme), stored(lost, acme), stored(refused, acme)) == ("sent", "pending", "failed")
    assert listed("all") == set()


def test_a_messages_page_tells_what_kind_of_error_each_attempt_met(acme: Tenant, message: OutboxMessage) -> None:
    now = timezone.now()
    with tenant_context(acme):
        for number, (error_class, outcome) in enumerate([("throttled", "unavailable"), ("auth", "rejected")], 1):
            message.attempts.create(
                number=number,
                provider="fake",
                outbox_scope=message.outbox_scope,
                outbox_uuid=message.outbox_uuid,
                started_at=now,
                finished_at=now,
                outcome=outcome,
                error_class=error_class,
                error=f"error {number}",
            )
        OutboxMessage.objects.filter(pk=message.pk).update(status="failed", error_class="auth", error_message="error 2")
    page = signed_in(acme).get(f"{ADMIN}/outboxmessage/{message.pk}/change/").text
    assert "auth: error 2" in page
    assert page.count("throttled") == 1


def test_what_could_not_be_done_is_said_with_the_reason(acme: Tenant, message: OutboxMessage) -> None:
    client = signed_in(acme)
    with tenant_context(acme):
        other = failed(factories.accepted(to="grace@example.com"), acme)
    chosen = [str(message.pk), str(other.pk)]
    data = {"action": "send_selected_again", "_selected_action": chosen}
    page = client.post(f"{ADMIN}/outboxmessage/", data, follow=True).text
    assert "1 message was sent again." in page
    assert "1 message was not sent again, because of their status: 1 pending." in page


@pytest.mark.parametrize(("name", "before"), [("requeue", "failed"), ("cancel", "pending")])
def test_each_action_needs_its_own_permission(acme: Tenant, message: OutboxMessage, name: str, before: str) -> None:
    if before == "failed":
        failed(message, acme)
    other = {"requeue": "cancel", "cancel": "requeue"}[name]
    view, may = "notifications.view_outboxmessage", f"notifications.{name}_outboxmessage"
    client = signed_in(acme, staff(acme, view, f"notifications.{other}_outboxmessage"))
    action, path = {"requeue": ("send_selected_again", "send-again"), "cancel": ("cancel_selected", "cancel")}[name]
    data = {"action": action, "_selected_action": [str(message.pk)]}
    client.post(f"{ADMIN}/outboxmessage/", data)
    url = f"{ADMIN}/outboxmessage/{message.pk}/{path}/"
    assert client.post(url, {"_form_submitted": "on"}).status_code == 403
    assert url not in client.get(f"{ADMIN}/outboxmessage/{message.pk}/change/").text
    assert stored(message, acme) == before
    client = signed_in(acme, staff(acme, view, may))
    assert url in client.get(f"{ADMIN}/outboxmessage/{message.pk}/change/").text
    assert client.post(url, {"_form_submitted": "on"}).status_code == 302
    assert stored(message, acme) != before


def test_an_action_needs_the_page_of_the_message_too(acme: Tenant, message: OutboxMessage) -> None:
    client = signed_in(acme, staff(acme, "notifications.cancel_outboxmessage"))
    client.post(f"{ADMIN}/outboxmessage/{message.pk}/cancel/", {"_form_submitted": "on"})
    assert stored(message, acme) == "pending"


def test_an_action_needs_a_token_of_the_own_page(acme: Tenant, message: OutboxMessage) -> None:
    client = Client(enforce_csrf_checks=True, headers={"host": host(acme)})
    with tenant_context(acme):
        client.force_login(User.objects.get(username="owner@acme.example"))
    url = f"{ADMIN}/outboxmessage/{message.pk}/cancel/"
    assert client.post(url, {"_form_submitted": "on"}).status_code == 403
    assert stored(message, acme) == "pending"


def test_messages_are_found_by_what_people_know_of_them(acme: Tenant, message: OutboxMessage) -> None:
    with tenant_context(acme):
        OutboxMessage.objects.filter(pk=message.pk).update(external_id="provider-17", event_key="booking.confirmed")
        factories.accepted(to="somebody@example.com", subject="Else")
    client = signed_in(acme)
    today = timezone.localdate()
    found = [
        f"q={message.pk}",
        "q=ada@example.com",
        "q=provider-17",
        "q=CANARY",
        "q=booking.conf",
        "event_key__icontains=booking",
    ]
    for query in found:
        page = client.get(f"{ADMIN}/outboxmessage/?{query}").text
        assert ("ada@example.com</a>" in page, "somebody@example.com</a>" in page) == (True, False), query
    both = [
        f"created_at_from={today}&created_at_to={today}",
        "status__in=pending",
        "channel__exact=email",
        "created_at_from=never",
        "created_at_from=9999-99-99",
    ]
    for query in both:
        page = client.get(f"{ADMIN}/outboxmessage/?{query}").text
        assert ("ada@example.com</a>" in page, "somebody@example.com</a>" in page) == (True, True), query
    for query in (f"created_at_from={today + timedelta(days=1)}", f"created_at_to={today - timedelta(days=1)}"):
        page = client.get(f"{ADMIN}/outboxmessage/?{query}").text
        assert "ada@example.com</a>" not in page, query


def test_a_list_is_counted_no_further_than_it_is_paged(
    acme: Tenant, message: OutboxMessage, django_assert_max_num_queries: Any
) -> None:
    client = signed_in(acme)
    with django_assert_max_num_queries(60) as captured:
        client.get(f"{ADMIN}/outboxmessage/?_facets=True")
    counts = [query["sql"] for query in captured if "COUNT(" in query["sql"] and '"notifications"' in query["sql"]]
    assert counts
    assert all("LIMIT 10000" in sql for sql in counts)


# Accounts.


SMTP = {
    "service": "email/smtp",
    "name": "Mail",
    "is_active": "on",
    "smtp_host": "smtp.example.com",
    "smtp_port": "587",
    "smtp_username": "acme",
    "smtp_use_tls": "on",
    "smtp_connections": "4",
}
SECRET = "correct horse battery"


@pytest.fixture
def account(acme: Tenant) -> Account:
    with tenant_context(acme):
        return Account.objects.create(
            kind="email",
            provider="smtp",
            name="Mail",
            settings={
                "smtp": {
                    "host": "smtp.example.com",
                    "port": 587,
                    "username": "acme",
                    "password": SECRET,
                    "timeout": 7,
                }
            },
        )


def smtp_of(account: Account, tenant: Tenant) -> dict[str, Any]:
    with tenant_context(tenant):
        return Account.objects.get(pk=account.pk).adapter_settings()


def url_of(account: Account) -> str:
    return f"{ADMIN}/account/{account.pk}/change/"


def test_a_password_goes_in_and_never_comes_out(acme: Tenant) -> None:
    client = signed_in(acme)
    answer = client.post(f"{ADMIN}/account/add/", {**SMTP, "smtp_password": SECRET}, follow=True)
    assert answer.redirect_chain
    with tenant_context(acme):
        account = Account.objects.get(name="Mail")
        assert SECRET not in json.dumps(account.settings)
    assert smtp_of(account, acme)["password"] == SECRET
    page = client.get(url_of(account)).text
    assert "Set, ends in …tery" in page
    for text in (page, answer.text):
        assert SECRET not in text
    for entry in entries(acme):
        assert SECRET not in json.dumps([entry.changes, entry.changes_text, entry.serialized_data])
        assert "smtp.example.com" not in json.dumps(entry.changes)


def test_a_short_password_shows_nothing_of_itself(acme: Tenant, account: Account) -> None:
    with tenant_context(acme):
        account.settings = {"smtp": {**account.settings["smtp"], "password": "eightchr"}}
        account.save()
    page = signed_in(acme).get(url_of(account)).text
    assert "Set. Leave empty to keep it." in page
    assert "tchr" not in page


def test_an_empty_password_keeps_the_old_one_and_all_that_is_not_shown(acme: Tenant, account: Account) -> None:
    answer = signed_in(acme).post(url_of(account), SMTP)
    assert answer.status_code == 302
    options = smtp_of(account, acme)
    assert (options["password"], options["connections"], options["timeout"]) == (SECRET, 4, 7)


@pytest.mark.parametrize(
    "change",
    [
        {"smtp_host": "evil.example.com"},
        {"smtp_port": "2525"},
        {"smtp_username": "root"},
        {"smtp_use_tls": ""},
        {"smtp_host": "SMTP.example.com."},
    ],
)
def test_a_password_is_not_taken_elsewhere(acme: Tenant, account: Account, change: dict[str, str]) -> None:
    client = signed_in(acme)
    data = {name: value for name, value in {**SMTP, **change}.items() if value}
    answer = client.post(url_of(account), data)
    assert answer.status_code == 200
    assert list(answer.context["adminform"].form.errors) == ["smtp_password"]
    assert "Type the password again" in answer.text
    assert smtp_of(account, acme)["host"] == "smtp.example.com"
    answer = client.post(url_of(account), {**data, "smtp_password": "another long secret"})
    assert answer.status_code == 302
    assert smtp_of(account, acme)["password"] == "another long secret"


def test_a_password_is_removed_when_that_is_asked_for(acme: Tenant, account: Account) -> None:
    client = signed_in(acme)
    data = {**SMTP, "smtp_remove_password": "on"}
    assert "give user name and password, or neither" in client.post(url_of(account), data).text.lower()
    assert client.post(url_of(account), {**data, "smtp_username": ""}).status_code == 302
    assert "password" not in smtp_of(account, acme)
    with tenant_context(acme):
        assert Account.objects.get(pk=account.pk).sealed == ""


def test_a_form_with_errors_names_the_field_and_forgets_the_password(acme: Tenant) -> None:
    wrong = {**SMTP, "smtp_password": SECRET, "smtp_connections": "65"}
    answer = signed_in(acme).post(f"{ADMIN}/account/add/", wrong)
    assert list(answer.context["adminform"].form.errors) == ["smtp_connections"]
    assert SECRET not in answer.text


def test_a_tenant_chooses_only_what_is_not_the_platforms_own(acme: Tenant, operator: Client) -> None:
    client = signed_in(acme)
    page = client.get(f"{ADMIN}/account/add/").text
    assert 'value="email/smtp"' in page
    assert 'value="email/django"' not in page
    answer = client.post(f"{ADMIN}/account/add/", {"service": "email/django", "name": "x"})
    assert "service" in answer.context["adminform"].form.errors
    assert 'value="email/django"' in operator.get(f"{ADMIN}/account/add/").text
    assert operator.post(f"{ADMIN}/account/add/", {"service": "sms/console", "name": "x"}).status_code == 302


def test_who_may_only_look_sees_no_settings(acme: Tenant, account: Account) -> None:
    page = signed_in(acme, staff(acme, "notifications.view_account")).get(url_of(account))
    assert page.status_code == 200
    assert "smtp.example.com:587" in page.text
    assert "tery" not in page.text


# Templates.


def test_the_list_of_senders_says_how_each_is_doing_in_as_many_queries_for_any_number(
    acme: Tenant, provider: Any, settings: Any, django_assert_num_queries: Any
) -> None:
    settings.NOTIFICATION_SETTINGS = {**settings.NOTIFICATION_SETTINGS, "RATE_LIMIT_WINDOW": 10}
    with tenant_context(acme):
        limited, paused = factories.Outbox(rate_limit=5), factories.Outbox(address="paused@acme.test")
        for number in range(2):
            factories.accepted(f"ada{number}@example.com", from_address=limited.address)
        factories.turn()
        circuits.pause(routing.who_is(paused.account, "tenant"), wait=timedelta(minutes=5), reason="429 slow down")
    client = signed_in(acme)
    page = client.get(f"{ADMIN}/outbox/").text
    assert "2 of 5 used in the last 10 seconds" in page
    assert "Paused until" in page
    assert "429 slow down" in page
    assert "No limit of its own" in page
    assert "2 of 5 used in the last 10 seconds" in client.get(f"{ADMIN}/outbox/{limited.pk}/change/").text
    assert "429 slow down" in client.get(f"{ADMIN}/outbox/{paused.pk}/change/").text
    assert "429 slow down" in client.get(f"{ADMIN}/account/").text
    with CaptureQueriesContext(connection) as few:
        client.get(f"{ADMIN}/outbox/")
    with tenant_context(acme):
        for number in range(5):
            factories.Outbox(address=f"more{number}@acme.test", rate_limit=5)
    with django_assert_num_queries(len(few)):
        client.get(f"{ADMIN}/outbox/")


def test_failover_is_turned_on_by_a_tenant_and_for_the_platforms_senders_by_operators(
    acme: Tenant, operator: Client
) -> None:
    tenants, platforms = (
        client.post(f"{ADMIN}/communicationsettings/1/change/", {**values, "failover": "on"})
        for client, values in (
            (signed_in(acme), {"default_channel": "email", "default_language": "en", "time_zone": "UTC"}),
            (operator, {}),
        )
    )
    assert (tenants.status_code, platforms.status_code) == (302, 302)
    for context in (tenant_context(acme), public_context()):
        with context:
            assert CommunicationSettings.objects.get().failover
    page = operator.get(f"{ADMIN}/communicationsettings/1/change/").text
    assert "Failover" in page
    assert "Time zone" not in page


def test_a_tenant_begins_with_the_platforms_wording(acme: Tenant) -> None:
    with public_context():
        offered = factories.Template(event_key="offered", name="Offered", subject="Platform's {{ name }}")
        factories.Template(event_key="own", name="Hidden by the own one")
    with tenant_context(acme):
        factories.Template(event_key="own", name="Own")
    client = signed_in(acme)
    page = client.get(f"{ADMIN}/notificationtemplate/").text
    assert "used until you write your own" in page
    assert f"?platform={offered.pk}" in page
    assert "Hidden by the own one" not in page
    form = client.get(f"{ADMIN}/notificationtemplate/add/?platform={offered.pk}").context["adminform"].form
    assert {name: form.initial[name] for name in ("event_key", "channel", "subject", "body_text")} == {
        "event_key": "offered",
        "channel": "email",
        "subject": "Platform's {{ name }}",
        "body_text": "See you, {{ name }}",
    }
    wording = {"event_key": "offered", "channel": "email", "name": "Ours", "is_active": "on", "subject": "Ours"}
    answer = client.post(f"{ADMIN}/notificationtemplate/add/", {**wording, "body_text": "Ours, {{ name }}"})
    assert answer.status_code == 302
    with tenant_context(acme):
        ours = NotificationTemplate.objects.get(event_key="offered")
        version = TemplateVersion.objects.select_related("created_by").get(template_id=ours.pk)
        assert (version.number, version.created_by.username) == (1, "owner@acme.example")
    page = client.get(f"{ADMIN}/notificationtemplate/{ours.pk}/change/").text
    assert "Version 1" in page
    assert "by the platform" not in client.get(f"{ADMIN}/notificationtemplate/").text
    assert str(offered.pk) not in client.get(f"{ADMIN}/notificationtemplate/").text


def test_a_wording_that_cannot_be_rendered_is_refused_with_line_and_remedy(acme: Tenant) -> None:
    wording = {"event_key": "x", "channel": "email", "name": "x", "subject": "x", "body_text": "fine\n{% load os %}"}
    answer = signed_in(acme).post(f"{ADMIN}/notificationtemplate/add/", wording)
    assert list(answer.context["adminform"].form.errors) == ["body_text"]
    assert "line 2" in str(answer.context["adminform"].form.errors)


# People.


def test_staff_cannot_give_themselves_more(acme: Tenant) -> None:
    user = staff(acme, "auth.view_user", "auth.change_user", "auth.add_user", "auth.change_group", "auth.add_group")
    client = signed_in(acme, user)
    with tenant_context(acme):
        wanted = Permission.objects.get(codename="delete_user")
        owners = Group.objects.get(name="Owners")
        held = list(user.user_permissions.values_list("pk", flat=True))
    base = {"username": user.username, "is_active": "on", "is_staff": "on", "user_permissions": held}
    for more in ({}, {"user_permissions": [*held, wanted.pk]}, {"groups": [owners.pk]}, {"is_superuser": "on"}):
        answer = client.post(f"/admin/auth/user/{user.pk}/change/", {**base, **more})
        refused = bool(set(more) & {"user_permissions", "groups"})
        assert answer.status_code == (200 if refused else 302), more
        with tenant_context(acme):
            now = User.objects.get(pk=user.pk)
            assert (now.is_superuser, list(now.groups.all())) == (False, []), more
            assert set(now.user_permissions.values_list("pk", flat=True)) == set(held), more
    client.post("/admin/auth/group/add/", {"name": "mine", "permissions": [wanted.pk]})
    client.post(f"/admin/auth/group/{owners.pk}/change/", {"name": "Owners", "permissions": held})
    with tenant_context(acme):
        assert not Group.objects.filter(name="mine").exists()
        assert owners.permissions.filter(pk=wanted.pk).exists()


@pytest.mark.parametrize("active", [True, False])
def test_staff_cannot_take_over_who_holds_more(acme: Tenant, active: bool) -> None:
    client = signed_in(acme, staff(acme, "auth.view_user", "auth.change_user", "auth.delete_user"))
    with tenant_context(acme):
        User.objects.filter(username="owner@acme.example").update(is_active=active)
        owner = User.objects.get(username="owner@acme.example")
    password = {"password1": "a quite long password", "password2": "a quite long password"}
    assert client.post(f"/admin/auth/user/{owner.pk}/password/", password).status_code == 403
    mine = {"username": "owner@acme.example", "email": "me@evil.example", "is_active": "on"}
    assert client.post(f"/admin/auth/user/{owner.pk}/change/", mine).status_code == 403
    assert client.post(f"/admin/auth/user/{owner.pk}/delete/", {"post": "yes"}).status_code == 403
    data = {"action": "delete_selected", "_selected_action": [str(owner.pk)], "post": "yes"}
    client.post("/admin/auth/user/", data)
    with tenant_context(acme):
        owner = User.objects.get(pk=owner.pk)
        assert owner.email == "owner@acme.example"
        assert owner.check_password(OWNER_PASSWORD)


def test_an_owner_makes_a_user_with_a_part_of_what_owners_hold(acme: Tenant) -> None:
    client = signed_in(acme)
    password = {"password1": "a quite long password", "password2": "a quite long password"}
    made = client.post("/admin/auth/user/add/", {"username": "new@acme.example", "usable_password": "true", **password})
    assert made.status_code == 302
    with tenant_context(acme):
        new = User.objects.get(username="new@acme.example")
        look = Permission.objects.get(codename="view_outboxmessage")
    data = {"username": new.username, "is_active": "on", "is_staff": "on", "user_permissions": [look.pk]}
    page = client.get(f"/admin/auth/user/{new.pk}/change/").text
    assert "is_superuser" not in page
    assert client.post(f"/admin/auth/user/{new.pk}/change/", data).status_code == 302
    with tenant_context(acme):
        assert User.objects.get(pk=new.pk).has_perm("notifications.view_outboxmessage")
    assert client.get(f"/admin/auth/user/{new.pk}/password/").status_code == 200


def test_a_password_is_changed_by_its_owner(acme: Tenant) -> None:
    client = signed_in(acme)
    new = "another long password"
    data = {"old_password": OWNER_PASSWORD, "new_password1": new, "new_password2": new}
    assert client.post("/admin/password_change/", data).status_code == 302
    with tenant_context(acme):
        assert User.objects.get(username="owner@acme.example").check_password(new)
    assert new not in json.dumps([entry.changes for entry in entries(acme)])


def test_a_suppression_is_kept_as_addresses_are_compared(acme: Tenant) -> None:
    data = {"channel": "email", "address": "Ada@EXAMPLE.com", "reason": "manual"}
    answer = signed_in(acme).post(f"{ADMIN}/suppression/add/", data)
    assert answer.status_code == 302
    with tenant_context(acme):
        made = Suppression.objects.select_related("created_by").get()
        assert (made.address, made.created_by.username) == ("ada@example.com", "owner@acme.example")
        assert not Recipient.objects.filter(email="Ada@example.com").exists()


# The platform.


def test_an_operator_suspends_and_resumes_a_tenant(acme: Tenant, operator: Client, platform: Tenant) -> None:
    page = f"/admin/tenants/tenant/{acme.pk}"
    operator.post(f"{page}/suspend/", {"_form_submitted": "on"})
    assert Tenant.objects.get(pk=acme.pk).status == Status.ACTIVE, "a reason is needed"
    assert operator.post(f"{page}/suspend/", {"_form_submitted": "on", "reason": "unpaid"}).status_code == 302
    assert Tenant.objects.get(pk=acme.pk).status == Status.SUSPENDED
    assert operator.post(f"{page}/resume/", {"_form_submitted": "on"}).status_code == 302
    assert Tenant.objects.get(pk=acme.pk).status == Status.ACTIVE
    moved = entries(platform, content_type__model="tenant")[-2:]
    assert [(entry.changes["status"], entry.actor.username) for entry in moved] == [
        (["active", "suspended"], "operator"),
        (["suspended", "active"], "operator"),
    ]


def test_a_tenant_is_closed_only_by_its_name(acme: Tenant, operator: Client) -> None:
    url = f"/admin/tenants/tenant/{acme.pk}/end/"
    assert "This is not the tenant&#x27;s name" in operator.post(url, {"confirmation": "Acme"}).text
    assert Tenant.objects.get(pk=acme.pk).status == Status.ACTIVE
    assert operator.post(url, {"confirmation": "acme"}).status_code == 302
    assert Tenant.objects.get(pk=acme.pk).status == Status.CLOSED
    assert operator.get(url).status_code == 404


def test_the_platform_itself_is_never_stopped_and_no_tenant_is_deleted(
    acme: Tenant, operator: Client, platform: Tenant
) -> None:
    data = {"_form_submitted": "on", "reason": "x"}
    operator.post(f"/admin/tenants/tenant/{platform.pk}/suspend/", data)
    assert operator.get(f"/admin/tenants/tenant/{platform.pk}/end/").status_code == 404
    assert operator.post(f"/admin/tenants/tenant/{acme.pk}/delete/", {"post": "yes"}).status_code == 403
    assert operator.get("/admin/tenants/tenant/add/").status_code == 403
    assert Tenant.objects.get(pk=platform.pk).status == Status.ACTIVE


def test_every_list_and_form_of_the_platform_opens(operator: Client, platform: Tenant) -> None:
    with public_context():
        urls = [
            reverse(
                f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist", urlconf="services.urls_public"
            )
            for model in platform_site._registry
        ]
    for url in urls:
        assert operator.get(url, follow=True).status_code == 200, url
        assert operator.get(f"{url}add/").status_code in {200, 403}, url


# The audit log.


@contextmanager
def by_force() -> Iterator[None]:
    """As somebody does who may switch triggers off: whoever owns the tables."""
    _triggers("DISABLE")
    yield
    _triggers("ENABLE")


def _triggers(change: str) -> None:
    # A table cannot be altered while something about it is left for the commit.
    connection.check_constraints()
    with connection.cursor() as cursor:
        for table in ("auditlog_logentry", "notifications_auditchain"):
            cursor.execute(f"ALTER TABLE {table} {change} TRIGGER USER")


@pytest.fixture
def log(acme: Tenant) -> Iterator[list[LogEntry]]:
    """Acme's log with some entries in it, chained as at a commit; the test runs inside acme."""
    client = signed_in(acme)
    for number in range(3):
        data = {"key": f"event.{number}", "name": "x", "message_type": "alert", "template_type": "custom"}
        assert client.post(f"{ADMIN}/eventtype/add/", data).status_code == 302
    with tenant_context(acme):
        connection.check_constraints()
        yield list(LogEntry.objects.order_by("id"))


def test_a_log_as_it_was_written_verifies(log: list[LogEntry], acme: Tenant) -> None:
    verdict = audit.verify()
    assert (verdict.entries, verdict.problems) == (len(log), [])
    assert log[-1].actor.username == "owner@acme.example"
    assert log[-1].remote_addr == "127.0.0.1"
    with public_context():
        out = StringIO()
        call_command("verify_audit_log", schema=acme.schema_name, stdout=out)
    assert out.getvalue() == f"{acme.schema_name}: {len(log)} entries, head {verdict.head}\n"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE auditlog_logentry SET object_repr = 'x'",
        "UPDATE auditlog_logentry SET actor_id = NULL, object_repr = 'x'",
        "UPDATE auditlog_logentry SET actor_id = actor_id",
        "DELETE FROM auditlog_logentry",
        "TRUNCATE auditlog_logentry",
        "UPDATE notifications_auditchain SET actor_id = NULL",
        "DELETE FROM notifications_auditchain",
        "TRUNCATE notifications_auditchain",
    ],
)
def test_the_log_is_append_only(log: list[LogEntry], statement: str) -> None:
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)
    assert audit.verify().problems == []


def test_a_deleted_users_entries_stay_and_the_chain_remembers_them(log: list[LogEntry]) -> None:
    User.objects.get(username="owner@acme.example").delete()
    connection.check_constraints()
    assert LogEntry.objects.get(pk=log[-1].pk).actor is None
    assert audit.verify().problems == []


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE auditlog_logentry SET changes = '{{}}' WHERE id = {id}", "entry {id} was changed"),
        ("UPDATE auditlog_logentry SET timestamp = now() WHERE id = {id}", "entry {id} was changed"),
        ("UPDATE auditlog_logentry SET actor_id = {other} WHERE id = {id}", "entry {id} was changed"),
        ("DELETE FROM auditlog_logentry WHERE id = {id}", "entry {id} was removed"),
        ("UPDATE notifications_auditchain SET actor_id = 4711 WHERE entry_id = {id}", "entry {id} was changed"),
        (
            "DELETE FROM notifications_auditchain WHERE entry_id = {id}",
            "links {position} to {position} of the chain are missing",
        ),
        ("DELETE FROM notifications_auditchain WHERE entry_id = {id}", "entry {id} was added past the chain"),
    ],
)
def test_tampering_by_force_shows(log: list[LogEntry], acme: Tenant, statement: str, problem: str) -> None:
    position = len(log) - 1
    known = {"id": log[-2].pk, "position": position, "other": User.objects.create_user("peter@acme.example").pk}
    with by_force(), connection.cursor() as cursor:
        cursor.execute(statement.format(**known))
    assert problem.format(**known) in audit.verify().problems
    with public_context(), pytest.raises(CommandError, match=acme.schema_name):
        call_command("verify_audit_log", stdout=StringIO(), stderr=StringIO())


def test_each_tenants_log_is_its_own(log: list[LogEntry], globex: Tenant) -> None:
    assert not [entry for entry in entries(globex) if entry.object_repr.startswith("event.")]
    with public_context():
        assert not LogEntry.objects.filter(object_repr__startswith="event.").exists()


def test_a_new_tenants_log_begins_with_a_chain(db: None) -> None:
    from tenants.onboarding import create_tenant

    with tenant_context(create_tenant("Initech", domain="initech", owner_email="peter@initech.example")):
        connection.check_constraints()
        verdict = audit.verify()
        assert (verdict.entries > 0, verdict.problems) == (True, [])
        assert Outbox.objects.count() == 0
