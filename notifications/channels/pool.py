"""Kept-open connections, lent to one thread at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, LifoQueue
from typing import Protocol


class Closable(Protocol):
    """What a pool can hold: something that opens by itself and can be closed any number of times."""

    def close(self) -> None: ...


class Pool[Item: Closable]:
    """At most `size` items; the last one used is lent first, so that few stay warm under a light load."""

    def __init__(self, make: Callable[[], Item], size: int) -> None:
        self._closed = False
        self._idle: LifoQueue[Item] = LifoQueue()
        for _ in range(size):
            self._idle.put(make())

    @contextmanager
    def lend(self) -> Iterator[Item]:
        """Lend one item, waiting for one to come back when all are lent."""
        item = self._idle.get()
        try:
            yield item
        finally:
            if self._closed:
                item.close()
            self._idle.put(item)

    def close(self) -> None:
        """Close the idle items now and the lent ones as they come back."""
        self._closed = True
        idle = []
        try:
            while True:
                idle.append(self._idle.get_nowait())
        except Empty:
            pass
        for item in idle:
            item.close()
            self._idle.put(item)
