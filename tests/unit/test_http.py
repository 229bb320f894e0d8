"""The one meaning of each HTTP answer, and how long Retry-After asks to wait."""

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifications.channels import Failure, InvalidSettings, Rejected, Unavailable, Uncertain
from notifications.channels.http import Answer, failure_of, read_seconds, retry_after

NOW = datetime(2026, 10, 25, 0, 59, 30, tzinfo=UTC)


# Retry-After (RFC 9110, 10.2.3)


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("120", timedelta(seconds=120)),
        (" 120 ", timedelta(seconds=120)),
        ("0", timedelta()),
        ("00120", timedelta(seconds=120)),
        ("86400", timedelta(days=1)),
        ("86401", timedelta(days=1)),
        ("999999999", timedelta(days=1)),
        ("9" * 5000, timedelta(days=1)),
        ("Sun, 25 Oct 2026 01:01:30 GMT", timedelta(seconds=120)),
        ("Sunday, 25-Oct-26 01:01:30 GMT", timedelta(seconds=120)),
        ("Sun Oct 25 01:01:30 2026", timedelta(seconds=120)),
        ("Sun, 25 Oct 2026 03:01:30 +0200", timedelta(seconds=120)),
        ("Sun, 25 Oct 2026 00:59:30 GMT", timedelta()),
        ("Sun, 06 Nov 1994 08:49:37 GMT", timedelta()),
        ("Fri, 25 Oct 2126 00:59:30 GMT", timedelta(days=1)),
        ("", None),
        ("soon", None),
        ("-120", None),
        ("+120", None),
        ("12.5", None),
        ("1e3", None),
        ("120, 240", None),
        ("١٢٠", None),
        ("²", None),
        ("Sun, 31 Feb 2026 01:01:30 GMT", None),
        ("Sun, 25 Oct 99999 01:01:30 GMT", None),
        ("Sun, 25 Oct 2026 01:01:30 +99999999999999999999", None),
        ("9999 Oct 01:01:30 9999 99999999999999999999 + GMT", None),
        ("\x00", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_never_more_than_a_day(header, wait):
    assert retry_after(header, NOW) == wait


@given(st.text())
def test_no_header_is_too_strange_to_be_read(header):
    wait = retry_after(header, NOW)
    assert wait is None or timedelta() <= wait <= timedelta(days=1)


@given(st.integers(0, 86400))
def test_seconds_and_the_date_they_lead_to_are_the_same_wait(seconds):
    date = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert retry_after(str(seconds), NOW) == retry_after(date, NOW) == timedelta(seconds=seconds)


def test_a_date_that_names_no_zone_is_in_gmt_wherever_we_are(monkeypatch):
    monkeypatch.setenv("TZ", "UTC-3:30")
    time.tzset()
    try:
        assert retry_after("Sun Oct 25 01:01:30 2026", NOW) == timedelta(seconds=120)
    finally:
        monkeypatch.undo()
        time.tzset()


# Statuses


def kind(answer: Answer, **options) -> tuple[type[Failure] | None, str]:
    failure = failure_of(answer, **options)
    return (type(failure), failure.error_class) if failure else (None, "")


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 299])
def test_every_2xx_is_acceptance(status):
    assert failure_of(Answer(status)) is None


@pytest.mark.parametrize(
    ("status", "outcome", "error_class"),
    [
        (101, Uncertain, "transient"),
        (199, Uncertain, "transient"),
        (301, Rejected, "permanent"),
        (304, Rejected, "permanent"),
        (307, Rejected, "permanent"),
        (400, Rejected, "permanent"),
        (402, Rejected, "permanent"),
        (403, Rejected, "auth"),
        (404, Rejected, "invalid_recipient"),
        (405, Rejected, "permanent"),
        (408, Unavailable, "transient"),
        (409, Uncertain, "transient"),
        (410, Rejected, "invalid_recipient"),
        (413, Rejected, "permanent"),
        (418, Rejected, "permanent"),
        (421, Unavailable, "transient"),
        (422, Rejected, "permanent"),
        (425, Unavailable, "transient"),
        (429, Unavailable, "throttled"),
        (499, Rejected, "permanent"),
        (500, Uncertain, "transient"),
        (501, Uncertain, "transient"),
        (502, Uncertain, "transient"),
        (503, Uncertain, "transient"),
        (504, Uncertain, "transient"),
        (599, Uncertain, "transient"),
        (600, Uncertain, "transient"),
        (999, Uncertain, "transient"),
    ],
)
@pytest.mark.parametrize("account_wide", [True, False])
def test_each_status_has_one_meaning(status, outcome, error_class, account_wide):
    assert kind(Answer(status), account_wide=account_wide) == (outcome, error_class)


