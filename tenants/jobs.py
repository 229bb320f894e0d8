"""The only two doors between a tenant and a queue."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol

from redis import RedisError

from tenants.connection import connection
from tenants.context import current_schema, on_commit, tenant_context
from tenants.models import Tenant

logger = logging.getLogger(__name__)


class Queue(Protocol):
    """What is needed of a queue."""

    def enqueue(self, f: Callable[..., Any], *args: Any) -> Any:
        """Put a call of `f` with these arguments into the queue."""


def tenant_job[**P, R](function: Callable[P, R]) -> Callable[..., R | None]:
    """Run a function as a job inside its tenant's schema: `job(schema_name, *args)`.

    A tenant that is unknown, suspended, closed or waiting for migrations runs nothing: the job logs why and returns
    None. The server itself is asked where the connection is before the function starts, and whatever the function
    does or raises, the connection is back in public when the job ends.

    The job raises:
        MissingSchema: the tenant is there and its schema is not.
    """

    @wraps(function)
    def job(schema_name: str, *args: Any, **kwargs: Any) -> R | None:
        connection.set_schema_to_public()
        tenant = Tenant.objects.serving().filter(schema_name=schema_name).defer("migrations").first()
        if tenant is None:
            logger.warning("job left out: the tenant is not served", extra=_names(schema_name, function))
            return None
        with tenant_context(tenant):
            return function(*args, **kwargs)

    job.is_tenant_job = True  # type: ignore[attr-defined]
    return job


def enqueue_on_commit(queue: Queue, job: Callable[..., Any], *args: Any) -> None:
    """Put a tenant job into a queue once the transaction has committed, for the tenant of the caller.

    A queue that does not answer is logged and never fails the caller: the sweep finds what was stored.

    Raises:
        TypeError: the function is no tenant job, so that nothing would set its schema.
    """
    if not getattr(job, "is_tenant_job", False):
        raise TypeError(f"{job!r} is not a tenant job: decorate it with tenants.jobs.tenant_job")
    schema_name = current_schema()

    def enqueue() -> None:
        try:
            queue.enqueue(job, schema_name, *args)
        except (RedisError, OSError) as error:
            logger.warning("queue not reached: %s", error, extra=_names(schema_name, job))

    on_commit(enqueue)


def _names(schema_name: str, function: Callable[..., Any]) -> dict[str, str]:
    return {"tenant": schema_name, "job": f"{function.__module__}.{function.__qualname__}"}
