"""Wait for the requests of calls without a thread (decision 14)."""

import threading
import time
import weakref
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import partial

import grpc
import structlog

from server.calls.current import has_current_call, mark_request_received
from server.calls.grpcio_internals import SubmittedCall
from server.calls.statuses import status_of
from server.errors import RequestMissingError, RequestTimeoutError, TooManyWaitingError

log = structlog.get_logger()

# A call whose request does not arrive in time is ended.
REQUEST_SECONDS = 10.0

# A call without a request holds a few kilobytes, and a client may open thousands.
_MAX_WAITING = 1000
_CLOCK_SECONDS = 1.0


class IncomingCall(SubmittedCall):
    __slots__ = ("authentication_tried", "client", "has_ended_turn", "request")

    request: object
    client: Hashable
    authentication_tried: bool
    has_ended_turn: bool

    @property
    def size(self) -> int:
        """The bytes of the request, which is not decoded yet."""
        return len(self.request) if isinstance(self.request, bytes) else 0

    @property
    def is_awaited(self) -> bool:
        """Whether the client still waits for the answer."""
        return self.is_active and time.time() < self.deadline

    def reject(self, error: Exception) -> None:
        """End the call on this thread: through the interceptors if they know its method."""
        if self.run(has_current_call):
            self.serve(error)
        elif status := status_of(error):
            self.abort(status.code, status.message)

    def guard(self, step: Callable[..., object], *arguments: object) -> None:
        """Take a step; end the call on an exception, which would end the polling thread."""
        try:
            step(*arguments)
        except Exception:
            log.exception("call admission failed")
            with suppress(Exception):
                self.abort(grpc.StatusCode.INTERNAL.value[0], "the call could not be admitted")


class Arrivals:
    """Reject the calls whose requests are late, and the oldest of too many that wait."""

    def __init__(self, name: str) -> None:
        self._lock = threading.Lock()  # Not held while a call is answered.
        self._deadlines: dict[IncomingCall, float] = {}  # The oldest first.
        # Calls that ended, or that have no request: grpcio knows which a moment later.
        self._without_request: list[IncomingCall] = []
        threading.Thread(
            target=_run_clock, args=(weakref.ref(self),), name=f"{name}-clock", daemon=True
        ).start()

    def wait_for(self, call: IncomingCall, on_request: Callable[[IncomingCall], None]) -> None:
        """Call `on_request` on the polling thread when the request has arrived."""
        oldest = None
        with self._lock:
            if len(self._deadlines) >= _MAX_WAITING:
                oldest = next(iter(self._deadlines))
                del self._deadlines[oldest]
            self._deadlines[call] = time.monotonic() + REQUEST_SECONDS
        if oldest:
            oldest.guard(oldest.reject, TooManyWaitingError())
        call.receive_request(partial(call.guard, self._received, call, on_request))

    def _received(
        self, call: IncomingCall, on_request: Callable[[IncomingCall], None], request: object
    ) -> None:
        with self._lock:
            is_expected = self._deadlines.pop(call, None) is not None
        if not (is_expected and call.is_active):
            return
        if request is None:
            with self._lock:
                self._without_request.append(call)
        else:
            call.request = request
            call.run(mark_request_received, call.peer)
            on_request(call)

    def reject_overdue(self) -> None:
        """Reject the calls whose request is late, or will not come."""
        now = time.monotonic()
        with self._lock:
            overdue = [call for call, deadline in self._deadlines.items() if deadline <= now]
            for call in overdue:
                del self._deadlines[call]
            missing, self._without_request = self._without_request, []
        _reject(overdue, RequestTimeoutError())
        _reject(missing, RequestMissingError())


def _reject(calls: list[IncomingCall], error: Exception) -> None:
    for call in calls:
        if call.is_active:
            call.guard(call.reject, error)


def _run_clock(arrivals_of: weakref.ref[Arrivals]) -> None:
    """Reject overdue calls every second until the arrivals are garbage."""
    while arrivals := arrivals_of():
        arrivals.reject_overdue()
        del arrivals
        time.sleep(_CLOCK_SECONDS)
