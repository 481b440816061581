"""How many calls, and how many bytes of requests, wait or run at once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable
from typing import NamedTuple

from server.errors import TooManyBytesError, TooManyCallsError, TooManyOwnCallsError

_ALL = None


class Limit(NamedTuple):
    """The most calls at once, and the most bytes of their requests."""

    calls: float = math.inf
    bytes: float = math.inf


class Places:
    """The places for calls, in all and of each caller. Not safe for threads."""

    def __init__(self, total: Limit, of_caller: Limit) -> None:
        self._total = total
        self._of_caller = of_caller
        self._calls: Counter[Hashable] = Counter()
        self._bytes: Counter[Hashable] = Counter()

    def enter(self, caller: Hashable, size: int) -> None:
        """Takes a place for a request of so many bytes.

        Raises: TooManyCallsError, TooManyOwnCallsError, TooManyBytesError.
        """
        if self._calls[_ALL] >= self._total.calls:
            raise TooManyCallsError
        if self._calls[caller] >= self._of_caller.calls:
            raise TooManyOwnCallsError
        if (
            self._bytes[_ALL] + size > self._total.bytes
            or self._bytes[caller] + size > self._of_caller.bytes
        ):
            raise TooManyBytesError
        self._count(caller, 1, size)

    def leave(self, caller: Hashable, size: int) -> None:
        """Gives back what `enter` took."""
        self._count(caller, -1, -size)

    def _count(self, caller: Hashable, calls: int, size: int) -> None:
        for whose in (_ALL, caller):
            self._calls[whose] += calls
            self._bytes[whose] += size
            if not self._calls[whose]:
                del self._calls[whose], self._bytes[whose]
