"""Statements that are sent without waiting for each one's answer."""

import pytest
from django.db import IntegrityError, transaction

from notifications.models import Suppression
from tenants.connection import connection, one_trip


def test_what_went_wrong_with_a_statement_that_nobody_read_is_djangos_error_at_the_end(in_acme):
    """Who keeps answers until the database takes them knows Django's errors only."""
    Suppression.objects.create(channel="email", address="ada@example.com", reason="manual")
    with pytest.raises(IntegrityError), transaction.atomic(), one_trip(), connection.cursor() as cursor:
        cursor.execute("INSERT INTO notifications_suppression SELECT * FROM notifications_suppression")
    assert Suppression.objects.count() == 1
