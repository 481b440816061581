"""What is known of the call under way.

grpcio gives each call a context (contextvars) of its own, from its arrival to its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar

import grpc

from server.principal import ANONYMOUS, Principal
from storage.measures import Spent, spent


class Call:
    """A call from its arrival on: what its log line and its metrics say."""

    def __init__(self, method: str, *, is_stream: bool) -> None:
        self.method = method.removeprefix("/")
        self.is_stream = is_stream
        self.arrived = self.began = time.perf_counter()
        self.requested: float | None = None
        self.code = ""
        self.seconds = 0.0
        self.request_id = ""
        self.identity: Principal | Exception | None = None
        """Who calls, or why that cannot be said; None as long as nobody has looked."""
        self.principal: Principal = ANONYMOUS
        self.opened: Callable[[], None] = lambda: None
        """To be called when a stream has only its answers left to send."""
        self.reason = ""
        """The reason in its ErrorInfo; empty when the call goes well."""
        self.received_bytes = 0
        self.sent_bytes = 0
        self.context: grpc.ServicerContext | None = None
        """Between its work and its answer."""
        self.spent = Spent()

    @property
    def queued_seconds(self) -> float:
        """How long it waited for a thread, once its request was there."""
        return self.began - self.requested if self.requested else 0.0

    def begin(self, request_id: str) -> None:
        """It has a thread now."""
        self.began = time.perf_counter()
        self.request_id = request_id

    def end(self, code: str) -> None:
        """It has a code, and lasted from its arrival until now."""
        self.code = code
        self.seconds = time.perf_counter() - self.arrived


_current: ContextVar[Call] = ContextVar("call")


def current_call() -> Call:
    """The call that this thread serves."""
    return _current.get()


def is_ours() -> bool:
    """Whether the call under way is one of our service."""
    return _current.get(None) is not None


def arrived(method: str, *, is_stream: bool) -> None:
    """A new call: from here on it is the one under way, wherever its context goes."""
    call = Call(method, is_stream=is_stream)
    _current.set(call)
    spent.set(call.spent)


def requested() -> None:
    """The request of the call under way is there. Nothing happens if the call is not ours."""
    if call := _current.get(None):
        call.requested = time.perf_counter()
