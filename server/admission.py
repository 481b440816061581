"""Who gets a thread, and when: a call whose request is there, while there are not too many.

grpcio gives a call a thread when its headers are there, on which it then waits for the request: as
many callers as there are threads, who send headers and nothing else, would stop the process. Here
a call waits for its request without a thread. That reaches into grpcio, in `RequestPool.submit` and
nowhere else: it is what grpcio's own wait does, begun one step earlier.

Everything here but a call's work happens on the server's polling thread, one call after another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import grpc
from grpc import _server
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from server.errors import TooManyCallsError
from storage.errors import StatementCancelledError

# Calls without a request hold a few kilobytes each, and a client may open them by the thousand.
_MOST_AWAITED = 1000

_NO_REQUEST = b"the request did not arrive in time"

# grpcio asks when a call is over only to enforce a limit of its own, which is not set.
_DONE: Future[None] = Future()
_DONE.set_result(None)


class _Arrived(NamedTuple):
    """A call whose request is there: what grpcio's own function for its thread takes."""

    run: Callable[..., object]  # Runs a function in the call's context (contextvars).
    respond: Callable[..., object]
    event: Any
    state: Any
    behavior: Any
    request: object
    codecs: tuple[Any, Any]

    def serve(self, request: object) -> None:
        """Answers the request, on this thread. None is never answered."""
        self.run(self.respond, self.event, self.state, self.behavior, lambda: request, *self.codecs)

    @property
    def is_awaited(self) -> bool:
        """Whether there is still somebody who waits for the answer."""
        is_active: bool = _server._is_rpc_state_active(self.state)
        return is_active and time.time() < self.event.call_details.deadline


class RequestPool(ThreadPoolExecutor):
    """Threads for calls with one request each, that hold none until the request is there.

    A call whose request takes longer than `request_timeout_seconds` is ended when another arrives.
    """

    def __init__(self, threads: int, name: str, request_timeout_seconds: float) -> None:
        super().__init__(threads, thread_name_prefix=name)
        self._request_timeout_seconds = request_timeout_seconds
        self._awaited: dict[Any, tuple[float, Any]] = {}  # By their states, the oldest first.

    def submit(self, run: Any, /, *work: Any, **_: Any) -> Future[Any]:
        """Takes over a call from grpcio, which has its headers."""
        respond, event, state, behavior, _wait_for_request, *codecs = work
        receive = _server._receive_message(state, event.call, codecs[0])

        def received(message: Any) -> Any:
            self._awaited.pop(state, None)
            over = receive(message)
            with state.condition:
                request, state.request = state.request, None
                is_active = _server._is_rpc_state_active(state)
                if request is None and is_active:
                    code = cygrpc.StatusCode.unimplemented
                    _server._abort(state, event.call, code, b"a request is missing")
            if request is not None and is_active:
                call = _Arrived(run, respond, event, state, behavior, request, (*codecs,))
                self._admit(call)
            return over

        self._end_overdue()
        self._awaited[state] = time.monotonic() + self._request_timeout_seconds, event.call
        with state.condition:
            event.call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), received)
            state.due.add(_server._RECEIVE_MESSAGE_TOKEN)
        return _DONE

    def _admit(self, call: _Arrived) -> None:
        super().submit(call.serve, call.request)

    def _end_overdue(self) -> None:
        now = time.monotonic()
        while self._awaited:
            state = next(iter(self._awaited))
            deadline, call = self._awaited[state]
            if deadline > now and len(self._awaited) < _MOST_AWAITED:
                return
            del self._awaited[state]
            call.cancel(grpc.StatusCode.DEADLINE_EXCEEDED.value[0], _NO_REQUEST)


class CallPool(RequestPool):
    """The threads for unary calls, with no more than `limit` in flight: at work or in the queue.

    What is over the limit is refused at once, on the polling thread: as a call whose request is an
    error, it takes the way through the interceptors that all calls take, and needs no thread.
    """

    def __init__(self, threads: int, *, limit: int, request_timeout_seconds: float) -> None:
        super().__init__(threads, "call", request_timeout_seconds)
        self._limit = limit
        self._lock = threading.Lock()
        self._queued = self._running = 0

    def counts(self) -> dict[str, int]:
        """How many calls have a thread, and how many wait for one."""
        with self._lock:
            return {"running": self._running, "queued": self._queued}

    def _admit(self, call: _Arrived) -> None:
        with self._lock:
            is_full = self._queued + self._running >= self._limit
            self._queued += not is_full
        if is_full:
            call.serve(TooManyCallsError())
        else:
            ThreadPoolExecutor.submit(self, self._work, call)

    def _work(self, call: _Arrived) -> None:
        with self._lock:
            self._queued -= 1
            self._running += 1
        try:
            call.serve(call.request if call.is_awaited else StatementCancelledError())
        finally:
            with self._lock:
                self._running -= 1
