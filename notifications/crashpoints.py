"""Places where a process may die, named so that a test can let it die there.

Nothing is installed in a running service: `reached` then does nothing.
"""

from collections.abc import Callable
from typing import Literal

type Point = Literal[
    "before_accept_commit",
    "after_accept_commit",
    "after_claim",
    "before_provider",
    "after_provider",
    "before_outcome_write",
    "after_outcome_write",
]

hook: Callable[[Point], None] | None = None


def reached(point: Point) -> None:
    """Say that the process is at a point."""
    if hook is not None:
        hook(point)
