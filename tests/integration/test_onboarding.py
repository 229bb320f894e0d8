from contextlib import suppress
from threading import Barrier, Thread

import pytest
from auditlog.models import LogEntry
from django.contrib.auth.models import Group, Permission, User
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction

from tenants import hooks, migrations_state, onboarding, owners
from tenants.context import MissingSchema, UnknownTenant, current_schema, public_context, tenant_context
from tenants.models import ApiKey, Domain, Status, Tenant
from tenants.onboarding import OnboardingError, close, create_tenant, drop_closed_tenant, resume, suspend


def create(name="Initech", domain="initech", **more):
    return create_tenant(name, domain=domain, owner_email="Peter@Initech.example", **more)


def schemas():
    with connection.cursor() as cursor:
        cursor.execute("SELECT nspname FROM pg_namespace ORDER BY 1")
        return cursor.fetchall()


def test_a_new_tenant_serves_at_once_with_its_owner_and_host(db):
    tenant = create(owner_password="long enough to be good")
    assert tenant in Tenant.objects.serving()
    assert tenant.get_primary_domain().domain == "initech.carillon.test"
    with tenant_context(tenant):
        owner = User.objects.get()
        assert (owner.email, owner.is_staff, owner.is_superuser) == ("peter@initech.example", True, False)
        assert owner.check_password("long enough to be good")
        assert owner.has_perm("auth.change_user")
        assert owner.has_perm("auditlog.view_logentry")


def test_owners_cannot_change_the_audit_log_nor_anything_above_their_tenant(in_acme):
    owner = User.objects.get()
    assert not any(owner.has_perm(f"auditlog.{verb}_logentry") for verb in ("add", "change", "delete"))
    assert not [name for name in owner.get_all_permissions() if name.startswith("tenants.")]
    assert Permission.objects.filter(content_type__app_label="tenants").exists()


def test_an_owner_without_a_password_cannot_sign_in_yet(db):
    with tenant_context(create()):
        assert not User.objects.get().has_usable_password()


def test_creating_again_changes_nothing(db):
    first = create(owner_password="long enough to be good")
    with tenant_context(first):
        before = list(User.objects.values())
    again = create(owner_password="quite another password")
    assert again == first
    with tenant_context(first):
        assert list(User.objects.values()) == before


def test_creating_again_adds_what_is_missing(db):
    tenant = create()
    with tenant_context(tenant):
        User.objects.all().delete()
    create()
    with tenant_context(tenant):
        assert User.objects.get().groups.get().name == owners.OWNERS


def test_a_domain_belongs_to_one_name(acme):
    with pytest.raises(OnboardingError, match="another tenant"):
        create("Acme Ltd", "acme")


