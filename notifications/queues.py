"""The queues: bells travel in them as JSON, never as pickles."""

from functools import lru_cache
from typing import Any

import django_rq
from redis import Redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer


class JsonJob(Job):
    """A job that is JSON by default: rq-scheduler has no serializer option of its own."""

    def __init__(self, id: str | None = None, connection: Any = None, serializer: Any = None) -> None:  # noqa: A002
        super().__init__(id, connection, serializer or JSONSerializer)


@lru_cache
def queue_named(name: str) -> Queue:
    """The queue of that name; one connection pool a queue and process."""
    return django_rq.get_queue(name)


def redis() -> Redis:
    """The connection that bells travel over."""
    return queue_named("default").connection
