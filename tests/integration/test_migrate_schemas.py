from threading import Thread

import pytest
from django.contrib.auth.models import Group
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import captured_stderr, captured_stdout

from tenants import locks, migrations_state, owners
from tenants.context import tenant_context
from tenants.management.commands import migrate_schemas
from tenants.models import Tenant
from tenants.onboarding import TEMPLATE_SCHEMA, close, create_tenant
from tests.database import queries

LATER = """
from django.db import migrations
class Migration(migrations.Migration):
    dependencies = [("sessions", "0001_initial")]
    operations = [migrations.RunSQL("ALTER TABLE django_session ADD COLUMN later text",
                                    "ALTER TABLE django_session DROP COLUMN later")]
"""


@pytest.fixture
def later(db, settings, tmp_path, monkeypatch):
    """The code now has one migration more than every schema."""
    package = tmp_path / "later_sessions"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "0001_initial.py").write_text(
        "from importlib import import_module\n"
        "Migration = import_module('django.contrib.sessions.migrations.0001_initial').Migration\n"
    )
    (package / "0002_later.py").write_text(LATER)
    monkeypatch.syspath_prepend(tmp_path)
    settings.MIGRATION_MODULES = {"sessions": "later_sessions"}
    migrations_state.required.cache_clear()
    yield
    migrations_state.required.cache_clear()


def migrate(*args, **options):
    with captured_stdout() as out, captured_stderr() as err:
        try:
            call_command("migrate_schemas", *args, **options)
        finally:
            migrate.out, migrate.err = out.getvalue(), err.getvalue()
    return migrate.out


def has_later(schema):
    with connection.cursor() as cursor:
        table = f"'{schema}.django_session'::regclass"
        cursor.execute(f"SELECT FROM pg_attribute WHERE attrelid = {table} AND attname = 'later'")
        return cursor.fetchone() is not None


def test_every_schema_is_migrated_and_says_so(later, acme, globex):
    assert not Tenant.objects.serving().exists()
    out = migrate()
    assert all(map(has_later, ["public", TEMPLATE_SCHEMA, acme.schema_name, globex.schema_name]))
    assert Tenant.objects.serving().count() == 3
    assert "[2/2]" in out


def test_a_tenant_that_waits_serves_again_once_it_is_migrated(later, acme, globex):
    migrate(schema=acme.schema_name)
    assert [tenant.name for tenant in Tenant.objects.serving()] == ["acme"]
    assert not has_later(globex.schema_name)


def test_a_tenant_made_between_is_cloned_from_the_migrated_template(later):
    migrate(schema=TEMPLATE_SCHEMA)
    tenant = create_tenant("New", domain="new", owner_email="a@new.example")
    assert tenant in Tenant.objects.serving()
    assert has_later(tenant.schema_name)


def test_an_update_that_is_not_started_stops_new_tenants_only(later):
    with pytest.raises(Exception, match="template schema lacks"):
        create_tenant("New", domain="new", owner_email="a@new.example")


def test_up_to_date_schemas_cost_one_query_together(db):
    Tenant.objects.bulk_create(
        Tenant(name=f"tenant {n}", migrations=Tenant.objects.get(name="acme").migrations) for n in range(300)
    )
    with queries(1):
        assert migrate_schemas.schemas_behind() == []


def test_nothing_to_do_does_nothing(acme, monkeypatch):
    monkeypatch.setattr(migrate_schemas, "migrate_schema", lambda *args: pytest.fail("migrated"))
    monkeypatch.setattr(migrate_schemas, "migrate_public", lambda *args: pytest.fail("migrated"))
    migrate()


def test_one_failing_tenant_does_not_stop_the_others(later, acme, globex):
    with tenant_context(acme), connection.cursor() as cursor:
        cursor.execute("DROP TABLE django_session")
        cursor.execute("CREATE VIEW django_session AS SELECT 1 AS later")
    with pytest.raises(CommandError, match=acme.schema_name):
        migrate()
    assert f"{acme.schema_name} failed" in migrate.err
    assert has_later(globex.schema_name)
    assert [tenant.name for tenant in Tenant.objects.serving().order_by("name")] == ["Platform", "globex"]


def test_a_tenant_without_its_schema_fails_and_public_is_left_alone(later, acme, globex):
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER SCHEMA {acme.schema_name} RENAME TO t_renamed00")
    with pytest.raises(CommandError, match=acme.schema_name):
        migrate()
    assert "does not exist" in migrate.err
    assert has_later(globex.schema_name)


