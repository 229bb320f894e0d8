"""`migrate` is `migrate_schemas`: nobody should migrate public and leave the tenants behind."""

from tenants.management.commands.migrate_schemas import Command

__all__ = ["Command"]