@pytest.mark.parametrize("status", [401, 407])
def test_a_key_that_is_refused_holds_the_account_only_where_the_key_is_the_accounts(status):
    assert kind(Answer(status), account_wide=True) == (Unavailable, "auth")
    assert kind(Answer(status), account_wide=False) == (Rejected, "auth")


@pytest.mark.parametrize("account_wide", [True, False])
def test_a_429_holds_the_account_for_as_long_as_it_says(account_wide):
    failure = failure_of(Answer(429, {"retry-after": "120"}), account_wide=account_wide)
    assert isinstance(failure, Unavailable)
    assert (failure.account_wide, failure.retry_after) == (True, timedelta(seconds=120))


@pytest.mark.parametrize("header", ["120", format_datetime(NOW + timedelta(seconds=120), usegmt=True)])
@pytest.mark.parametrize("account_wide", [True, False])
def test_a_503_with_a_time_was_not_processed(header, account_wide):
    failure = failure_of(Answer(503, {"retry-after": header}), account_wide=account_wide, now=NOW)
    assert isinstance(failure, Unavailable)
    assert (failure.error_class, failure.account_wide) == ("transient", account_wide)
    assert failure.retry_after == timedelta(seconds=120)


def test_a_date_goes_by_the_clock_of_who_gives_it():
    theirs = NOW + timedelta(hours=5)
    headers = {"date": format_datetime(theirs), "retry-after": format_datetime(theirs + timedelta(seconds=90))}
    failure = failure_of(Answer(429, headers))
    assert isinstance(failure, Unavailable)
    assert failure.retry_after == timedelta(seconds=90)


def test_a_503_with_a_time_nobody_can_read_may_have_been_processed():
    assert kind(Answer(503, {"retry-after": "soon"})) == (Uncertain, "transient")


@given(st.integers(0, 9999), st.booleans(), st.text())
def test_any_status_has_a_meaning_that_gives_nothing_away(status, account_wide, header):
    failure = failure_of(Answer(status, {"retry-after": header}, b"from inside"), account_wide=account_wide)
    if failure is None:
        assert 200 <= status < 300
    else:
        assert failure.code == str(status)
        assert str(failure).startswith(f"The address answered {status}")
        assert str(failure).isprintable()
        assert "inside" not in str(failure)


def test_a_redirect_is_told_not_to_be_followed():
    failure = failure_of(Answer(302, {"location": "https://elsewhere.example/"}))
    assert str(failure) == ("The address answered 302 Found. Redirects are not followed: give the final address.")


def test_an_answer_shows_its_status_and_no_more():
    answer = Answer(200, {"x-inside": "10.0.0.7"}, b"from inside")
    assert str(answer) == "200 OK"
    assert "inside" not in repr(answer)
    assert str(Answer(299)) == "299"


# Time-outs


@pytest.mark.parametrize("seconds", [0, -1, 61, True, "5", None, float("nan"), float("inf")])
def test_a_time_out_that_cannot_be_used_is_named(seconds):
    with pytest.raises(InvalidSettings) as raised:
        read_seconds({"timeout": seconds}, "timeout", 5.0)
    assert raised.value.field == "timeout"


def test_a_time_out_may_be_left_out():
    assert read_seconds({}, "timeout", 5.0) == 5.0
    assert read_seconds({"timeout": 60}, "timeout", 5.0) == 60.0