def test_a_killed_job_goes_on_where_it_was(later, acme, globex, monkeypatch):
    original, done = migrate_schemas.migrate_schema, []

    def die_at_the_third(name, options):
        if len(done) == 2:
            raise KeyboardInterrupt
        original(name, options)
        done.append(name)

    monkeypatch.setattr(migrate_schemas, "migrate_schema", die_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        migrate()
    assert done[0] == TEMPLATE_SCHEMA
    done.insert(0, "not counted")
    migrate()
    assert sorted(done[1:]) == sorted([TEMPLATE_SCHEMA, acme.schema_name, globex.schema_name])
    assert Tenant.objects.serving().count() == 3


def test_check_names_who_is_behind(later, acme, globex):
    migrate(schema=acme.schema_name)
    with pytest.raises(SystemExit) as caught:
        migrate(check_unapplied=True)
    assert caught.value.code == 1
    assert migrate.out.split("\n")[:-1] == [f"{n} is behind" for n in ("public", TEMPLATE_SCHEMA, globex.schema_name)]
    assert not has_later("public")


def test_check_is_content_when_all_is_done(acme):
    assert migrate(check_unapplied=True) == ""


def test_one_app_can_be_taken_back_everywhere(later, acme, globex):
    migrate()
    migrate("sessions", "0001")
    assert not any(map(has_later, ["public", TEMPLATE_SCHEMA, acme.schema_name, globex.schema_name]))
    assert not Tenant.objects.serving().exists()


def test_a_closed_tenant_is_left_as_it_is(later, acme):
    close(acme, "acme", "operator")
    migrate()
    assert not has_later(acme.schema_name)


def test_owners_may_do_what_a_migration_brings(later, acme):
    with tenant_context(acme):
        owners.ensure_owners_group().permissions.clear()
    migrate()
    with tenant_context(acme):
        assert Group.objects.get(name=owners.OWNERS).permissions.filter(codename="delete_group").exists()


def test_an_unknown_schema_is_refused(db):
    with pytest.raises(CommandError, match="t_nobody000"):
        migrate(schema="t_nobody000")


def test_two_jobs_do_not_run_at_once(acme, transactional_db):
    said = []

    def job():
        try:
            with locks.migrating(lambda: said.append("waits")):
                said.append("runs")
        finally:
            connection.close()

    with locks.migrating(lambda: None):
        thread = Thread(target=job)
        thread.start()
        thread.join(0.5)
        assert said == ["waits"]
    thread.join(5)
    assert said == ["waits", "runs"]


def test_the_job_holds_its_locks_and_gives_them_back(later, acme, globex, monkeypatch):
    original, held = migrate_schemas.migrate_schema, {}

    def look(name, options):
        held[name] = locks_held()
        original(name, options)

    monkeypatch.setattr(migrate_schemas, "migrate_schema", look)
    migrate()
    assert held == {TEMPLATE_SCHEMA: 2, acme.schema_name: 1, globex.schema_name: 1}
    assert locks_held() == 0


def locks_held():
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()")
        return cursor.fetchone()[0]


def test_a_tenant_whose_last_step_failed_is_done_again(later, acme, monkeypatch):
    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr(owners, "ensure_owners_group", fail)
    with pytest.raises(CommandError):
        migrate(schema=acme.schema_name)
    assert acme.schema_name in migrate_schemas.schemas_behind()


def test_a_tenant_is_not_cloned_from_a_template_in_the_middle_of_its_migration(transactional_db):
    made = []

    def make():
        try:
            made.append(create_tenant("New", domain="new", owner_email="a@new.example"))
        finally:
            connection.close()

    with locks.template_exclusive():
        thread = Thread(target=make)
        thread.start()
        thread.join(0.5)
        assert made == []
    thread.join(10)
    assert len(made) == 1


def test_tenants_can_be_migrated_in_parallel(acme, globex, transactional_db):
    for tenant in (acme, globex):
        with tenant_context(tenant), connection.cursor() as cursor:
            cursor.execute("DROP TABLE django_session; DELETE FROM django_migrations WHERE app = 'sessions'")
        migrations_state.record_migrations(tenant.schema_name)
    assert Tenant.objects.serving().count() == 1
    migrate(parallel=2)
    assert Tenant.objects.serving().count() == 3


def test_migrate_is_the_same_command(later, acme):
    with captured_stdout():
        call_command("migrate", verbosity=0, interactive=False, database="default", run_syncdb=True)
    assert has_later(acme.schema_name)
