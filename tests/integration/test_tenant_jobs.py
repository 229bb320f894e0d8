import logging
from threading import Thread
from uuid import uuid4

import pytest
from django.conf import settings
from django.contrib.auth.models import Group, User
from django.core.cache import cache
from django.db import connection, transaction
from django.db.models.signals import post_save
from redis import ConnectionError as RedisConnectionError
from redis import Redis
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer
from rq.timeouts import TimerDeathPenalty

from tenants.context import MissingSchema, current_schema, on_commit, tenant_context
from tenants.jobs import enqueue_on_commit, tenant_job
from tenants.models import Tenant
from tenants.onboarding import close, suspend

SEEN = []


@tenant_job
def look(word="", *, fail=False):
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_schema()")
        SEEN.append((word, *cursor.fetchone(), User.objects.get().email))
    if fail:
        raise ZeroDivisionError
    return word


class ListQueue(list):
    def enqueue(self, f, *args):
        self.append((f, *args))


class DeadQueue:
    def __init__(self, error):
        self.error = error

    def enqueue(self, f, *args):
        raise self.error


@pytest.fixture(autouse=True)
def nothing_seen():
    SEEN.clear()


def test_a_job_runs_inside_its_tenant_and_ends_in_public(acme, globex):
    assert look(acme.schema_name, "a") == "a"
    assert current_schema() == "public"
    look(globex.schema_name, "g")
    expected = [("a", acme.schema_name, "owner@acme.example"), ("g", globex.schema_name, "owner@globex.example")]
    assert expected == SEEN


def test_a_job_ends_in_public_also_after_an_error(acme):
    with pytest.raises(ZeroDivisionError):
        look(acme.schema_name, fail=True)
    assert current_schema() == "public"


def test_a_job_does_not_trust_the_schema_that_it_finds(acme, globex):
    with tenant_context(globex):
        look(acme.schema_name)
        assert current_schema() == "public"
    assert SEEN[0][1] == acme.schema_name


@pytest.mark.parametrize(
    "stop",
    [
        lambda tenant: suspend(tenant, "unpaid", "operator"),
        lambda tenant: close(tenant, tenant.name, "operator"),
        lambda tenant: Tenant.objects.filter(pk=tenant.pk).update(migrations=[]),
        lambda tenant: Tenant.objects.filter(pk=tenant.pk).update(schema_name="t_anothername"),
        lambda tenant: tenant.delete(),
    ],
    ids=["suspended", "closed", "behind", "renamed", "deleted"],
)
def test_a_tenant_that_is_not_served_runs_nothing(acme, stop, caplog):
    stop(acme)
    with caplog.at_level(logging.WARNING, "tenants.jobs"):
        assert look(acme.schema_name) is None
    assert SEEN == []
    assert "not served" in caplog.text


def test_a_tenant_that_is_ahead_of_the_code_still_works(acme):
    Tenant.objects.filter(pk=acme.pk).update(migrations=[*acme.migrations, "notifications.9999_newer"])
    assert look(acme.schema_name, "x") == "x"


def test_a_missing_schema_fails_loudly_and_reads_nothing_from_public(acme):
    User.objects.create_user("somebody in public", email="public@example.com")
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER SCHEMA {acme.schema_name} RENAME TO t_renamed00")
    with pytest.raises(MissingSchema):
        look(acme.schema_name)
    assert SEEN == []
    assert current_schema() == "public"


def test_a_job_is_queued_only_once_the_work_is_stored(acme, django_capture_on_commit_callbacks):
    queue = ListQueue()
    with tenant_context(acme), transaction.atomic():
        enqueue_on_commit(queue, look, "lost")
        transaction.set_rollback(True)
    with django_capture_on_commit_callbacks(execute=True), tenant_context(acme):
        enqueue_on_commit(queue, look, "kept", 7)
        assert queue == []
    assert queue == [(look, acme.schema_name, "kept", 7)]


def test_the_tenant_is_the_one_of_the_call_not_of_the_commit(acme, globex, transactional_db):
    queue, seen = ListQueue(), []
    with transaction.atomic():
        with tenant_context(acme):
            enqueue_on_commit(queue, look)
            on_commit(lambda: seen.append((current_schema(), User.objects.get().email)))
        connection.set_tenant(globex)
    assert current_schema() == globex.schema_name
    connection.set_schema_to_public()
    assert queue == [(look, acme.schema_name)]
    assert seen == [(acme.schema_name, "owner@acme.example")]


@pytest.mark.parametrize("error", [RedisConnectionError("away"), TimeoutError("slow"), ConnectionRefusedError()])
def test_a_queue_that_is_away_never_fails_the_caller(acme, transactional_db, error, caplog):
    with tenant_context(acme), transaction.atomic():
        enqueue_on_commit(DeadQueue(error), look)
        Group.objects.create(name="stored")
    with tenant_context(acme):
        assert Group.objects.filter(name="stored").exists()
    assert "queue not reached" in caplog.text


def test_only_a_tenant_job_can_be_queued(acme):
    with pytest.raises(TypeError, match="tenant_job"):
        enqueue_on_commit(ListQueue(), print)


class PlainWorker(SimpleWorker):
    death_penalty_class = TimerDeathPenalty


@pytest.mark.filterwarnings("ignore")
def test_jobs_of_two_tenants_on_one_worker_see_their_own_rows(acme, globex, transactional_db):
    with Redis.from_url(settings.REDIS_URL) as redis:
        queue = Queue("test-tenant-jobs", connection=redis, serializer=JSONSerializer)
        queue.empty()
        for tenant in (acme, globex, acme):
            with tenant_context(tenant), transaction.atomic():
                enqueue_on_commit(queue, look, tenant.name)
        queue.enqueue(look, globex.schema_name, "fails", fail=True)
        queue.enqueue(look, acme.schema_name, "after")
        PlainWorker([queue], connection=redis, serializer=JSONSerializer).work(burst=True, logging_level="CRITICAL")
    words = {"acme": acme, "globex": globex, "fails": globex, "after": acme}
    assert [word for word, *_ in SEEN] == ["acme", "globex", "acme", "fails", "after"]
    assert all(schema == words[word].schema_name for word, schema, _ in SEEN)
    assert current_schema() == "public"


def test_a_signal_is_handled_in_the_senders_tenant_and_a_thread_in_public(in_acme):
    seen = []

    def handle(**kwargs):
        seen.append(current_schema())

    def look_around():
        seen.append(current_schema())

    post_save.connect(handle, sender=Group)
    try:
        Group.objects.create(name="x")
    finally:
        post_save.disconnect(handle, sender=Group)
    thread = Thread(target=look_around)
    thread.start()
    thread.join()
    assert seen == [in_acme.schema_name, "public"]


def test_the_same_cache_key_is_another_one_in_each_tenant(acme, globex):
    colour = f"colour-{uuid4()}"
    for tenant in (acme, globex):
        with tenant_context(tenant):
            cache.set(colour, tenant.name, 30)
    for tenant in (acme, globex):
        with tenant_context(tenant):
            assert cache.get(colour) == tenant.name
    assert cache.get(colour) is None
    with Redis.from_url(settings.REDIS_URL) as redis:
        keys = {key.decode().split(":")[0] for key in redis.keys(f"*:{colour}")}
    assert keys == {acme.schema_name, globex.schema_name}
