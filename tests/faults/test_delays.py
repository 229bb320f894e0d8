"""What is said of delays: a message that waits, or is put off, must not look as if it had come."""

import pytest

from tests.faults.delays import explain, resumed_after, turns_after
from tests.faults.ledger import Receipt


def receipt(message: str, at: float, *, taken: bool = True) -> Receipt:
    """What a provider noted of a message."""
    return Receipt(seq=1, at=at, to=message, sender="s", id=message, sha="", taken=taken, answer="")


def test_the_last_of_the_pending_tells_how_long_it_took() -> None:
    came = [receipt("a", 103.0), receipt("b", 107.0), receipt("not pending", 150.0)]
    assert resumed_after(100.0, {"a", "b"}, came, {}) == 7.0


def test_a_second_copy_does_not_make_it_longer() -> None:
    assert resumed_after(100.0, {"a"}, [receipt("a", 103.0), receipt("a", 130.0)], {}) == 3.0


def test_what_was_put_off_counts_with_the_time_that_it_waits_for() -> None:
    refused = receipt("b", 104.0, taken=False)
    assert resumed_after(100.0, {"a", "b"}, [receipt("a", 103.0), refused], {"b": 700.0}) == 600.0


def test_nothing_pending_is_no_delay() -> None:
    assert resumed_after(100.0, set(), [receipt("a", 103.0)], {}) == 0.0


def test_a_tenant_has_its_turn_with_its_first_message_after_the_fault() -> None:
    came = [receipt("a", 90.0), receipt("b", 105.0), receipt("c", 104.0), receipt("d", 130.0)]
    assert turns_after(100.0, [{"a", "b"}, {"c", "d"}], came) == 5.0
    assert turns_after(100.0, [{"a"}, set()], came) == 0.0


@pytest.mark.parametrize(
    ("excused", "notes", "problem"),
    [
        ([], [], "2 were put off, and nothing explains it: not begun, throttled"),
        ([("its account is held", {"a", "z"})], ["1 put off: its account is held"], "1 were put off, and nothing"),
        ([("it is down", {"a", "b"}), ("twice", {"a"})], ["2 put off: it is down"], ""),
    ],
)
def test_what_is_put_off_needs_an_excuse(excused: list[tuple[str, set[str]]], notes: list[str], problem: str) -> None:
    said, found = explain({"a": "throttled", "b": "not begun"}, excused)
    assert said == notes
    assert found.startswith(problem)
    assert bool(found) == bool(problem)
