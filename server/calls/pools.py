"""The thread pools of TaskService: one for unary calls, one for streams."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import NamedTuple, TypeAlias

import grpc

from server.access.principal import Principal
from server.calls.admission import Limit, RequestPool
from server.calls.arrivals import IncomingCall
from server.calls.current import current_call
from server.errors import RefusedError

Authenticate: TypeAlias = Callable[[grpc.ServicerContext], Principal]
# The bytes of all requests in flight in a process; a client may have half of them.
MAX_QUEUED_BYTES = 32 * 1024 * 1024
_MAX_KNOWN_CREDENTIALS = 4096  # About 200 bytes each.


class _PrincipalName(NamedTuple):
    """An authenticated client; another type than the address of a connection."""

    name: str


class StreamPool(RequestPool):
    """The threads for streams of answers; a client opens one stream at a time.

    Else a thousand streams opened after a restart would compete for the processor with unary calls.
    """

    def __init__(self, threads: int) -> None:
        total, per_client = Limit(bytes=MAX_QUEUED_BYTES), Limit(bytes=MAX_QUEUED_BYTES / 2)
        super().__init__(threads, "stream", total, per_client, share=1)

    def _may_run(self, call: IncomingCall) -> bool:
        call.run(self._observe, call)
        return True

    def _observe(self, call: IncomingCall) -> None:
        current_call().on_opened = partial(self._opened, call)

    def _opened(self, call: IncomingCall) -> None:
        """Let another thread open the client's next stream."""
        with self._lock:
            self._end_turn(call)
        self._start_another()


class CallPool(RequestPool):
    """The threads for unary calls, with at most `limit` calls and bytes in flight.

    A client has at most half of the limit, or as many calls as there are threads, and never all
    threads. The client is the principal; before its credentials are verified, the connection.
    """

    def __init__(
        self, threads: int, *, limit: Limit, authenticate: Authenticate | None = None
    ) -> None:
        per_client = Limit(max(threads, limit.calls // 2), limit.bytes / 2)
        super().__init__(threads, "call", limit, per_client, share=max(1, threads - 1))
        self._authenticate = authenticate
        self._known: dict[int, _PrincipalName] = {}  # By the hash of connection and credentials.

    def _client_of(self, call: IncomingCall) -> Hashable:
        known = self._known.get(_credentials(call)) if self._authenticate else None
        return known or call.peer

    def _may_run(self, call: IncomingCall) -> bool:
        if self._authenticate is None or not call.is_awaited or call.authentication_tried:
            return True
        call.authentication_tried = True
        principal = call.run(self._principal_of, call, self._authenticate)
        if principal is None or principal == call.client:
            return True
        return self._reassign(call, principal)

    def _principal_of(
        self, call: IncomingCall, authenticate: Authenticate
    ) -> _PrincipalName | None:
        """Authenticate, and keep the result for the interceptors; None if that failed."""
        try:
            principal = authenticate(call.context())
        except Exception as error:
            current_call().identity = error
            self._known.pop(_credentials(call), None)
            return None
        current_call().identity = principal
        return _PrincipalName(principal.name)

    def _reassign(self, call: IncomingCall, client: _PrincipalName) -> bool:
        """Count the call as one of this client; return whether it may run at once."""
        try:
            may_run = self._moved(call, client)
        except RefusedError as error:
            call.reject(error)
            may_run = False
        self._start_another()  # The connection has one running call less.
        return may_run

    def _moved(self, call: IncomingCall, client: _PrincipalName) -> bool:
        """Raises: TooManyOwnCallsError, TooManyBytesError."""
        with self._lock:
            self._known[_credentials(call)] = client
            if len(self._known) > _MAX_KNOWN_CREDENTIALS:
                del self._known[next(iter(self._known))]
            self._queue.finish(call.client)
            self._limiter.release(call.client, call.size)
            call.client = client
            self._limiter.acquire(client, call.size)
            may_run = self._queue.start(client)
            if not may_run:
                self._queue.add(client, call)
            return may_run


def _credentials(call: IncomingCall) -> int:
    shown = [value for key, value in call.metadata if key == "authorization"]
    return hash((call.peer, *shown))
