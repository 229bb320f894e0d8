"""Whether a message may go, as a table."""

from datetime import UTC, datetime, timedelta

import pytest

from notifications.models import NotificationPreference
from notifications.preferences import Drop, Send, decide

NOW = datetime(2030, 1, 1, tzinfo=UTC)
EXPIRED = Drop("expired", expired=True)


def yes(category: str, channel: str) -> bool:
    return True


def no(category: str, channel: str) -> bool:
    return False


@pytest.mark.parametrize(
    ("changes", "decision"),
    [
        ({}, Send()),
        # expiry goes before everything
        ({"expires_at": NOW}, EXPIRED),
        ({"expires_at": NOW - timedelta(seconds=1), "security": True}, EXPIRED),
        ({"expires_at": NOW, "suppressed": "manual"}, EXPIRED),
        ({"expires_at": NOW + timedelta(microseconds=1)}, Send()),
        # a suppressed address gets nothing …
        ({"suppressed": "manual"}, Drop("address is suppressed: manual")),
        ({"suppressed": "unsubscribed"}, Drop("address is suppressed: unsubscribed")),
        ({"suppressed": ""}, Drop("address is suppressed: ")),
        # … but a code for somebody who only opted out
        ({"suppressed": "unsubscribed", "security": True}, Send()),
        ({"suppressed": "hard_bounce", "security": True}, Drop("address is suppressed: hard_bounce")),
        ({"suppressed": "complaint", "security": True}, Drop("address is suppressed: complaint")),
        # switches
        ({"allows": no}, Drop("recipient switched off booking by sms")),
        ({"allows": no, "security": True}, Send()),
        ({"allows": lambda category, channel: (category, channel) == ("booking", "sms")}, Send()),
    ],
)
def test_a_message_goes_or_is_dropped_with_the_reason(changes, decision):
    usual = {
        "now": NOW,
        "expires_at": NOW + timedelta(days=1),
        "category": "booking",
        "channel": "sms",
        "security": False,
        "suppressed": None,
        "allows": yes,
    }
    assert decide(**{**usual, **changes}) == decision


@pytest.mark.parametrize(
    ("switches", "allowed"),
    [
        ({}, True),
        ({"booking": {"sms": False}}, False),
        ({"booking": {"email": False}}, True),
        ({"booking": False}, False),
        ({"*": {"sms": False}}, False),
        ({"*": False}, False),
        # what names the category goes before what names all
        ({"booking": {"sms": True}, "*": False}, True),
        ({"booking": True, "*": {"sms": False}}, True),
        # what says nothing of the channel leaves it to what names all
        ({"booking": {"email": False}, "*": {"sms": False}}, False),
        # what is no switch switches nothing
        ({"booking": None}, True),
        ({"booking": "off"}, True),
    ],
)
def test_switches_are_read_by_category_and_channel(switches, allowed):
    assert NotificationPreference(switches=switches).allows("booking", "sms") is allowed
