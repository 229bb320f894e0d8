"""Channels: plain values in, outcomes out. Knows no models, no tenants and nothing else of the service."""

from notifications.channels.addresses import InvalidAddress, clean_display_name, clean_email, clean_phone, display
from notifications.channels.base import (
    Accepted,
    Adapter,
    ErrorClass,
    Failure,
    InvalidSettings,
    Networks,
    Outgoing,
    Rejected,
    Settings,
    Unavailable,
    Uncertain,
)
from notifications.channels.headers import InvalidHeader, check_attachment_name, check_header, check_headers
from notifications.channels.network import ForbiddenAddress
from notifications.channels.registry import ADAPTERS, UnknownProvider, adapter_class, build

__all__ = [
    "ADAPTERS",
    "Accepted",
    "Adapter",
    "ErrorClass",
    "Failure",
    "ForbiddenAddress",
    "InvalidAddress",
    "InvalidHeader",
    "InvalidSettings",
    "Networks",
    "Outgoing",
    "Rejected",
    "Settings",
    "Unavailable",
    "Uncertain",
    "UnknownProvider",
    "adapter_class",
    "build",
    "check_attachment_name",
    "check_header",
    "check_headers",
    "clean_display_name",
    "clean_email",
    "clean_phone",
    "display",
]
