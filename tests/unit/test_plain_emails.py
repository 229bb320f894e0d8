"""The short way to clean an address gives what the long way gives, or says nothing."""

import string
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from notifications.channels.addresses import InvalidAddress, clean_email
from notifications.channels.plain_emails import PlainEmails

TYPED = string.ascii_letters + string.digits + "._+-'!%=?\"@ \t\n\x00ü·。"
LABELS = [
    "example",
    "EXAMPLE",
    "com",
    "test",
    "invalid",
    "localhost",
    "local",
    "xn--mnchen-3ya",
    "xn--0",
    "a-",
    "-a",
    "1",
]
LABELS += ["ab--cd", "a_b", "", "münchen", "x" * 63, "x" * 64]
LOCALS = (
    st.text("aB1._+-%!'=?ü", max_size=5)
    | st.text(TYPED, max_size=12)
    | st.sampled_from(["a" * 64, "a" * 65, "postmaster", "a..b", ".a", "a.", "-", "+"])
)
DOMAINS = st.lists(st.sampled_from(LABELS) | st.text(TYPED, max_size=5), max_size=6).map(".".join)


@pytest.mark.parametrize(
    ("typed", "cleaned"),
    [
        ("ada@example.com", "ada@example.com"),
        ("Ada.Lovelace+x@Example.COM", "Ada.Lovelace+x@example.com"),
        ("a_b-c@xn--mnchen-3ya.de", "a_b-c@xn--mnchen-3ya.de"),
    ],
)
def test_the_common_form_goes_the_short_way(typed, cleaned):
    assert PlainEmails().clean(typed) == cleaned


@settings(max_examples=3_000, derandomize=True, deadline=None, database=None)
@given(st.builds("{}@{}".format, LOCALS, st.just("example.com") | DOMAINS) | st.text(TYPED, max_size=40))
@example("ada@example.com\n")
@example("ada@example.com.")
@example("ada@mail.invalid")
@example(f"{'a' * 64}@{'.'.join(['x' * 60] * 3)}.com")
@example(f"ada@{'.'.join(['x' * 60] * 3)}")
def test_both_ways_agree_on_whatever_is_typed(typed):
    emails = PlainEmails()
    for _ in range(2):
        if (short := emails.clean(typed)) is not None:
            assert clean_email(typed) == short


def test_a_domain_that_cannot_be_used_is_refused_each_time():
    emails = PlainEmails()
    for _ in range(2):
        assert emails.clean("ada@mail.invalid") is None
        with suppress(InvalidAddress):
            clean_email("ada@mail.invalid")
            pytest.fail("accepted")
