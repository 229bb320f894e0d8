"""The queues: bells travel in them as JSON, never as pickles."""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import django_rq
from django.conf import settings
from redis import Redis, RedisError
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job
from rq.serializers import JSONSerializer
from rq_scheduler import Scheduler

logger = logging.getLogger(__name__)


_TAKE = """
local due_at = redis.call('ZSCORE', KEYS[1], ARGV[1])
if due_at and tonumber(due_at) <= tonumber(ARGV[2]) then return redis.call('ZREM', KEYS[1], ARGV[1]) end
return 0
"""
"""Take an entry if it is due still: a periodic one that another process has taken is there again, for its next time."""


class JsonJob(Job):
    """A job that is JSON by default: rq-scheduler has no serializer option of its own."""

    def __init__(self, id: str | None = None, connection: Any = None, serializer: Any = None) -> None:  # noqa: A002
        super().__init__(id, connection, serializer or JSONSerializer)


@lru_cache
def queue_named(name: str) -> Queue:
    """The queue of that name."""
    return django_rq.get_queue(name, connection=redis())


@lru_cache
def redis() -> Redis:
    """The connections that bells travel over; one pool a process."""
    return connect()


def connect() -> Redis:
    """A pool of connections of its own. django-rq's would have the options of a URL alone, and wait for 5 seconds."""
    options: dict[str, Any] = settings.RQ_QUEUES["default"]
    return Redis.from_url(options["URL"], **options["REDIS_CLIENT_KWARGS"])


class Schedule(Scheduler):  # type: ignore[misc]
    """What is due later. Any number of processes may look after it: each entry is taken by one of them.

    rq-scheduler's own loop is not used: its lock does not know its owner, one unreadable entry stops its pass, and
    signal handlers come with it. An entry is taken before anything is done about it, so a process that dies then
    loses it; bells are rung by the sweep, and periodic jobs are put back by the next look.
    """

    job_class = JsonJob
    queue_class = Queue

    def at(self, moment: datetime, function: str, *args: Any, name: str) -> None:
        """Plan a call at a whole second; the same name again is the same entry."""
        self.enqueue_at(moment, function, *args, job_id=name, job_result_ttl=0)

    def take_due(self, call: Callable[[Job], None]) -> int:
        """Take every entry that is due, and call the function with it; how many there were.

        Raises:
            RedisError: Redis does not answer.
        """
        now = int(time.time())
        due = self.connection.zrangebyscore(self.scheduled_jobs_key, 0, now)
        take = self.connection.register_script(_TAKE)
        for name in due:
            if not take(keys=[self.scheduled_jobs_key], args=[name, now]):
                continue
            try:
                call(self.job_class.fetch(name.decode(), connection=self.connection))
            except RedisError:
                raise
            except NoSuchJobError:
                continue
            except Exception:
                logger.exception("entry of the schedule cannot be read and was removed", extra={"entry": name.decode()})
        return len(due)

    def keep(self, name: str, every: timedelta, function: str, *, queue: str) -> None:
        """See that a periodic job is in the schedule, under its name and as it is to be now."""
        first, seconds = datetime.now(UTC) + every, int(every.total_seconds())
        if (due_at := self.connection.zscore(self.scheduled_jobs_key, name)) is not None:
            if self._is_kept(name, function, seconds):
                return
            # Not put off, or two versions that run side by side would do so for ever.
            first = min(first, datetime.fromtimestamp(due_at, UTC))
        # A result that is not kept would end the job after its first run.
        self.schedule(first, function, id=name, queue_name=queue, interval=seconds, result_ttl=-1, timeout=-1)

    def _is_kept(self, name: str, function: str, seconds: int) -> bool:
        try:
            job = self.job_class.fetch(name, connection=self.connection)
        except NoSuchJobError:
            return False
        return bool(job.func_name == function and job.meta.get("interval") == seconds)

    def enqueue_again(self, entry: Job) -> None:
        """Enqueue a periodic job that was taken, and put it back for its next time.

        One that nobody has worked on yet is replaced, so that they do not pile up.
        """
        again = int(time.time()) + int(entry.meta["interval"])
        self.connection.zadd(self.scheduled_jobs_key, {entry.id: again})
        queue = queue_named(entry.origin)
        queue.remove(entry)
        queue.enqueue_job(entry)


@lru_cache
def schedule() -> Schedule:
    """The schedule; one a process."""
    return Schedule(connection=redis(), interval=1)


def whole_second_after(moment: datetime) -> datetime:
    """The moment, rounded up to a whole second, as the schedule's are."""
    return datetime.fromtimestamp(-int(-moment.timestamp() // 1), UTC)
