"""What the report holds."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Result:
    """A row of the report."""

    case: str
    accepted: int = 0
    handed_over: int = 0
    lost: int = 0
    duplicated: int = 0
    in_flight_at_kill: int = 0
    resumed_s: float | None = None
    late: int = 0
    p99_s: float = 0.0
    slowest_s: float = 0.0
    seed: int = 0
    took_s: float = 0.0
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
