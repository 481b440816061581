"""Queue items fairly: round-robin over clients, so that no client delays the others."""

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Queue items by client; at most `share` of a client run at once. Not thread-safe."""

    def __init__(self, share: int) -> None:
        self._share = share
        self._queued: OrderedDict[Hashable, deque[T]] = OrderedDict()  # The next client first.
        self._running: dict[Hashable, int] = {}

    def add(self, client: Hashable, item: T) -> None:
        self._queued.setdefault(client, deque()).append(item)

    def next(self) -> T | None:
        """Take the next item to run; None if no queued item may run."""
        for client, items in self._queued.items():
            if self.start(client):
                item = items.popleft()
                self._queued.move_to_end(client)
                if not items:
                    del self._queued[client]
                return item
        return None

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of running and of queued items."""
        return {
            "running": sum(self._running.values()),
            "queued": sum(map(len, self._queued.values())),
        }

    def start(self, client: Hashable) -> bool:
        """Count one running item more; False if the client has its share."""
        running = self._running.get(client, 0)
        if running < self._share:
            self._running[client] = running + 1
        return running < self._share

    def finish(self, client: Hashable) -> None:
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]

    def remove(self, client: Hashable, item: T) -> bool:
        """Take an item out of the queue; False if it is not queued."""
        items = self._queued.get(client)
        if items is None or item not in items:
            return False
        items.remove(item)
        if not items:
            del self._queued[client]
        return True
