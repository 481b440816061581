"""A queue in which callers take turns: the calls of one do not lengthen the wait of another."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Items that wait, each for its caller; no more than `share` of a caller are out at once.

    Not safe for threads: its user has a lock.
    """

    def __init__(self, share: int) -> None:
        self._share = share
        self._waiting: OrderedDict[Hashable, deque[T]] = OrderedDict()  # The next caller first.
        self._out: Counter[Hashable] = Counter()

    def add(self, caller: Hashable, item: T) -> None:
        """The item waits for a turn of its caller."""
        self._waiting.setdefault(caller, deque()).append(item)

    def next(self) -> T | None:
        """Takes an item out; None when none waits whose caller may have one more out."""
        for caller, items in self._waiting.items():
            if self._out[caller] < self._share:
                item = items.popleft()
                self._out[caller] += 1
                self._waiting.move_to_end(caller)
                if not items:
                    del self._waiting[caller]
                return item
        return None

    @property
    def counts(self) -> dict[str, int]:
        """How many items are out, and how many wait."""
        return {"running": self._out.total(), "queued": sum(map(len, self._waiting.values()))}

    def take(self, caller: Hashable) -> bool:
        """Counts an item as out that did not wait; False when its caller has its share."""
        if self._out[caller] >= self._share:
            return False
        self._out[caller] += 1
        return True

    def done(self, caller: Hashable) -> None:
        """An item of the caller is not out any more."""
        self._out[caller] -= 1
        if not self._out[caller]:
            del self._out[caller]

    def remove(self, caller: Hashable, item: T) -> bool:
        """Takes an item out of the queue without a turn; whether it waited."""
        items = self._waiting.get(caller)
        if items is None or item not in items:
            return False
        items.remove(item)
        if not items:
            del self._waiting[caller]
        return True
