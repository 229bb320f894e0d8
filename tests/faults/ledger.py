"""The two ledgers and what joins them: what was accepted, what the providers were given.

Pure: files in, a verdict out. The files hold a JSON object a line.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

type Expected = Literal["taken", "failed", "either", "suppressed"]

ENDINGS: Mapping[Expected, str] = {"failed": "failed", "either": "failed", "suppressed": "suppressed"}
"""The status in which a message may end without a provider, where it is expected to or may."""


def content_hash(subject: str, text: str) -> str:
    """What a message says, in a form that both ends can tell."""
    return hashlib.sha256(f"{subject}\0{text.replace('\r\n', '\n').rstrip('\n')}".encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A message that is to be accepted."""

    key: str
    """Unlike any other of the case."""
    tenant: str
    """The tenant's name, which its senders' addresses hold."""
    schema: str
    to: str
    subject: str
    text: str
    channel: str = "email"
    expected: Expected = "taken"
    """How it is to end: with a provider, as failed, as either of these, or as suppressed."""
    scripted: bool = False
    """The provider was told to make trouble: it may be tried more often, and later."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """More arguments for `send`; `in_seconds` is the time until `scheduled_at`."""

    @property
    def sha(self) -> str:
        """The hash of its content."""
        return content_hash(self.subject, self.text)

    def as_line(self) -> str:
        """The order as a line of a file."""
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> Self:
        """The order that was written so."""
        return cls(**json.loads(line))


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a provider was given: one attempt."""

    seq: int
    at: float
    to: str
    sender: str
    id: str
    sha: str
    taken: bool
    answer: str


@dataclass(slots=True)
class Accepted:
    """What the accepting process noted about one order."""

    begun: bool = False
    ids: set[str] = field(default_factory=set)
    at: float = 0.0
    """When the first call that succeeded returned (Unix)."""
    due: float = 0.0
    refused: str = ""
    """Why the last call did not succeed."""
    longest: float = 0.0
    """How long its longest call took, in seconds."""


@dataclass(slots=True)
class Verdict:
    """What was found."""

    accepted: int = 0
    handed_over: int = 0
    lost: int = 0
    duplicated: int = 0
    late: int = 0
    slowest: float = 0.0
    p99: float = 0.0
    problems: list[str] = field(default_factory=list)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; one that is being written is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def read_receipts(paths: Iterable[Path]) -> list[Receipt]:
    """All providers' receipts, in the order of time."""
    return sorted((Receipt(**line) for path in paths for line in read_lines(path)), key=lambda receipt: receipt.at)


def read_accepted(paths: Iterable[Path]) -> dict[str, Accepted]:
    """What was noted about each order, by its key."""
    found: dict[str, Accepted] = defaultdict(Accepted)
    for path in paths:
        for line in read_lines(path):
            entry = found[line["key"]]
            entry.longest = max(entry.longest, line.get("took", 0.0))
            match line["what"]:
                case "begun":
                    entry.begun = True
                case "accepted":
                    entry.ids.add(line["id"])
                    entry.at = entry.at or line["at"]
                    entry.due = entry.due or line["due"]
                case "refused":
                    entry.refused = line["error"]
    return dict(found)


def check(
    orders: Collection[Order],
    accepted: Mapping[str, Accepted],
    receipts: Sequence[Receipt],
    statuses: Mapping[str, str],
    *,
    in_doubt: Collection[str] = (),
    late_after: float = 90.0,
) -> Verdict:
    """Join what was accepted with what the providers were given.

    Args:
        orders: all that was to be accepted.
        accepted: by key.
        receipts: of all providers.
        statuses: what the product says at the end, by message id.
        in_doubt: ids of messages that may have been handed over when something was killed.
        late_after: seconds after which a message that nothing held back counts as late.
    """
    verdict = Verdict()
    taken, verdict.problems = _by_order(orders, accepted, receipts)
    waits = []
    for order in orders:
        entry = accepted.get(order.key, Accepted())
        given = taken[order.key]
        verdict.problems += _differences(order, entry, given)
        verdict.accepted += bool(entry.ids)
        verdict.handed_over += bool(given)
        if entry.begun and not entry.ids:
            verdict.problems.append(f"never accepted: {order.key}, {entry.refused or 'the caller died'}")
        status = statuses.get(next(iter(entry.ids), ""), "")
        if entry.ids and not given and not (status and status == ENDINGS.get(order.expected)):
            verdict.lost += 1
            verdict.problems.append(f"lost: {order.key}, which is {status or 'gone'}")
        if given and order.expected in {"failed", "suppressed"}:
            verdict.problems.append(f"{order.key} was taken, and was to be {order.expected}")
        if len(given) > 1:
            verdict.duplicated += len(given) - 1
            if given[0].id not in in_doubt and not order.scripted:
                verdict.problems.append(f"{order.key} came {len(given)} times, and was not in doubt")
        verdict.problems += _lies(order, status, given)
        if given and entry.at and not order.scripted and given[0].id not in in_doubt:
            waits.append(given[0].at - max(entry.at, entry.due))
    waits.sort()
    verdict.late = sum(wait > late_after for wait in waits)
    if waits:
        verdict.slowest, verdict.p99 = waits[-1], waits[int(0.99 * (len(waits) - 1))]
    if verdict.late:
        verdict.problems.append(f"{verdict.late} came later than {late_after:.0f} s, the last after {waits[-1]:.0f} s")
    return verdict


def _by_order(
    orders: Collection[Order], accepted: Mapping[str, Accepted], receipts: Sequence[Receipt]
) -> tuple[Mapping[str, list[Receipt]], list[str]]:
    """What was taken of each order, by its key; and what came that nobody asked for."""
    by_to: dict[str, list[Order]] = defaultdict(list)
    for order in orders:
        by_to[order.to.lower()].append(order)
    taken: dict[str, list[Receipt]] = defaultdict(list)
    problems = []
    for receipt in receipts:
        asked = [o for o in by_to.get(receipt.to.lower(), ()) if accepted.get(o.key, Accepted()).begun]
        # Of several to one recipient it is the one that was accepted under that id.
        named = [o for o in asked if receipt.id in accepted[o.key].ids] or asked
        if not named:
            problems.append(f"{receipt.to} was given a message that nobody asked for")
        elif receipt.taken:
            taken[named[0].key].append(receipt)
    return taken, problems


def _differences(order: Order, entry: Accepted, given: Sequence[Receipt]) -> list[str]:
    """What was handed over otherwise than it was accepted."""
    found = []
    if len(entry.ids) > 1:
        found.append(f"{order.key} was accepted as {len(entry.ids)} messages under one key")
    for receipt in given:
        if entry.ids and receipt.id not in entry.ids:
            found.append(f"{order.key} came as {receipt.id}, and was accepted as {', '.join(entry.ids)}")
        if order.tenant not in receipt.sender:
            found.append(f"wrong tenant: {order.key} came from {receipt.sender}")
        if receipt.sha != order.sha:
            found.append(f"wrong content: {order.key}")
    if len({receipt.id for receipt in given}) > 1:
        found.append(f"{order.key} came under more than one Message-ID or reference")
    return found


def _lies(order: Order, status: str, given: Sequence[Receipt]) -> list[str]:
    """Where the product says what is not so."""
    if given and status in {"failed", "suppressed"} and order.expected != "either":
        return [f"{order.key} is {status}, and the provider has it"]
    if not given and status in {"sent", "delivered"}:
        return [f"{order.key} is {status}, and no provider has it"]
    return []
