"""Who gets a thread, and when: a call whose request is there, while there are not too many.

grpcio gives a call a thread when its headers are there, on which it then waits for the request: as
many callers as there are threads, who send headers and nothing else, would stop the process. Here
a call waits for its request without a thread. That reaches into grpcio, here in
`RequestPool.submit` alone: it is what grpcio's own wait does, begun one step earlier.

A pool belongs to one server: calls reach it on that server's polling thread, one after another.
What is raised there ends the thread, and with it the server: nothing is.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import structlog
from grpc import _server
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from server.call import is_ours, requested
from server.errors import (
    NoThreadError,
    RefusedError,
    RequestMissingError,
    RequestTimeoutError,
    TooManyCallsError,
    TooManyOwnCallsError,
    TooManyWaitingError,
    status_of,
)
from storage.errors import StatementCancelledError

log = structlog.get_logger()

# Calls without a request hold a few kilobytes each, and a client may open them by the thousand.
_MOST_AWAITED = 1000
_CLOCK_SECONDS = 1.0

# grpcio asks when a call is over only to enforce a limit of its own, which is not set.
_DONE: Future[None] = Future()
_DONE.set_result(None)


@dataclass(eq=False, slots=True)
class _Call:
    """A call as grpcio hands it over: what its own function for a call's thread takes."""

    run: Callable[..., Any]  # Runs a function in the call's context (contextvars).
    respond: Callable[..., object]
    event: Any
    state: Any
    behavior: Any
    codecs: tuple[Any, Any]
    request: object = None
    claim: object = None

    def serve(self, request: object) -> None:
        """Answers the request, on this thread. None is never answered."""
        self.run(self.respond, self.event, self.state, self.behavior, lambda: request, *self.codecs)

    def refuse(self, error: Exception) -> None:
        """Ends the call, on this thread; one of ours by the way through the interceptors."""
        if self.run(is_ours):
            self.serve(error)
        elif status := status_of(error):
            self.end(status.code, status.message)

    def end(self, code: int, message: str) -> None:
        """Ends the call, if it has not ended."""
        with self.state.condition:
            if _server._is_rpc_state_active(self.state):
                _server._abort(self.state, self.event.call, code, message.encode())

    @property
    def is_active(self) -> bool:
        is_active: bool = _server._is_rpc_state_active(self.state)
        return is_active

    @property
    def is_awaited(self) -> bool:
        """Whether there is still somebody who waits for the answer."""
        return self.is_active and time.time() < self.event.call_details.deadline


