"""A sender's limit holds over every sliding window, whatever the hand-overs do."""

from collections import Counter
from uuid import uuid4

from hypothesis import given, settings
from hypothesis import strategies as st

from notifications.dispatch.limiter import BUCKETS, Limit, counting, frees_at, grant, settle

LEASE = 60.0

steps = st.lists(
    st.tuples(
        st.floats(0, 8, allow_nan=False),  # seconds until the next chunk
        st.integers(1, 40),  # hand-overs wanted
        st.lists(st.floats(0, 5, allow_nan=False), min_size=40, max_size=40),  # how long each takes
        st.booleans(),  # whether the worker dies before it settles
    ),
    max_size=60,
)


def limit_of(most: int, seconds: float) -> Limit:
    return Limit(owner=1, outbox=uuid4(), most=most, seconds=seconds)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(steps, st.integers(1, 50), st.sampled_from([1.0, 10.0, 60.0]), st.floats(0, 1))
def test_no_window_at_the_provider_ever_holds_more(steps, most, seconds, seen_at) -> None:
    limit = limit_of(most, seconds)
    ends: dict[int, int] = {}
    now = 1_800_000_000.0
    seen: list[float] = []
    open_chunks: list[tuple[float, int, list[float]]] = []
    for pause, wanted, durations, dies in steps:
        now += pause
        for settled_at, bucket, ended in [chunk for chunk in open_chunks if chunk[0] <= now]:
            ends = settle(ends, limit, bucket=bucket, ended=ended, unused=0, now=settled_at)
            open_chunks.remove((settled_at, bucket, ended))
        ends, granted = grant(ends, limit, wanted=wanted, now=now, lease=LEASE)
        took = durations[: granted.permits]
        # The provider counts a message at some moment between its grant and its end.
        seen += [now + duration * seen_at for duration in took]
        if granted.permits and not dies:
            open_chunks.append((now + max(took), granted.bucket, [now + duration for duration in took]))
    for first in seen:
        assert sum(first <= moment < first + seconds for moment in seen) <= most


def test_permits_of_a_worker_that_died_count_until_a_window_after_its_lease() -> None:
    limit = limit_of(5, 10)
    ends, granted = grant({}, limit, wanted=5, now=1000.0, lease=LEASE)
    assert granted.permits == 5
    assert grant(ends, limit, wanted=1, now=1000.0 + LEASE + 9.9, lease=LEASE)[1].permits == 0
    assert grant(ends, limit, wanted=1, now=1000.0 + LEASE + 10.2, lease=LEASE)[1].permits == 1


def test_a_refused_grant_says_when_a_permit_frees_and_then_it_does() -> None:
    limit = limit_of(2, 10)
    ends, granted = grant({}, limit, wanted=2, now=1000.0, lease=LEASE)
    ends = settle(ends, limit, bucket=granted.bucket, ended=[1001.0, 1004.0], unused=0, now=1004.0)
    ends, refused = grant(ends, limit, wanted=1, now=1005.0, lease=LEASE)
    assert refused.permits == 0
    assert refused.retry_at is not None
    assert 1011.0 <= refused.retry_at.timestamp() <= 1011.0 + 2 * 10 / BUCKETS
    assert grant(ends, limit, wanted=1, now=refused.retry_at.timestamp(), lease=LEASE)[1].permits == 1


def test_unused_permits_go_back_at_once() -> None:
    limit = limit_of(10, 3600)
    ends, granted = grant({}, limit, wanted=10, now=1000.0, lease=LEASE)
    ends = settle(ends, limit, bucket=granted.bucket, ended=[1000.5] * 4, unused=6, now=1001.0)
    assert grant(ends, limit, wanted=10, now=1001.0, lease=LEASE)[1].permits == 6


def test_at_full_speed_at_most_a_fiftieth_is_left_unused() -> None:
    limit, now, sent = limit_of(100, 10), 1000.0, 0
    ends: dict[int, int] = {}
    while now < 1000.0 + 600:
        ends, granted = grant(ends, limit, wanted=100, now=now, lease=LEASE)
        sent += granted.permits
        if granted.permits:
            ends = settle(ends, limit, bucket=granted.bucket, ended=[now] * granted.permits, unused=0, now=now)
        now = granted.retry_at.timestamp() if granted.retry_at else now + 0.01
    assert sent >= 0.98 * 100 * 600 / 10


def test_what_is_kept_is_bounded_whatever_the_limit() -> None:
    limit, ends = limit_of(1_000_000, 3600), Counter[int]()
    kept: dict[int, int] = dict(ends)
    for second in range(7200):
        kept, granted = grant(kept, limit, wanted=200, now=1000.0 + second, lease=LEASE)
        kept = settle(
            kept, limit, bucket=granted.bucket, ended=[1000.0 + second] * granted.permits, unused=0, now=1000.0 + second
        )
    assert len(kept) <= BUCKETS + 3


def test_an_old_bucket_counts_until_its_last_permit_is_a_window_old() -> None:
    bucket = 100
    assert counting({bucket: 3}, frees_at(bucket, 10) - 0.001, 10) == {bucket: 3}
    assert counting({bucket: 3}, frees_at(bucket, 10), 10) == {}
