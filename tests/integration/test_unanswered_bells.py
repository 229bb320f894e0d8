"""Bells that hang for long: one keeps its place, so that no tenant gets all the turns, and a lost one is hung anew."""

import pytest
from rq import SimpleWorker
from rq.job import Job
from rq.serializers import JSONSerializer

from notifications.dispatch import bells
from notifications.queues import JsonJob, queue_named
from tenants.context import tenant_context
from tests import factories
from tests.factories import accepted, fresh

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("valkey")]


@pytest.fixture
def ring_again(valkey):
    """Rings for a tenant as the sweep does, once its last ring is so long ago that another one counts."""

    def ring(tenant):
        valkey.delete(bells._key(tenant.schema_name, "default"))
        assert bells.ring(tenant.schema_name, "default")

    return ring


def test_a_bell_that_is_rung_again_keeps_its_place(acme, globex, ring_again):
    for tenant in (acme, globex):
        ring_again(tenant)
    before = queue_named("default").job_ids
    for tenant in (acme, globex, acme):
        ring_again(tenant)
    assert queue_named("default").job_ids == before
    assert [job.args[0] for job in queue_named("default").jobs] == [acme.schema_name, globex.schema_name]


def test_an_answered_bell_is_hung_behind_the_others(acme, globex, provider, ring_again):
    for tenant in (acme, globex):
        ring_again(tenant)
    answered = queue_named("default").jobs[0]
    with tenant_context(acme):
        factories.turn()
    queue_named("default").remove(answered)
    ring_again(acme)
    assert [job.args[0] for job in queue_named("default").jobs] == [globex.schema_name, acme.schema_name]


def test_a_bell_that_a_worker_took_and_died_with_is_hung_anew(acme, ring_again):
    """Its job is there still, and in no queue."""
    ring_again(acme)
    (taken,) = queue_named("default").jobs
    queue_named("default").remove(taken)
    ring_again(acme)
    (hung,) = queue_named("default").jobs
    assert hung.id != taken.id


def test_a_bell_whose_job_was_lost_is_hung_anew(acme, provider, valkey, ring_again, caplog):
    """As Valkey does when its memory is full and it may evict: the place in the queue is left, its job is gone."""
    with tenant_context(acme):
        factories.Outbox()
        message = accepted()
    (lost,) = queue_named("default").job_ids
    valkey.delete(Job.key_for(lost))
    ring_again(acme)
    (hung,) = queue_named("default").job_ids
    assert hung != lost
    assert "a bell's job was lost" in caplog.text
    queue = queue_named("default")
    SimpleWorker([queue], connection=queue.connection, job_class=JsonJob, serializer=JSONSerializer).work(
        burst=True, logging_level="ERROR"
    )
    with tenant_context(acme):
        assert fresh(message).status == "sent"
