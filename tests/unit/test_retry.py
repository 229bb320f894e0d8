from datetime import timedelta

import pytest

from notifications.retry import delay_before


@pytest.mark.parametrize(
    ("attempt", "delays", "seconds"),
    [
        (1, [60, 300], 60),
        (2, [60, 300], 300),
        # the last delay repeats
        (3, [60, 300], 300),
        (50, [60, 300], 300),
        # no delays: at once
        (1, [], 0),
        (1, [0], 0),
    ],
)
def test_the_wait_after_each_attempt(attempt, delays, seconds):
    assert delay_before(attempt, delays) == timedelta(seconds=seconds)
