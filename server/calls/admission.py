"""Who gets a thread, and when: a call whose request is there, in the turn of its caller.

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
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import grpc
import structlog
from grpc import _server
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from server.calls.current import current_call, is_ours, requested
from server.calls.places import Limit, Places
from server.calls.statuses import status_of
from server.calls.turns import Turns
from server.errors import (
    NoThreadError,
    RefusedError,
    RequestMissingError,
    RequestTimeoutError,
    TooManyWaitingError,
)
from server.principal import Principal
from storage.errors import StatementCancelledError

log = structlog.get_logger()

# Calls without a request hold a few kilobytes each, and a client may open them by the thousand.
_MOST_AWAITED = 1000
_CLOCK_SECONDS = 1.0
# Connections and credentials that were good: about 200 bytes each.
_REMEMBERED = 4096

Authenticate: TypeAlias = Callable[[grpc.ServicerContext], Principal]

_CONNECTION, _PRINCIPAL = "connection", "principal"

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
    caller: Hashable = None
    is_identified: bool = False
    has_had_turn: bool = False

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
    def size(self) -> int:
        """The bytes of the request, which is not decoded yet."""
        return len(self.request) if isinstance(self.request, bytes) else 0

    @property
    def connection(self) -> Hashable:
        """The caller, as far as that is known of any call."""
        return _CONNECTION, self.event.call.peer()

    @property
    def claim(self) -> int:
        """The credentials that it shows, on its connection; the same on another are others."""
        shown = [value for key, value in self.event.invocation_metadata if key == "authorization"]
        return hash((self.event.call.peer(), *shown))

    @property
    def is_active(self) -> bool:
        is_active: bool = _server._is_rpc_state_active(self.state)
        return is_active

    @property
    def is_awaited(self) -> bool:
        """Whether the caller still waits for the answer."""
        return self.is_active and time.time() < self.event.call_details.deadline


class RequestPool(ThreadPoolExecutor):
    """Threads for calls with one request each, that hold none until the request is there.

    Callers take turns; a caller is a connection, and has no more than `share` threads at once. A
    call whose request takes longer than `request_timeout_seconds` is ended, and one beyond a limit
    is refused, on the polling thread.
    """

    def __init__(
        self,
        threads: int,
        name: str,
        request_timeout_seconds: float,
        total: Limit = Limit(),  # noqa: B008
        of_caller: Limit = Limit(),  # noqa: B008
        *,
        share: int | None = None,
    ) -> None:
        super().__init__(threads, thread_name_prefix=name)
        self._request_timeout_seconds = request_timeout_seconds
        self._lock = threading.Lock()  # Never held while a call is answered.
        self._awaited: dict[_Call, float] = {}  # Until when, the oldest first.
        self._empty: list[_Call] = []  # Over, or without a request: that is not known at once.
        self._turns = Turns[_Call](share or threads)
        self._places = Places(total, of_caller)
        threading.Thread(
            target=_keep_time, args=(weakref.ref(self),), name=f"{name}-clock", daemon=True
        ).start()

    def counts(self) -> dict[str, int]:
        """How many calls have a thread, and how many wait for one."""
        with self._lock:
            return self._turns.counts

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
            call.caller = self._caller(call)
            with self._lock:
                self._places.enter(call.caller, call.size)
                self._turns.add(call.caller, call)
            self._start(call)
        except RefusedError as error:
            call.refuse(error)

    def _start(self, call: _Call) -> None:
        """A thread will look whose turn it is. Raises: NoThreadError."""
        try:
            super().submit(self._work)
        except RuntimeError as error:
            with self._lock:
                waited = self._turns.remove(call.caller, call)
                if waited:
                    self._places.leave(call.caller, call.size)
            if waited:
                raise NoThreadError from error

    def _work(self) -> None:
        """Serves those whose turn it is, until none is left that may run: what a call that has
        ended leaves is taken by its thread."""
        while (call := self._next()) is not None:
            if self._may_run(call):
                try:
                    if call.is_awaited:
                        call.serve(call.request)
                    else:
                        call.refuse(StatementCancelledError())
                finally:
                    self._over(call)

    def _next(self) -> _Call | None:
        with self._lock:
            return self._turns.next()

    def _over(self, call: _Call) -> None:
        with self._lock:
            self._end_turn(call)
            self._places.leave(call.caller, call.size)

    def _end_turn(self, call: _Call) -> None:
        if not call.has_had_turn:
            call.has_had_turn = True
            self._turns.done(call.caller)

    def _caller(self, call: _Call) -> Hashable:
        """Whose call it is, as far as that is known before it has a thread."""
        return call.connection

    def _may_run(self, call: _Call) -> bool:
        """Whether the call goes on, on this thread. If not, it waits again, or was refused."""
        return True

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


class StreamPool(RequestPool):
    """The threads for streams of answers, which keep them; a caller opens one at a time.

    Else a thousand that come at once, as after a restart, would be a thousand threads that all have
    work to do, and a call that has a thread would wait for its turn among them.
    """

    def __init__(self, threads: int, *, bytes_limit: float, request_timeout_seconds: float) -> None:
        super().__init__(
            threads,
            "stream",
            request_timeout_seconds,
            Limit(bytes=bytes_limit),
            Limit(bytes=bytes_limit / 2),
            share=1,
        )

    def _may_run(self, call: _Call) -> bool:
        call.run(self._note, call)
        return True

    def _note(self, call: _Call) -> None:
        current_call().opened = partial(self._opened, call)

    def _opened(self, call: _Call) -> None:
        """The next stream of the caller may be opened, by another thread."""
        with self._lock:
            self._end_turn(call)
        with suppress(RuntimeError):
            ThreadPoolExecutor.submit(self, self._work)


class CallPool(RequestPool):
    """The threads for unary calls, with no more than `limit` calls and bytes in flight: at work or
    in the queue.

    A caller has no more than half of the places, or than there are threads, and never all threads.
    The caller is the principal, whatever credentials it shows. Credentials are verified on a
    thread: until they have been on this connection the caller is the connection, as it is where
    nothing is authenticated (`authenticate` is None).
    """

    def __init__(
        self,
        threads: int,
        *,
        limit: Limit,
        request_timeout_seconds: float,
        authenticate: Authenticate | None = None,
    ) -> None:
        super().__init__(
            threads,
            "call",
            request_timeout_seconds,
            total=limit,
            of_caller=Limit(max(threads, limit.calls // 2), limit.bytes / 2),
            share=max(1, threads - 1),
        )
        self._authenticate = authenticate
        self._known: dict[int, Hashable] = {}  # By connection and credentials, as hashes.

    def _caller(self, call: _Call) -> Hashable:
        known = self._known.get(call.claim) if self._authenticate else None
        return known or call.connection

    def _may_run(self, call: _Call) -> bool:
        if self._authenticate is None or not call.is_awaited or call.is_identified:
            return True
        call.is_identified = True
        name = call.run(self._identify, call, self._authenticate)
        if name is None or call.caller == (caller := (_PRINCIPAL, name)):
            return True
        return self._moved(call, caller)

    def _identify(self, call: _Call, authenticate: Authenticate) -> str | None:
        """The name of the principal; None if the call is not authenticated. It is noted for the
        interceptors, so that nothing is verified twice."""
        try:
            principal = authenticate(_server._Context(call.event, call.state, None))
        except Exception as error:
            current_call().identity = error
            self._known.pop(call.claim, None)
            return None
        current_call().identity = principal
        return principal.name

    def _moved(self, call: _Call, caller: Hashable) -> bool:
        """From now on it is a call of this caller; whether it may run at once."""
        try:
            with self._lock:
                self._remember(call.claim, caller)
                self._turns.done(call.caller)
                self._places.leave(call.caller, call.size)
                call.caller = caller
                self._places.enter(call.caller, call.size)
                may_run = self._turns.take(caller)
                if not may_run:
                    self._turns.add(caller, call)
        except RefusedError as error:
            call.refuse(error)
            may_run = False
        with suppress(RuntimeError):  # Another call of that connection may run now.
            ThreadPoolExecutor.submit(self, self._work)
        return may_run

    def _remember(self, claim: int, caller: Hashable) -> None:
        self._known[claim] = caller
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]


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
