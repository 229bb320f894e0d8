"""What was written down in a case: by callers, by providers, and by the product itself."""

from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from tenants.models import Tenant
from tests.faults import ledger
from tests.faults.ledger import Accepted, Order, Receipt
from tests.faults.processes import Provider

NEAR_SECONDS = 2.0
"""What is due so soon counts as due."""
HELD = "EXISTS (SELECT FROM dispatch_lane AS lane WHERE lane.id = lane_id AND lane.not_before > now())"
NOW = f"(due_at <= now() + interval '{NEAR_SECONDS} seconds' AND NOT {HELD} OR lease_until IS NOT NULL)"
LATER = f"(due_at > now() OR {HELD})"
OURS = "FROM dispatch_ledgerrow WHERE tenant_id = ANY(%s)"


class Books:
    """Reads only. Each statement has a connection of its own, so that no restart of the server breaks one."""

    def __init__(self, sql: Callable[..., list[tuple[Any, ...]]]) -> None:
        self.sql = sql
        self.tenants: list[Tenant] = []
        self.providers: list[Provider] = []
        self.orders: list[Order] = []
        self.notes: list[Path] = []

    def receipts(self) -> list[Receipt]:
        """What all providers were given so far."""
        return ledger.read_receipts(provider.receipts for provider in self.providers)

    def attempts(self) -> int:
        """How many receipts there are."""
        return sum(provider.attempts() for provider in self.providers)

    def accepted(self) -> dict[str, Accepted]:
        """What was noted of each order."""
        return ledger.read_accepted(self.notes)

    def ids(self, orders: Iterable[Order]) -> set[str]:
        """The ids of the messages that were accepted for these orders."""
        accepted = self.accepted()
        return {i for order in orders for i in accepted.get(order.key, Accepted()).ids}

    def told(self) -> set[str]:
        """The ids of those whose provider was told to make trouble."""
        return self.ids(order for order in self.orders if order.scripted)

    def statuses(self) -> dict[str, str]:
        """What the product says of each message, by id."""
        return self.messages("status")

    def status(self, order: Order) -> str:
        """What the product says of one message; '' when it is not there."""
        return self.statuses().get(next(iter(self.ids([order])), ""), "")

    def messages(self, column: str) -> dict[str, Any]:
        """A column of the message table, by id."""
        found: dict[str, Any] = {}
        for tenant in self.tenants:
            found.update(dict(self.sql(f'SELECT id::text, {column} FROM "{tenant.schema_name}".notifications')))
        return found

    @property
    def _keys_of_tenants(self) -> list[int]:
        return [tenant.pk for tenant in self.tenants]

    def left(self) -> int:
        """How many of the tenants' messages are on the ledger."""
        return int(self.sql(f"SELECT count(*) {OURS}", self._keys_of_tenants)[0][0])

    def left_now(self) -> int:
        """How many of them are due, or claimed."""
        return int(self.sql(f"SELECT count(*) {OURS} AND {NOW}", self._keys_of_tenants)[0][0])

    def waiting(self) -> set[str]:
        """The ids of those that wait for their time."""
        return {row[0] for row in self.sql(f"SELECT item::text {OURS} AND {LATER}", self._keys_of_tenants)}

    def due_times(self) -> dict[str, float]:
        """When each that is left is due (Unix), by id: not before its lane is."""
        rows = self.sql(
            f"SELECT item::text, greatest(due_at, (SELECT not_before FROM dispatch_lane WHERE id = lane_id)) {OURS}",
            self._keys_of_tenants,
        )
        return {item: _unix(due_at) for item, due_at in rows}

    def earliest(self) -> float:
        """How long after its time the earliest planned message came, in seconds; negative when it was early."""
        due = {i: entry.due for entry in self.accepted().values() for i in entry.ids if entry.due}
        return min((receipt.at - due[receipt.id] for receipt in self.receipts() if receipt.id in due), default=0.0)

    def longest_call(self) -> float:
        """How long the slowest call took, in seconds."""
        return max((entry.longest for entry in self.accepted().values()), default=0.0)

    def refusals(self) -> list[str]:
        """Why calls did not succeed, each order's last."""
        return [entry.refused for entry in self.accepted().values() if entry.refused]


def _unix(moment: datetime) -> float:
    return moment.timestamp()
