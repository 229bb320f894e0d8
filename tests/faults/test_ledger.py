"""The checker that joins the ledgers: it must see each kind of wrong, or a clean report means nothing."""

from dataclasses import replace
from typing import Any

import pytest

from tests.faults.ledger import Accepted, Order, Receipt, Verdict, check

ORDER = Order(key="a", tenant="acme", schema="t_acme", to="a@example.com", subject="Hi", text="Hello")
TAKEN = Receipt(seq=1, at=101.0, to=ORDER.to, sender="s@acme.test", id="id-a", sha=ORDER.sha, taken=True, answer="250")
STORED = Accepted(begun=True, ids={"id-a"}, at=100.0)


def judged(*receipts: Receipt, order: Order = ORDER, status: str = "sent", **options: Any) -> Verdict:
    """What the checker says of one order."""
    entry = options.pop("entry", STORED)
    return check([order], {"a": entry}, receipts, {"id-a": status}, **options)


def test_what_came_once_and_as_accepted_is_well() -> None:
    verdict = judged(TAKEN)
    assert verdict.problems == []
    assert (verdict.accepted, verdict.handed_over, verdict.lost, verdict.duplicated) == (1, 1, 0, 0)


@pytest.mark.parametrize("status", ["scheduled", "uncertain", "failed", ""])
def test_what_was_accepted_and_never_came_is_lost_whatever_the_product_says(status: str) -> None:
    verdict = judged(status=status)
    assert verdict.lost == 1
    assert verdict.problems == [f"lost: a, which is {status or 'gone'}"]


def test_what_was_refused_by_the_provider_has_not_come() -> None:
    assert judged(replace(TAKEN, taken=False, answer="450"), status="scheduled").lost == 1


def test_what_was_never_accepted_is_not_lost_and_yet_is_told() -> None:
    verdict = judged(entry=Accepted(begun=True, refused="away"), status="")
    assert (verdict.accepted, verdict.lost, verdict.problems) == (0, 0, ["never accepted: a, away"])


def test_a_second_copy_needs_a_death_that_explains_it() -> None:
    again = replace(TAKEN, seq=2, at=102.0)
    assert judged(TAKEN, again).problems == ["a came 2 times, and was not in doubt"]
    explained = judged(TAKEN, again, in_doubt={"id-a"})
    assert (explained.duplicated, explained.problems) == (1, [])


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"sender": "s@globex.test"}, "wrong tenant: a came from s@globex.test"),
        ({"sha": "another"}, "wrong content: a"),
        ({"id": "id-b"}, "a came as id-b, and was accepted as id-a"),
        ({"to": "b@example.com"}, "b@example.com was given a message that nobody asked for"),
    ],
)
def test_what_came_otherwise_than_it_was_accepted_is_told(changed: dict[str, Any], problem: str) -> None:
    assert problem in judged(replace(TAKEN, **changed)).problems


def test_a_second_copy_under_another_reference_is_told() -> None:
    other = replace(TAKEN, seq=2, id="id-c")
    problems = judged(TAKEN, other, in_doubt={"id-a"}).problems
    assert "a came under more than one Message-ID or reference" in problems


def test_one_key_is_one_message() -> None:
    twice = Accepted(begun=True, ids={"id-a", "id-b"}, at=100.0)
    assert "a was accepted as 2 messages under one key" in judged(TAKEN, entry=twice).problems


def test_what_the_product_says_is_compared_with_what_is_so() -> None:
    assert "a is failed, and the provider has it" in judged(TAKEN, status="failed").problems
    assert "a is sent, and no provider has it" in judged(status="sent").problems


def test_what_was_to_fail_and_was_taken_is_told() -> None:
    order = replace(ORDER, expected="failed")
    assert "a was taken, and was to be failed" in judged(TAKEN, order=order).problems
    assert judged(order=order, status="failed").problems == []


def test_what_was_to_be_suppressed_neither_fails_nor_is_taken() -> None:
    order = replace(ORDER, expected="suppressed")
    assert judged(order=order, status="suppressed").problems == []
    assert judged(order=order, status="failed").lost == 1
    assert "a is suppressed, and the provider has it" in judged(TAKEN, order=order, status="suppressed").problems
    assert judged(status="suppressed").lost == 1


def test_of_two_messages_to_one_recipient_each_is_known_by_its_id() -> None:
    second = replace(ORDER, key="b", expected="suppressed", subject="Again")
    accepted = {"a": STORED, "b": Accepted(begun=True, ids={"id-b"}, at=100.0)}
    statuses = {"id-a": "sent", "id-b": "suppressed"}
    assert check([ORDER, second], accepted, [TAKEN], statuses).problems == []
    came = replace(TAKEN, id="id-b", sha=second.sha)
    assert "b was taken, and was to be suppressed" in check([ORDER, second], accepted, [TAKEN, came], statuses).problems


@pytest.mark.parametrize(("due", "late"), [(0.0, 1), (190.0, 0)])
def test_what_came_long_after_its_time_is_late(due: float, late: int) -> None:
    verdict = judged(replace(TAKEN, at=200.0), entry=replace(STORED, due=due), late_after=90.0)
    assert verdict.late == late
    assert bool(verdict.problems) == bool(late)