STEPS = {
    "host": (Domain.objects, "create"),
    "clone": (onboarding, "clone_schema"),
    "record": (migrations_state, "record_migrations"),
    "enter": (onboarding, "tenant_context"),
    "owner": (owners, "ensure_owner"),
    "group": (User.groups.related_manager_cls, "add"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failure_leaves_nothing_behind(transactional_db, monkeypatch, step, when):
    before = schemas(), Tenant.objects.count(), Domain.objects.count()
    target, name = STEPS[step]
    original = getattr(target, name)

    def fail(*args, **kwargs):
        if when == "after":
            original(*args, **kwargs)
        raise ZeroDivisionError

    monkeypatch.setattr(target, name, fail)
    with pytest.raises(ZeroDivisionError):
        create()
    assert (schemas(), Tenant.objects.count(), Domain.objects.count()) == before
    monkeypatch.undo()
    assert create() in Tenant.objects.serving()


def test_two_at_once_make_one_tenant(transactional_db):
    made, together = [], Barrier(2)

    def make():
        together.wait()
        try:
            made.append(create().pk)
        finally:
            connection.close()

    threads = [Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2
    assert len(set(made)) == 1


@pytest.mark.parametrize(
    ("given", "host"),
    [("Initech", "initech.carillon.test"), ("x.carillon.test.", "x.carillon.test"), ("Own.Example", "own.example")],
)
def test_a_domain_is_a_label_or_a_full_name(db, given, host):
    assert create(domain=given).get_primary_domain().domain == host


@pytest.mark.parametrize(
    "domain",
    ["", ".", "a b", "a_b", "-a", "a-", "a..b", "ümlaut", "carillon.test", "a.b.carillon.test", "127.0.0.1", "a" * 64,
     "a/b", "a:8000", "a\n.example.com", "*.example.com", ".".join(["a" * 60] * 5)],
)  # fmt: skip
def test_a_domain_that_is_no_host_name_is_refused(db, domain):
    with pytest.raises(ValidationError):
        create(domain=domain)


@pytest.mark.parametrize("bad", [{"name": " "}, {"owner_password": "short"}])
def test_a_tenant_needs_a_name_and_a_good_password(db, bad):
    with pytest.raises(ValidationError):
        create(**bad)


def test_the_template_must_be_ready(db):
    with connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA tenant_template CASCADE")
    with pytest.raises(OnboardingError, match="migrate_schemas"):
        create()


def test_suspending_and_resuming(acme):
    suspend(acme, "unpaid", "operator")
    assert acme not in Tenant.objects.serving()
    assert (acme.status, acme.status_reason) == (Status.SUSPENDED, "unpaid")
    resume(acme, "operator")
    assert acme in Tenant.objects.serving()
    acme.refresh_from_db()
    assert acme.status_reason == ""


def test_the_audit_log_says_who_suspended_a_tenant(acme):
    suspend(acme, "unpaid", "operator@example.com")
    entry = LogEntry.objects.get_for_object(acme).first()
    assert entry.changes["status"] == ["active", "suspended"]
    assert entry.additional_data == {"actor": "operator@example.com"}


def test_closing_asks_for_the_name(acme):
    with pytest.raises(OnboardingError):
        close(acme, "Acme", "operator")
    close(acme, "acme", "operator")
    for move in (lambda: suspend(acme, "x", "operator"), lambda: resume(acme, "operator"), create_again):
        with pytest.raises(OnboardingError):
            move()


def create_again():
    create("acme", "acme")


def test_only_a_closed_tenant_can_be_dropped(acme):
    with pytest.raises(OnboardingError, match="close it first"):
        drop_closed_tenant(acme, "acme")
    close(acme, "acme", "operator")
    with pytest.raises(OnboardingError, match="confirmation"):
        drop_closed_tenant(acme, "globex")


def test_the_platform_itself_cannot_be_closed(db):
    platform = Tenant.objects.get(schema_name="public")
    for end in (lambda: suspend(platform, "x", "x"), lambda: close(platform, platform.name, "x")):
        with pytest.raises(OnboardingError):
            end()


def test_dropping_leaves_nothing_in_public_but_the_audit_trail(transactional_db):
    tenant = create("Canary", "canary")
    key, _ = ApiKey.issue(tenant, "canary key", created_by="x", scopes=["send"])
    close(tenant, "Canary", "operator")
    traces = tenant.schema_name, "Canary", "canary", key.key_id
    assert rows_with(*traces)
    drop_closed_tenant(tenant, "Canary")
    assert rows_with(*traces) == []
    assert (tenant.schema_name,) not in schemas()


def rows_with(*traces):
    with connection.cursor() as cursor:
        cursor.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' "
                       "AND relname <> 'auditlog_logentry'")  # fmt: skip
        found = []
        for (table,) in cursor.fetchall():
            cursor.execute(f"SELECT t::text FROM public.{table} t WHERE t::text ~* %s", ["|".join(traces)])
            found += cursor.fetchall()
        return found


def test_other_apps_are_told_and_can_refuse(acme, monkeypatch):
    told = []
    monkeypatch.setattr(hooks, "_on_close", [])
    monkeypatch.setattr(hooks, "_on_drop", [])
    hooks.on_close(lambda tenant: told.append(("close", tenant.name, current_schema())))
    hooks.on_drop(lambda tenant: told.append(("drop", tenant.name, current_schema())))
    close(acme, "acme", "operator")
    assert told == [("close", "acme", "public")]
    hooks.on_drop(lambda tenant: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        drop_closed_tenant(acme, "acme")
    assert told[-1] == ("drop", "acme", "public")
    assert (acme.schema_name,) in schemas()


@pytest.mark.parametrize("name", ["t_nosuchtenant", "tenant_template", "pg_catalog", 'public"; DROP', ""])
def test_only_a_known_tenants_schema_can_be_entered(db, name):
    with pytest.raises(UnknownTenant), tenant_context(name):
        pass
    assert current_schema() == "public"


def test_a_tenant_whose_schema_is_gone_cannot_be_entered(acme):
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER SCHEMA {acme.schema_name} RENAME TO t_renamed00")
    with pytest.raises(MissingSchema), tenant_context(acme):
        pass
    assert current_schema() == "public"


def test_contexts_nest_and_go_back_also_after_an_error(acme, globex):
    with tenant_context(acme):
        with suppress(ZeroDivisionError), tenant_context(globex.schema_name):
            assert User.objects.get().email == "owner@globex.example"
            raise ZeroDivisionError
        assert User.objects.get().email == "owner@acme.example"
        with public_context():
            assert current_schema() == "public"
        assert current_schema() == acme.schema_name


@pytest.mark.parametrize(
    "row",
    [
        lambda: Tenant.objects.create(name="x", schema_name="acme"),
        lambda: Tenant.objects.create(name="x", schema_name="t_UPPERCASE0"),
        lambda: Tenant.objects.create(name=""),
        lambda: Tenant.objects.create(name="x", status="gone"),
        lambda: Domain.objects.create(domain="Upper.example.com", tenant_id=1),
        lambda: Domain.objects.create(domain="acme.carillon.test", tenant_id=1),
    ],
)
def test_the_database_itself_refuses_what_cannot_be(acme, row):
    with pytest.raises(IntegrityError), transaction.atomic():
        row()


def test_an_api_key_is_shown_once_and_known_again(acme):
    key, text = ApiKey.issue(acme, "CI", created_by="x", scopes=["send"], allowed_networks=["192.0.2.0/24"])
    found = ApiKey.objects.get(key_id=ApiKey.id_in(text))
    assert found == key
    assert found.matches(text)
    assert text not in str(vars(found))
    assert not found.matches(text[:-1] + "x")
    assert not found.matches("")


@pytest.mark.parametrize(
    "text", ["", "carillon_", "other_abcdefgh_00", "carillon_abcdefgh_" + "0" * 72, "carillon_é_1"]
)
def test_what_is_no_api_key_is_told_apart_without_a_query(text):
    assert ApiKey.id_in(text) is None


def test_an_api_keys_networks_are_networks(acme):
    with pytest.raises(ValidationError):
        ApiKey.issue(acme, "CI", created_by="x", scopes=[], allowed_networks=["192.0.2.1/24"])


def test_the_commands_walk_through_a_tenants_life(db, capsys, monkeypatch):
    call_command("create_tenant", "Initech", domain="initech", owner="p@initech.example")
    shown = capsys.readouterr().out
    password = shown.rsplit(": ", 1)[1].strip()
    tenant = Tenant.objects.get(name="Initech")
    with tenant_context(tenant):
        assert User.objects.get().check_password(password)
    call_command("create_tenant", "Initech", domain="initech", owner="p@initech.example")
    assert "password" not in capsys.readouterr().out
    monkeypatch.setenv("GIVEN", "a password that is given")
    call_command("create_tenant", "Two", domain="two", owner="p@two.example", password_env="GIVEN")
    assert "password" not in capsys.readouterr().out
    call_command("suspend_tenant", "initech", reason="unpaid")
    call_command("resume_tenant", "initech.carillon.test")
    with pytest.raises(CommandError, match="confirmation"):
        call_command("close_tenant", "initech", confirm="initech")
    monkeypatch.setattr("builtins.input", lambda: "Initech")
    call_command("close_tenant", "initech")
    call_command("close_tenant", "initech", drop=True, confirm="Initech")
    assert not Tenant.objects.filter(name="Initech")


def test_a_command_for_an_unknown_tenant_says_so(db):
    with pytest.raises(CommandError, match="nobody"):
        call_command("suspend_tenant", "nobody", reason="x")


def test_the_owners_group_comes_with_the_template(in_acme):
    assert Group.objects.get(name=owners.OWNERS).permissions.count() > 10
