"""A worker that fails as `FAULT` says: `python -m tests.faults.worker default`."""

import os
from typing import Any

from services import worker
from tests.faults import crashes

POISON = "poison"


def main() -> None:
    """Install the fault, then work as `services.worker` does."""
    point = crashes.install()
    if point == "before_job":
        _die_before_jobs()
    elif point == POISON:
        _die_of_poison()
    worker.main()


def _die_before_jobs() -> None:
    perform = worker.Worker.perform_job

    def perform_job(self: worker.Worker, job: Any, queue: Any) -> bool:
        crashes.reached[0]("before_job")
        return perform(self, job, queue)

    worker.Worker.perform_job = perform_job  # type: ignore[method-assign]


def _die_of_poison() -> None:
    from notifications import preparing

    prepare = preparing.prepare

    def prepare_or_die(claim: Any, messages: Any) -> Any:
        if any(message.to_address.startswith(POISON) for message in messages):
            os._exit(crashes.DIED)
        return prepare(claim, messages)

    preparing.prepare = prepare_or_die


if __name__ == "__main__":
    main()
