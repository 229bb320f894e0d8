"""Figures: what was measured, beside what, against which target."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any


class NotMeasured(Exception):
    """A figure could not be had; the message says why, in one line."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be reached: the ratio to the peer, or the figure itself when there is none to compare with."""

    sign: str
    limit: float
    of_ratio: bool = False

    def __str__(self) -> str:
        return f"{'ratio ' if self.of_ratio else ''}{self.sign} {self.limit:g}"

    def met(self, value: float) -> bool:
        """Whether a figure reaches it."""
        return value >= self.limit if self.sign == "≥" else value <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. `runs` and `peer_runs` are the raw values, in `unit`."""

    name: str
    unit: str
    runs: Sequence[float]
    value: float | None = None
    """The figure, where it is not the median of the runs."""
    peer: str = ""
    peer_runs: Sequence[float] = ()
    target: Target | None = None
    note: str = ""

    @property
    def ours(self) -> float | None:
        """Our figure; None when it was not measured."""
        return self.value if self.value is not None else median(self.runs) if self.runs else None

    @property
    def peer_value(self) -> float | None:
        """The peer's figure; None when there is none."""
        return median(self.peer_runs) if self.peer_runs else None

    @property
    def ratio(self) -> float | None:
        """Ours through the peer's."""
        if self.ours is None or not self.peer_value:
            return None
        return self.ours / self.peer_value

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None when there is none, or nothing to hold against it."""
        value = self.ratio if self.target and self.target.of_ratio else self.ours
        return None if self.target is None or value is None else self.target.met(value)

    def as_json(self) -> dict[str, Any]:
        """The row as it is stored."""
        return {
            "name": self.name,
            "ours": rounded(self.ours),
            "peer": self.peer,
            "peer_value": rounded(self.peer_value),
            "ratio": rounded(self.ratio),
            "unit": self.unit,
            "runs": [rounded(run) for run in self.runs],
            "peer_runs": [rounded(run) for run in self.peer_runs],
            "target": str(self.target or ""),
            "met": self.met,
            "note": self.note,
        }


@dataclass(slots=True)
class Report:
    """All rows so far, written down after each, so that an interrupted run leaves what it has."""

    path: Path
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Take a row, and store all."""
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.as_json() + "\n", encoding="utf-8")

    def as_json(self) -> str:
        """The list of rows."""
        return json.dumps([row.as_json() for row in self.rows], ensure_ascii=False, indent=1)

    def as_table(self) -> str:
        """The rows for people: medians, the spread in brackets, notes below."""
        notes = list(dict.fromkeys(row.note for row in self.rows if row.note))
        cells: list[tuple[str, ...]] = [("WHAT", "OURS", "UNIT", "BESIDE", "THEIRS", "RATIO", "TARGET", "", "NOTE")]
        cells += [(*_line(row), f"[{notes.index(row.note) + 1}]" if row.note else "") for row in self.rows]
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        table = [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells
        ]
        numbered = [f"[{number}] {note}" for number, note in enumerate(notes, 1)]
        return "\n".join([*table, "", "Medians (lowest–highest of the runs).", *numbered])


def _line(row: Row) -> tuple[str, ...]:
    missing = "not measured"
    verdict = "" if row.met is None else "met" if row.met else "MISSED"
    return (
        row.name,
        missing if row.ours is None else shown(row.ours) + _spread(row.runs),
        row.unit,
        row.peer or "–",
        "" if not row.peer else missing if row.peer_value is None else shown(row.peer_value) + _spread(row.peer_runs),
        "" if row.ratio is None else f"{row.ratio:.3g}",
        str(row.target or ""),
        verdict,
    )


def _spread(runs: Sequence[float]) -> str:
    return f" ({shown(min(runs))}–{shown(max(runs))})" if len(runs) > 1 else ""


def shown(value: float) -> str:
    """A figure with three or four digits."""
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 100 else f"{value:.3g}"


def rounded(value: float | None) -> float | None:
    """A figure without digits that mean nothing."""
    return None if value is None else float(f"{value:.6g}")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of all values do not exceed.

    Raises:
        NotMeasured: there are no values.
    """
    if not values:
        raise NotMeasured("nothing arrived")
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]
