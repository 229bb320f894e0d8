"""Bells: jobs that say "this tenant has work in this queue". They carry ids only, and may be lost or doubled.

A tenant has one queued bell a queue: the key that coalesces them is deleted by the drain before its first
claim, so a bell rung while a drain runs is a new one. Each bell is a job under a fresh id, because a job
under a fixed id that is rung while it runs is dropped.
"""

import logging
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from uuid import uuid4

from django.conf import settings
from django.db import transaction
from django.utils import timezone
from redis import RedisError
from rq.job import Job

from notifications import queues
from tenants.connection import connection

logger = logging.getLogger(__name__)

COALESCE_SECONDS = 12
"""Less than from sweep to sweep, so that the next one makes up for a bell that was lost."""
JOB_SECONDS = 3600
MOST_PLANNED = 60
_QUIET_SECONDS = 5.0
DRAIN = "notifications.jobs.drain"
RING = "notifications.dispatch.bells.ring"


class _Doorbell:
    """The connection to Redis. After a failure it is left alone for a while, so that callers never queue up
    behind its time-outs; the sweep rings for what they accepted meanwhile."""

    def __init__(self) -> None:
        self.quiet_until = 0.0

    def reach(self, call: Callable[[], None]) -> bool:
        """Call a function that needs Redis, unless it failed just now; False when it was not reached."""
        if time.monotonic() < self.quiet_until:
            return False
        try:
            call()
        except (RedisError, OSError) as error:
            self.quiet_until = time.monotonic() + _QUIET_SECONDS
            logger.warning("bell not rung, the sweep will: %s", type(error).__name__)
            return False
        return True


_doorbell = _Doorbell()


def _key(schema_name: str, queue: str) -> str:
    return f"bell:{schema_name}:{queue}"


def _job_key(schema_name: str, queue: str) -> str:
    return f"bell-job:{schema_name}:{queue}"


def _ring(schema_name: str, queue: str) -> None:
    if queues.redis().set(_key(schema_name, queue), 1, nx=True, ex=COALESCE_SECONDS):
        _hang(schema_name, queue)


def _hang(schema_name: str, queue: str) -> None:
    """Queue a bell's job, unless an earlier one still hangs: it keeps its place, or others would get all the turns."""
    redis, target = queues.redis(), queues.queue_named(queue)
    job_id = f"{schema_name}-{uuid4().hex}"
    try:
        unanswered = redis.get(_job_key(schema_name, queue))
        if isinstance(unanswered, bytes) and redis.lpos(target.key, unanswered.decode()) is not None:
            if redis.exists(queues.JsonJob.key_for(unanswered.decode())):
                return
            logger.warning("a bell's job was lost: Redis evicts keys", extra={"schema": schema_name, "queue": queue})
            target.remove(unanswered.decode())
        redis.set(_job_key(schema_name, queue), job_id, ex=JOB_SECONDS)
        target.enqueue_call(
            DRAIN,
            args=(schema_name, queue),
            job_id=job_id,
            timeout=-1,
            result_ttl=0,
            ttl=JOB_SECONDS,
            failure_ttl=86_400,
        )
    except BaseException:
        # A key over no job would keep the next ring out.
        redis.delete(_key(schema_name, queue))
        raise


def ring(schema_name: str, queue: str) -> bool:
    """Ring now; False when Redis is away (the sweep will ring). Never raises for Redis' sake."""
    if settings.NOTIFY_DISPATCH_MODE != "rq":
        return False
    return _doorbell.reach(partial(_ring, schema_name, queue))


def ring_on_commit(queue: str) -> None:
    """Ring for the current tenant once the transaction is safely stored."""
    transaction.on_commit(partial(ring, connection.schema_name, queue), robust=True)


def plan(schema_name: str, queue: str, at: datetime) -> None:
    """Plan a bell for an aware time; one a tenant, queue and second, rounded up so that it is never early.

    Never raises for Redis' sake: the sweep rings for what is due and was not planned.
    """
    if settings.NOTIFY_DISPATCH_MODE != "rq":
        return
    moment = queues.whole_second_after(at)
    if moment <= timezone.now():
        ring(schema_name, queue)
        return
    name = f"later-{schema_name}-{queue}-{moment:%Y%m%dT%H%M%S}"
    _doorbell.reach(partial(queues.schedule().at, moment, RING, schema_name, queue, name=name))


def plan_on_commit(queue: str, at: datetime) -> None:
    """Plan a bell for the current tenant once the transaction is safely stored."""
    transaction.on_commit(partial(plan, connection.schema_name, queue, at), robust=True)


def plan_all_on_commit(queue: str, times: Iterable[datetime | None]) -> None:
    """Plan a bell for each of these seconds, up to a minute's worth (the sweep rings for the rest); None is now."""
    planned = sorted({queues.whole_second_after(at or timezone.now()) for at in times})
    for at in planned[:MOST_PLANNED]:
        plan_on_commit(queue, at)


def look_after_schedule() -> None:
    """Ring the planned bells that are due, and enqueue the periodic jobs; called every second by each scheduler.

    Raises:
        RedisError: Redis does not answer.
    """
    queues.schedule().take_due(_due)


def _due(entry: Job) -> None:
    if entry.func_name == RING:
        schema_name, queue = entry.args
        entry.delete()
        _ring(schema_name, queue)
    else:
        queues.schedule().enqueue_again(entry)


def answered(schema_name: str, queue: str) -> None:
    """Let the next ring through: called before a drain's first claim."""
    if settings.NOTIFY_DISPATCH_MODE != "rq":
        return
    try:
        queues.redis().delete(_key(schema_name, queue), _job_key(schema_name, queue))
    except (RedisError, OSError) as error:
        logger.warning("bell key not deleted, it ends by itself: %s", type(error).__name__)
