"""Use grpcio's private parts: all of them are in this module.

The public API offers neither to wait for a request without a thread (admission) nor to send without
blocking one (health). The functions here do what `grpc._server` does, with its functions, its state
of a call, its operations in `cygrpc`, and the arguments of `submit` to a handler's thread pool.
`pyproject.toml` excludes the versions of grpcio that this was not tested with.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import grpc
from grpc import _server
from grpc._cython import cygrpc  # type: ignore[attr-defined]

B = TypeVar("B", bound=Callable[..., object])

_RECEIVE, _SEND = _server._RECEIVE_MESSAGE_TOKEN, _server._SEND_MESSAGE_TOKEN


def with_pool(behavior: B, pool: ThreadPoolExecutor, *, non_blocking: bool = False) -> B:
    """Give the behavior a thread pool. A non-blocking one returns while its stream stays open."""
    pooled: Any = partial(behavior)
    pooled.experimental_thread_pool = pool
    pooled.experimental_non_blocking = non_blocking
    result: B = pooled
    return result


def pool_of(behavior: object) -> ThreadPoolExecutor | None:
    """Return the thread pool of the behavior; None if it has none of its own."""
    return getattr(behavior, "experimental_thread_pool", None)


class ServerCall:
    """A call on this server: its event and its state in grpcio."""

    __slots__ = ("_event", "_peer", "_state", "lock")

    def __init__(self, event: Any, state: Any) -> None:
        self._event = event
        self._state = state
        self._peer = ""
        self.lock = state.condition  # Reentrant. Callbacks of operations hold it, too.

    @classmethod
    def of(cls, context: Any) -> "ServerCall":
        return cls(context._rpc_event, context._state)

    @property
    def peer(self) -> str:
        """The address of the client, as grpcio spells it."""
        if not self._peer:
            self._peer = self._event.call.peer().decode()
        return self._peer

    @property
    def metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        metadata: tuple[tuple[str, str | bytes], ...] = self._event.invocation_metadata
        return metadata

    @property
    def deadline(self) -> float:
        """The deadline, in seconds since 1970."""
        deadline: float = self._event.call_details.deadline
        return deadline

    @property
    def is_active(self) -> bool:
        """Whether the call has no status yet, and was not cancelled."""
        is_active: bool = _server._is_rpc_state_active(self._state)
        return is_active

    @property
    def is_sending(self) -> bool:
        return _SEND in self._state.due

    def context(self) -> grpc.ServicerContext:
        context: grpc.ServicerContext = _server._Context(self._event, self._state, None)
        return context

    def send(self, message: bytes, on_sent: Callable[[], object]) -> None:
        """Send a message without blocking; hold the lock. `on_sent` runs on the polling thread."""

        def sent(_event: object) -> object:
            with self.lock:
                finished: object = _server._possibly_finish_call(self._state, _SEND)
                on_sent()
                return finished

        self._event.call.start_server_batch((cygrpc.SendMessageOperation(message, 0),), sent)
        self._state.due.add(_SEND)

    def finish(self) -> None:
        """Send the status OK."""
        _server._status(self._event, self._state, None)

    def abort(self, code: int, details: str) -> None:
        """Send a status, unless the call has ended."""
        with self.lock:
            if self.is_active:
                _server._abort(self._state, self._event.call, code, details.encode())

    def cancel(self, code: grpc.StatusCode, details: str) -> None:
        """End the call ahead of unread messages; `context.cancel()` has no status but CANCELLED."""
        self._event.call.cancel(code.value[0], details.encode())


class SubmittedCall(ServerCall):
    """A call as grpcio submits it to a thread pool: its headers have arrived."""

    __slots__ = ("_behavior", "_codecs", "_respond", "run")

    def __init__(
        self,
        run: Callable[..., Any],
        respond: Callable[..., object],
        event: Any,
        state: Any,
        behavior: object,
        _wait_for_request: object,
        *codecs: Any,
    ) -> None:
        super().__init__(event, state)
        self.run = run  # Runs a function in the call's context (contextvars).
        self._respond = respond
        self._behavior = behavior
        self._codecs = codecs

    def receive_request(self, on_received: Callable[[object], None]) -> None:
        """Wait for the request without a thread. `on_received` runs on the polling thread.

        It gets None if the client ended the call, or half-closed it without a request.
        """
        receive = _server._receive_message(self._state, self._event.call, self._codecs[0])

        def received(event: object) -> object:
            finished: object = receive(event)
            with self.lock:
                request, self._state.request = self._state.request, None
            on_received(request)
            return finished

        with self.lock:
            operations = (cygrpc.ReceiveMessageOperation(0),)
            self._event.call.start_server_batch(operations, received)
            self._state.due.add(_RECEIVE)

    def serve(self, request: object) -> None:
        """Run the behavior on this thread and send its answer. The request is never None."""
        arguments = self._event, self._state, self._behavior, lambda: request, *self._codecs
        self.run(self._respond, *arguments)
