"""The state of the current call, in the context (contextvars) that grpcio makes for each."""

import time
from collections.abc import Callable
from contextvars import ContextVar

from server.access.principal import ANONYMOUS, Principal
from storage.measures import Spent, spent


class Call:
    """What the log line and the metrics of a call contain. Times are of `time.perf_counter`."""

    __slots__ = (
        *("method", "is_stream", "arrived", "requested", "began", "seconds", "spent"),
        *("peer", "request_id", "is_rest", "identity", "principal", "on_opened"),
        *("code", "reason", "received_bytes", "sent_bytes"),
    )

    def __init__(self, method: str, *, is_stream: bool) -> None:
        self.method = method.removeprefix("/")
        self.is_stream = is_stream
        self.arrived = self.began = time.perf_counter()
        self.requested = self.seconds = 0.0
        self.spent = Spent()
        self.peer = ""  # The address of the client, as grpcio spells it.
        self.request_id = ""
        self.is_rest = False  # Whether the REST gateway calls.
        self.identity: Principal | Exception | None = None  # None before authentication.
        self.principal: Principal = ANONYMOUS
        # Called when a stream has only its answers left to send.
        self.on_opened: Callable[[], None] = lambda: None
        self.code = ""
        self.reason = ""  # The reason in its ErrorInfo; empty for OK.
        self.received_bytes = self.sent_bytes = 0

    @property
    def queued_seconds(self) -> float:
        """The time from the arrival of the request until the call had a thread."""
        return self.began - self.requested if self.requested else 0.0


_current: ContextVar[Call] = ContextVar("call")


def current_call() -> Call:
    return _current.get()


def has_current_call() -> bool:
    """Return whether the interceptors know the current call: not for health, for instance."""
    return _current.get(None) is not None


def begin_call(method: str, *, is_stream: bool) -> None:
    call = Call(method, is_stream=is_stream)
    _current.set(call)
    spent.set(call.spent)


def mark_request_received(peer: str) -> None:
    """Note that the request arrived from this address, if there is a current call."""
    if call := _current.get(None):
        call.requested = time.perf_counter()
        call.peer = peer
