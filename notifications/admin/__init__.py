"""The admin: one site for a tenant's own people, one for the platform's operators."""

from notifications.admin import accounts, audit, messages, people, platform, recipients, templates
from notifications.admin.sites import platform_site, tenant_site

__all__ = [
    "accounts",
    "audit",
    "messages",
    "people",
    "platform",
    "platform_site",
    "recipients",
    "templates",
    "tenant_site",
]