class RequestPool(ThreadPoolExecutor):
    """Threads for calls with one request each, that hold none until the request is there.

    A call whose request takes longer than `request_timeout_seconds` is ended.
    """

    def __init__(self, threads: int, name: str, request_timeout_seconds: float) -> None:
        super().__init__(threads, thread_name_prefix=name)
        self._request_timeout_seconds = request_timeout_seconds
        self._lock = threading.Lock()  # Never held while a call is answered.
        self._awaited: dict[_Call, float] = {}  # Until when, the oldest first.
        self._empty: list[_Call] = []  # Over, or without a request: that is not known at once.
        self._queued: set[_Call] = set()
        self._running = 0
        threading.Thread(
            target=_keep_time, args=(weakref.ref(self),), name=f"{name}-clock", daemon=True
        ).start()

    def submit(self, run: Any, /, *work: Any, **_: Any) -> Future[Any]:
        """Takes over a call from grpcio, which has its headers."""
        respond, event, state, behavior, _wait_for_request, *codecs = work
        call = _Call(run, respond, event, state, behavior, (*codecs,))
        with _surviving(call):
            self._await_request(call)
        return _DONE

    def _await_request(self, call: _Call) -> None:
        receive = _server._receive_message(call.state, call.event.call, call.codecs[0])

        def received(message: Any) -> Any:
            over = receive(message)
            with _surviving(call):
                self._receive(call)
            return over

        with self._lock:
            oldest = next(iter(self._awaited)) if len(self._awaited) >= _MOST_AWAITED else None
            if oldest:
                del self._awaited[oldest]
            self._awaited[call] = time.monotonic() + self._request_timeout_seconds
        if oldest:
            with _surviving(oldest):
                oldest.refuse(TooManyWaitingError())
        with call.state.condition:
            receiving = (cygrpc.ReceiveMessageOperation(0),)
            call.event.call.start_server_batch(receiving, received)
            call.state.due.add(_server._RECEIVE_MESSAGE_TOKEN)

    def _receive(self, call: _Call) -> None:
        """The request is there; or none comes, for the caller ended the call or has none."""
        with self._lock:
            is_awaited = self._awaited.pop(call, None) is not None
        with call.state.condition:
            call.request, call.state.request = call.state.request, None
        if not (is_awaited and call.is_active):
            return
        if call.request is None:
            with self._lock:
                self._empty.append(call)
        else:
            call.run(requested)
            self._admit(call)

    def _admit(self, call: _Call) -> None:
        try:
            with self._lock:
                self._enter(call)
                self._queued.add(call)
            self._start(call)
        except RefusedError as error:
            call.refuse(error)

    def _start(self, call: _Call) -> None:
        """Raises NoThreadError. The executor keeps the call even then, and comes to it one day."""
        try:
            super().submit(self._work, call)
        except RuntimeError as error:
            if self._take(call):
                self._over(call)
                raise NoThreadError from error

    def _work(self, call: _Call) -> None:
        if not self._take(call):
            return
        try:
            if call.is_awaited:
                call.serve(call.request)
            else:
                call.refuse(StatementCancelledError())
        finally:
            self._over(call)

    def _take(self, call: _Call) -> bool:
        """Takes the call out of the queue; whether it was there."""
        with self._lock:
            if call not in self._queued:
                return False
            self._queued.remove(call)
            self._running += 1
            return True

    def _over(self, call: _Call) -> None:
        with self._lock:
            self._running -= 1
            self._leave(call)

    def _enter(self, call: _Call) -> None:
        """The call is about to be queued. Raises RefusedError: it is not."""

    def _leave(self, call: _Call) -> None:
        """The call that was queued is over."""

    def end_silent(self) -> None:
        """Ends the calls whose request has not come in time, or will not come."""
        now = time.monotonic()
        with self._lock:
            overdue = [call for call, until in self._awaited.items() if until <= now]
            for call in overdue:
                del self._awaited[call]
            empty, self._empty = self._empty, []
        for calls, error in ((overdue, RequestTimeoutError()), (empty, RequestMissingError())):
            for call in calls:
                if call.is_active:
                    with _surviving(call):
                        call.refuse(error)


class CallPool(RequestPool):
    """The threads for unary calls, with no more than `limit` in flight: at work or in the queue.

    No caller has more than half of these places, or than there are threads: by what he claims to
    be, for nobody has looked at his credentials yet.

    What is over a limit is refused at once, on the polling thread: as a call whose request is an
    error, it takes the way through the interceptors that all calls take, and needs no thread.
    """

    def __init__(self, threads: int, *, limit: int, request_timeout_seconds: float) -> None:
        super().__init__(threads, "call", request_timeout_seconds)
        self._limit = limit
        self._share = max(threads, limit // 2)
        self._claims: Counter[object] = Counter()

    def counts(self) -> dict[str, int]:
        """How many calls have a thread, and how many wait for one."""
        with self._lock:
            return {"running": self._running, "queued": len(self._queued)}

    def _enter(self, call: _Call) -> None:
        call.claim = _claim(call.event)
        if len(self._queued) + self._running >= self._limit:
            raise TooManyCallsError
        if self._claims[call.claim] >= self._share:
            raise TooManyOwnCallsError
        self._claims[call.claim] += 1

    def _leave(self, call: _Call) -> None:
        self._claims[call.claim] -= 1
        if not self._claims[call.claim]:
            del self._claims[call.claim]


def _claim(event: Any) -> object:
    """Who a caller says he is: his credentials as they came, or else his connection."""
    for key, value in event.invocation_metadata:
        if key == "authorization":
            return value
    return event.call.peer()


@contextmanager
def _surviving(call: _Call) -> Iterator[None]:
    """Whatever is raised here ends the call, and nothing else."""
    try:
        yield
    except Exception:
        log.exception("a call was not taken")
        with suppress(Exception):
            call.end(cygrpc.StatusCode.internal, "the call was not taken")


def _keep_time(pool_of: weakref.ref[RequestPool]) -> None:
    """Ends silent calls every second, for as long as there is the pool."""
    while pool := pool_of():
        pool.end_silent()
        del pool
        time.sleep(_CLOCK_SECONDS)
