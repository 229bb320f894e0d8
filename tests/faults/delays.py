"""How long the rest took after a fault, and what was put off without a reason. Pure: facts in, an answer out."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from tests.faults.ledger import Receipt


def first_taken(receipts: Iterable[Receipt]) -> dict[str, float]:
    """When each message was first taken (Unix), by id; the receipts are in the order of time."""
    times: dict[str, float] = {}
    for receipt in receipts:
        if receipt.taken:
            times.setdefault(receipt.id, receipt.at)
    return times


def resumed_after(
    fault_at: float, pending: Collection[str], receipts: Iterable[Receipt], due_times: Mapping[str, float]
) -> float:
    """How many seconds after a fault the last message came that it had held up.

    Args:
        fault_at: when the fault was over (Unix).
        pending: ids of the messages that were to be handed over then.
        receipts: of all providers.
        due_times: when each message is due that is left (Unix): one that was put off has not come, and counts so.
    """
    times = {**due_times, **first_taken(receipts)}
    return max((times[i] - fault_at for i in pending if i in times), default=0.0)


def turns_after(fault_at: float, pending: Iterable[Collection[str]], receipts: Iterable[Receipt]) -> float:
    """How many seconds after a fault the last tenant got its first turn; `pending` holds each one's ids."""
    times = {i: at for i, at in first_taken(receipts).items() if at > fault_at}
    turns = [[times[i] for i in ids if i in times] for ids in pending]
    return max((min(turn) - fault_at for turn in turns if turn), default=0.0)


def explain(postponed: Mapping[str, str], excuses: Sequence[tuple[str, Collection[str]]]) -> tuple[list[str], str]:
    """Put the messages that were put off to the excuses that a case has for them.

    Args:
        postponed: why, as the product says, by id.
        excuses: why they may be, and whom it is about.

    Returns:
        what the report says of those that are explained, and the problem that the others are ('' for none).
    """
    left = dict(postponed)
    notes = []
    for because, ids in excuses:
        if explained := left.keys() & set(ids):
            notes.append(f"{len(explained)} put off: {because}")
            left = {i: reason for i, reason in left.items() if i not in explained}
    if not left:
        return notes, ""
    return notes, f"{len(left)} were put off, and nothing explains it: {', '.join(sorted(set(left.values())))}"
