"""Limit the calls in flight and the bytes of their requests, in all and for each client."""

import math
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
        self._in_flight: dict[Hashable, tuple[int, int]] = {}
        """The calls and the bytes of each client, and of all."""

    def acquire(self, client: Hashable, size: int) -> None:
        """Count a call with a request of `size` bytes.

        Raises: TooManyCallsError, TooManyOwnCallsError, TooManyBytesError.
        """
        all_calls, all_bytes = self._in_flight.get(_ALL, (0, 0))
        calls, bytes_ = self._in_flight.get(client, (0, 0))
        if all_calls >= self._total.calls:
            raise TooManyCallsError
        if calls >= self._per_client.calls:
            raise TooManyOwnCallsError
        if all_bytes + size > self._total.bytes or bytes_ + size > self._per_client.bytes:
            raise TooManyBytesError
        self._in_flight[_ALL] = all_calls + 1, all_bytes + size
        self._in_flight[client] = calls + 1, bytes_ + size

    def release(self, client: Hashable, size: int) -> None:
        """Undo `acquire`."""
        for key in (_ALL, client):
            calls, bytes_ = self._in_flight[key]
            if calls == 1:
                del self._in_flight[key]
            else:
                self._in_flight[key] = calls - 1, bytes_ - size
