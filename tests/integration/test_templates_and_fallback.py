"""Which wording a message gets: the tenant's, else the platform's, in the best language, as it was when accepted."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from urllib.parse import quote

import pytest
from django.core.exceptions import ValidationError
from django.db import connection

from notifications import wording
from notifications.exceptions import TemplateNotFoundError, TemplateRenderError
from notifications.models import (
    CommunicationSettings,
    MessageStatus,
    NotificationTemplate,
    OutboxMessage,
    Scope,
    TemplateVersion,
)
from notifications.services import enqueue_notification, send
from tenants.context import public_context, tenant_context
from tests import factories
from tests.factories import fresh, on_ledger, race, turn


def notify(**options) -> OutboxMessage:
    return enqueue_notification(
        **{"event_key": "booking.confirmed", "to": "ada@example.com", "context": {"name": "Ada"}, **options}
    )


@pytest.fixture
def both(acme, globex, provider):
    """The platform's template, one of acme's own, and an outbox for each tenant."""
    with public_context():
        platform = factories.Template(subject="Platform: {{ name }}")
    with tenant_context(acme):
        factories.Outbox()
        own = factories.Template(subject="Acme: {{ name }}")
    with tenant_context(globex):
        factories.Outbox(address="hello@globex.test")
    return SimpleNamespace(platform=platform, own=own, acme=acme, globex=globex)


def sent_subject(tenant) -> str:
    with tenant_context(tenant):
        message = notify()
        turn()
        return fresh(message).subject


# Whose wording


def test_a_tenants_own_template_wins_and_the_others_get_the_platforms(both):
    assert (sent_subject(both.acme), sent_subject(both.globex)) == ("Acme: Ada", "Platform: Ada")
    with tenant_context(both.globex):
        message = OutboxMessage.objects.get()
        assert (message.template_scope, message.template_uuid) == (Scope.PLATFORM, both.platform.pk)


def test_with_the_fallback_off_only_the_tenants_own_counts(both, settings):
    settings.NOTIFY_ALLOW_GLOBAL_TEMPLATE_FALLBACK = False
    assert sent_subject(both.acme) == "Acme: Ada"
    with tenant_context(both.globex), pytest.raises(TemplateNotFoundError, match=r"booking\.confirmed"):
        notify()


def test_an_inactive_template_is_as_if_it_did_not_exist(both):
    with tenant_context(both.acme):
        NotificationTemplate.objects.update(is_active=False)
    assert sent_subject(both.acme) == "Platform: Ada"
    with public_context():
        NotificationTemplate.objects.update(is_active=False)
    for tenant in (both.acme, both.globex):
        with tenant_context(tenant), pytest.raises(TemplateNotFoundError):
            notify()


def test_a_muted_template_sends_nothing_and_says_so(both):
    with tenant_context(both.acme):
        NotificationTemplate.objects.update(muted=True)
        message = notify()
        assert (fresh(message).status, message.error_message) == (MessageStatus.SUPPRESSED, "the template is muted")
        assert not on_ledger(message).exists()
    assert sent_subject(both.globex) == "Platform: Ada"


def test_a_tenants_templates_are_no_other_tenants(both):
    with tenant_context(both.acme):
        factories.Template(event_key="acme.only")
    with tenant_context(both.globex), pytest.raises(TemplateNotFoundError):
        notify(event_key="acme.only")


# In which language

LANGUAGES = [
    # asked for, the tenant's templates, the platform's, the one that is used
    ("de-at", ["de-at", "de", "fr", ""], ["de-at"], ("tenant", "de-at")),
    ("de_AT", ["de-at"], [], ("tenant", "de-at")),
    ("de-at", ["de", "fr", ""], ["de-at"], ("tenant", "de")),
    ("de-at", ["fr", ""], ["de-at", "de"], ("tenant", "fr")),
    ("de-at", [""], ["de-at", "de"], ("tenant", "")),
    ("de-at", [], ["de-at", "de", "fr", ""], ("platform", "de-at")),
    ("de-at", [], ["de", "fr", ""], ("platform", "de")),
    ("de-at", ["it"], ["fr", ""], ("platform", "fr")),
    ("de-at", ["it"], [""], ("platform", "")),
    ("", ["de", "fr", ""], [], ("tenant", "fr")),
    ("fr", ["", "fr-ca"], ["fr"], ("tenant", "")),
    ("de-at", ["it"], ["it"], None),
]


@pytest.mark.parametrize(("asked", "own", "platforms", "used"), LANGUAGES)
def test_the_best_language_is_looked_for_with_the_tenant_and_then_with_the_platform(
    acme_sends, asked, own, platforms, used
):
    CommunicationSettings.objects.update(default_language="fr")
    for language in own:
        factories.Template(language=language)
    with public_context():
        for language in platforms:
            factories.Template(language=language)
    if used is None:
        with pytest.raises(TemplateNotFoundError, match=asked):
            notify(language=asked)
    else:
        message = notify(language=asked)
        assert (message.template_scope, message.language) == used


def test_without_a_language_in_the_call_the_recipients_counts(acme_sends):
    for language in ("", "de"):
        factories.Template(language=language)
    factories.Recipient(email="ada@example.com", language="de")
    assert (notify().language, notify(language="en").language) == ("de", "")
    assert notify(to={"email": "b@example.com", "language": "de"}).language == "de"


# In which version


def edit(template: NotificationTemplate, subject: str) -> None:
    template.refresh_from_db()
    template.subject = subject
    template.save()


def test_an_edit_counts_for_the_next_message_and_not_for_those_accepted_before(both):
    for tenant, template in ((both.acme, both.own), (both.globex, both.platform)):
        with tenant_context(tenant):
            before = notify()
            with tenant_context("public" if template is both.platform else tenant):
                edit(template, "Edited: {{ name }}")
            after = notify()
            turn()
            assert (before.template_version, after.template_version) == (1, 2)
            assert fresh(before).subject.endswith(": Ada")
            assert not fresh(before).subject.startswith("Edited")
            assert fresh(after).subject == "Edited: Ada"


def test_each_change_of_wording_and_nothing_else_makes_a_version(in_acme):
    template = factories.Template(subject="1")
    edit(template, "2")
    template.muted = True
    template.save()
    template.name = "renamed"
    template.save(update_fields=["name"])
    template.subject = "3"
    template.save(update_fields=["subject"])
    versions = TemplateVersion.objects.filter(template_id=template.pk).order_by("number")
    assert list(versions.values_list("number", "subject", "body_text")) == [
        (number, str(number), template.body_text) for number in (1, 2, 3)
    ]
    template.refresh_from_db()
    assert (template.version, template.subject) == (3, "3")


def test_an_editor_with_an_old_page_open_neither_undoes_wording_nor_repeats_a_number(in_acme):
    stale = factories.Template(subject="1")
    other = NotificationTemplate.objects.get()
    edit(other, "2")
    stale.muted = True
    stale.save(update_fields=["muted"])
    assert wording.find("booking.confirmed", "email", "", "en").version == 2
    edit(other, "1")
    stale.muted = False
    stale.save()
    edit(other, "4")
    assert list(TemplateVersion.objects.order_by("number").values_list("number", "subject")) == [
        (1, "1"),
        (2, "2"),
        (3, "1"),
        (4, "4"),
    ]


@pytest.mark.django_db(transaction=True)
def test_editors_who_save_at_once_make_versions_one_after_the_other(acme):
    with tenant_context(acme):
        key = factories.Template().pk

    def save(position):
        with tenant_context(acme):
            template = NotificationTemplate.objects.get(pk=key)
            template.subject = f"by {position}"
            template.save()

    assert race(8, save) == [None] * 8
    with tenant_context(acme):
        versions = TemplateVersion.objects.filter(template_id=key).order_by("number")
        assert [version.number for version in versions] == list(range(1, 10))
        assert {version.subject for version in versions} == {"Booked, {{ name }}", *(f"by {n}" for n in range(8))}
        assert NotificationTemplate.objects.get().subject == versions.last().subject


def test_deleting_a_template_leaves_accepted_messages_their_wording(acme_sends):
    factories.Template(subject="Bye, {{ name }}")
    message = notify()
    NotificationTemplate.objects.all().delete()
    turn()
    assert fresh(message).subject == "Bye, Ada"


@pytest.mark.parametrize("field", ["subject", "body_text", "body_html", "version"])
def test_wording_cannot_be_changed_past_its_versions(in_acme, field):
    template = factories.Template()
    setattr(template, field, 5)
    for change in (
        lambda: NotificationTemplate.objects.update(**{field: 5}),
        lambda: NotificationTemplate.objects.bulk_update([template], [field]),
        lambda: NotificationTemplate.objects.bulk_create([NotificationTemplate(event_key="x", channel="email")]),
    ):
        with pytest.raises(ValueError, match=r"one by one|save each"):
            change()


@pytest.mark.parametrize(
    "wrong",
    [
        {"subject": "{{ name"},
        {"subject": ""},
        {"body_text": "", "body_html": ""},
        {"body_text": "{% load static %}"},
        {"body_html": "{{ a.b.__class__ }}"},
        {"channel": "sms", "body_text": "", "body_html": "<p>x</p>"},
    ],
)
def test_wording_that_cannot_be_sent_is_not_saved(in_acme, wrong):
    with pytest.raises(ValidationError):
        factories.Template(**wrong)
    assert not NotificationTemplate.objects.exists()
    assert not TemplateVersion.objects.exists()


def test_one_template_a_key_channel_and_language(in_acme):
    factories.Template(language="de")
    factories.Template(language="")
    factories.Template(language="de", channel="sms")
    with pytest.raises(Exception, match="template_once_a_language"):
        factories.Template(language="DE")


def test_what_cannot_be_rendered_is_refused_at_the_call(acme_sends):
    factories.Template(
        body_text="{% for a in many %}{% for b in many %}{% for c in many %}x{% endfor %}{% endfor %}{% endfor %}"
    )
    with pytest.raises(TemplateRenderError):
        notify(context={"many": list(range(100))})
    assert not OutboxMessage.objects.exists()


def test_html_is_escaped_and_text_is_not(acme_sends):
    factories.Template(subject="{{ name }}\n!", body_html="<p>{{ name }}</p>")
    message = notify(context={"name": "<O'Brien>"})
    turn()
    stored = fresh(message)
    assert (stored.subject, stored.body_text) == ("<O'Brien> !", "See you, <O'Brien>")
    assert stored.body_html == "<p>&lt;O&#x27;Brien&gt;</p>"


# In a worker that runs


def database_url() -> str:
    """The test's own database, as an address."""
    found = connection.settings_dict
    user = quote(found["USER"]) + (f":{quote(found['PASSWORD'])}" if found["PASSWORD"] else "")
    port = f"&port={found['PORT']}" if found["PORT"] else ""
    return f"postgresql://{user}@/{found['NAME']}?host={quote(str(found['HOST']), safe='')}{port}"


