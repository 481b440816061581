"""Limit the calls in flight and the bytes of their requests, in all and for each client."""

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


class ConcurrencyLimiter:
    """Count what is in flight against two limits. Not thread-safe."""

    def __init__(self, total: Limit, per_client: Limit) -> None:
        self._total = total
        self._per_client = per_client
        self._calls: Counter[Hashable] = Counter()
        self._bytes: Counter[Hashable] = Counter()

    def acquire(self, client: Hashable, size: int) -> None:
        """Count a call with a request of `size` bytes.

        Raises: TooManyCallsError, TooManyOwnCallsError, TooManyBytesError.
        """
        if self._calls[_ALL] >= self._total.calls:
            raise TooManyCallsError
        if self._calls[client] >= self._per_client.calls:
            raise TooManyOwnCallsError
        if (
            self._bytes[_ALL] + size > self._total.bytes
            or self._bytes[client] + size > self._per_client.bytes
        ):
            raise TooManyBytesError
        self._count(client, 1, size)

    def release(self, client: Hashable, size: int) -> None:
        """Undo `acquire`."""
        self._count(client, -1, -size)

    def _count(self, client: Hashable, calls: int, size: int) -> None:
        for key in (_ALL, client):
            self._calls[key] += calls
            self._bytes[key] += size
            if not self._calls[key]:
                del self._calls[key], self._bytes[key]
