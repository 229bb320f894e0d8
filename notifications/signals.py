"""What the engine tells whoever wants to know; it goes on by itself either way."""

from django.dispatch import Signal

credentials_refused = Signal()
"""A provider refused an account's credentials; sent after the commit that holds the account.

It comes with `account`, its `scope` and the `reason`, in the schema of the tenant whose messages were to leave.
"""