@contextmanager
def worker(queue: str) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-m", "services.worker", queue], env={**os.environ, "DATABASE_URL": database_url()}
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.django_db(transaction=True)
def test_an_edit_is_used_by_the_next_message_in_a_running_worker(acme, globex, mail, valkey):
    with public_context():
        platform = factories.Template(subject="Platform 1")
    own = {}
    for tenant in (acme, globex):
        with tenant_context(tenant):
            account = factories.Account(provider="smtp", settings=mail.settings())
            factories.Outbox(account=account, address=f"hello@{tenant.name}.test")
    with tenant_context(acme):
        own = factories.Template(subject="Acme 1")

    def arrived(number):
        for tenant in (acme, globex):
            notify(tenant=tenant)
        return sorted(caught.subject for caught in mail.wait_for(number)[number - 2 :])

    with worker("default"):
        assert arrived(2) == ["Acme 1", "Platform 1"]
        with tenant_context(acme):
            edit(own, "Acme 2")
        with public_context():
            edit(platform, "Platform 2")
        assert arrived(4) == ["Acme 2", "Platform 2"]
        with tenant_context(acme):
            own.delete()
        assert arrived(6) == ["Platform 2", "Platform 2"]


def test_send_without_a_template_needs_none(acme_sends):
    message = send(to="ada@example.com", subject="{{ not rendered }}", body_text="{% nor this %}", channel="email")
    turn()
    assert fresh(message).body_text == "{% nor this %}"
    assert acme_sends.accepted[0].subject == "{{ not rendered }}"
