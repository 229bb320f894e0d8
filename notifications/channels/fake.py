"""A scriptable adapter for tests: it remembers what it got and answers as told."""

import threading
from collections import defaultdict, deque
from collections.abc import Callable

from notifications.channels.base import Accepted, Adapter, Failure, Networks, Outgoing, Settings

type Outcome = Accepted | Failure | Callable[[Outgoing], Accepted]


class Fake(Adapter):
    """Accepts everything, except where a recipient's script says otherwise."""

    provider = "fake"

    def __init__(
        self, settings: Settings | None = None, *, allowed_networks: Networks = (), connections: int = 8
    ) -> None:
        self.settings = dict(settings or {})
        self.allowed_networks = allowed_networks
        self.connections = connections
        self.received: list[Outgoing] = []
        self.accepted: list[Outgoing] = []
        self.most_at_once = 0
        self.closed = 0
        self._at_once = 0
        self._scripts: dict[str, deque[Outcome]] = defaultdict(deque)
        self._known: dict[str, Accepted | Failure | None] = {}
        self._lock = threading.Lock()

    @classmethod
    def check_settings(cls, settings: Settings) -> None:
        """Accept anything."""

    def script(self, to: str, *outcomes: Outcome) -> None:
        """Append what the next sends to a recipient end in; after the last, messages are accepted.

        A function is called with the message, outside the lock: it may wait, raise or accept.
        """
        with self._lock:
            self._scripts[to].extend(outcomes)

    def know(self, to: str, answer: Accepted | Failure | None) -> None:
        """Let the provider be asked, and say what it answers about a recipient's messages."""
        self.can_look_up = True  # type: ignore[misc]
        self._known[to] = answer

    def look_up(self, message: Outgoing) -> Accepted | None:
        """Answer as told."""
        answer = self._known[message.to]
        if isinstance(answer, Failure):
            raise answer
        return answer

    def send(self, message: Outgoing) -> Accepted:
        """Record the message and play the recipient's next outcome."""
        with self._lock:
            self.received.append(message)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            script = self._scripts[message.to]
            outcome = script.popleft() if script else Accepted(provider_id=f"fake-{message.reference}")
        try:
            if isinstance(outcome, Failure):
                raise outcome
            accepted = outcome if isinstance(outcome, Accepted) else outcome(message)
        finally:
            with self._lock:
                self._at_once -= 1
        with self._lock:
            self.accepted.append(message)
        return accepted

    def close(self) -> None:
        """Count the closings."""
        with self._lock:
            self.closed += 1
