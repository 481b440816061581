"""Admit calls: limit them, queue them fairly and run them on threads.

A pool belongs to one server: its calls arrive on that server's polling thread, one after another.
"""

import math
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

from server import errors
from server.calls.arrivals import Arrivals, IncomingCall
from server.calls.fair_queue import FairQueue
from storage.errors import StatementCancelledError

# grpcio would use the future to enforce `maximum_concurrent_rpcs`, which is not set.
_DONE: Future[None] = Future()
_DONE.set_result(None)

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
        self._in_flight: dict[Hashable, tuple[int, int]] = {}  # Calls and bytes.

    def acquire(self, client: Hashable, size: int) -> None:
        """Count a call with a request of `size` bytes.

        Raises: TooManyCallsError, TooManyOwnCallsError, TooManyBytesError.
        """
        all_calls, all_bytes = self._in_flight.get(_ALL, (0, 0))
        calls, bytes_ = self._in_flight.get(client, (0, 0))
        if all_calls >= self._total.calls:
            raise errors.TooManyCallsError
        if calls >= self._per_client.calls:
            raise errors.TooManyOwnCallsError
        if all_bytes + size > self._total.bytes or bytes_ + size > self._per_client.bytes:
            raise errors.TooManyBytesError
        self._in_flight[_ALL] = all_calls + 1, all_bytes + size
        self._in_flight[client] = calls + 1, bytes_ + size

    def release(self, client: Hashable, size: int) -> None:
        for key in (_ALL, client):
            calls, bytes_ = self._in_flight[key]
            if calls == 1:
                del self._in_flight[key]
            else:
                self._in_flight[key] = calls - 1, bytes_ - size


class RequestPool(ThreadPoolExecutor):
    """Run calls with one request each, on threads that do not wait for requests.

    Clients take turns. A client is a connection, or what a subclass makes of it; at most `share` of
    its calls run at once. A call beyond a limit is rejected on the polling thread.
    """

    def __init__(
        self, threads: int, name: str, total: Limit, per_client: Limit, *, share: int | None = None
    ) -> None:
        super().__init__(threads, thread_name_prefix=name)
        self._arrivals = Arrivals(name)
        self._lock = threading.Lock()  # Not held while a call is answered.
        self._queue = FairQueue[IncomingCall](share or threads)
        self._limiter = ConcurrencyLimiter(total, per_client)

    def counts(self) -> dict[str, int]:
        """The numbers of running and of queued calls."""
        with self._lock:
            return self._queue.counts

    def submit(self, run: Callable[..., Any], /, *call: Any, **_: Any) -> Future[Any]:
        """Take over a call from grpcio, which has received its headers."""
        incoming = IncomingCall(run, *call)
        incoming.guard(self._arrivals.wait_for, incoming, self._admit)
        return _DONE

    def _admit(self, call: IncomingCall) -> None:
        call.authentication_tried = call.has_ended_turn = False
        try:
            call.client = self._client_of(call)
            with self._lock:
                self._limiter.acquire(call.client, call.size)
                self._queue.add(call.client, call)
            self._start(call)
        except errors.RefusedError as error:
            call.reject(error)

    def _start(self, call: IncomingCall) -> None:
        """Have a thread run the next call. Raises: NoThreadError."""
        try:
            super().submit(self._run_queued)
        except RuntimeError as error:
            with self._lock:
                was_queued = self._queue.remove(call.client, call)
                if was_queued:
                    self._limiter.release(call.client, call.size)
            if was_queued:
                raise errors.NoThreadError from error

    def _start_another(self) -> None:
        """Have a thread run a queued call that may run now; without one the next call does."""
        with suppress(RuntimeError):
            super().submit(self._run_queued)

    def _run_queued(self) -> None:
        """Run queued calls until none is left that may run."""
        while (call := self._next()) is not None:
            if self._may_run(call):
                try:
                    self._run(call)
                finally:
                    self._end(call)

    def _next(self) -> IncomingCall | None:
        with self._lock:
            return self._queue.next()

    def _run(self, call: IncomingCall) -> None:
        if call.is_awaited:
            call.serve(call.request)
        else:
            call.reject(StatementCancelledError())

    def _end(self, call: IncomingCall) -> None:
        with self._lock:
            self._end_turn(call)
            self._limiter.release(call.client, call.size)

    def _end_turn(self, call: IncomingCall) -> None:
        if not call.has_ended_turn:
            call.has_ended_turn = True
            self._queue.finish(call.client)

    def _client_of(self, call: IncomingCall) -> Hashable:
        """Return the client, as far as it is known before the call has a thread."""
        return call.peer

    def _may_run(self, call: IncomingCall) -> bool:
        """Return whether the call runs on this thread; if not, it was queued again or rejected."""
        return True
