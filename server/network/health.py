"""Health as gRPC defines it: Check, Watch, and List (gRFC A90).

"" is liveness: this process serves, whatever the database does. The service's name is readiness:
the database answers and its schema is the one that this build works with. "startup" is that this
was so once.

The servicer of grpcio-health-checking sends while it holds its lock, and waits until that is read:
one client that reads nothing, or two that come and go, stop every call. Here no thread waits for a
client. That takes grpcio's own functions for a stream, in `_Watch` alone.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import structlog
from grpc import _server
from grpc._cython import cygrpc  # type: ignore[attr-defined]
from grpc_health.v1 import health_pb2

from server.calls.admission import RequestPool
from server.calls.places import Limit
from taskservice.v1 import task_service_pb2

log = structlog.get_logger()

LIVENESS = ""
STARTUP = "startup"
READINESS = task_service_pb2.DESCRIPTOR.services_by_name["TaskService"].full_name

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_PER_CONNECTION = 16

# A check takes a tenth of a millisecond.
_WAITING, _WAITING_OF_CONNECTION = Limit(64), Limit(16)

# The name of a service is shorter; what is longer is answered as an unknown one, and not kept.
_REQUEST_BYTES = 1024

# For those who watch to read that it is over.
_FAREWELL_SECONDS = 1.0


class _Watch:
    """A Watch that is open. One message at most is on its way; the next is what is so by then."""

    def __init__(self, status: Callable[[], int], context: Any) -> None:
        self._status = status
        self._told: int | None = None
        self._is_ended = False
        self._event, self._state = context._rpc_event, context._state

    def tell(self) -> None:
        """Sends the status, if the client has not been told of it; waits for nothing."""
        with self._state.condition:
            self._go_on()

    def end(self) -> None:
        """Ends it, once the client has read what it was told."""
        with self._state.condition:
            self._is_ended = True
            self._go_on()

    def cut(self) -> None:
        """Ends it, whether the client reads or not."""
        self._event.call.cancel(grpc.StatusCode.UNAVAILABLE.value[0], b"the watch was not read")

    def _go_on(self) -> None:
        due = self._state.due
        if _server._SEND_MESSAGE_TOKEN in due or not _server._is_rpc_state_active(self._state):
            return
        if (status := self._status()) != self._told:
            self._told = status
            message = health_pb2.HealthCheckResponse(status=status).SerializeToString()
            send = cygrpc.SendMessageOperation(message, 0)
            self._event.call.start_server_batch((send,), self._sent)
            due.add(_server._SEND_MESSAGE_TOKEN)
        elif self._is_ended:
            _server._status(self._event, self._state, None)

    def _sent(self, _event: object) -> Any:
        with self._state.condition:
            over = _server._possibly_finish_call(self._state, _server._SEND_MESSAGE_TOKEN)
            self._go_on()
            return over


class _Places:
    """For the Watches on one server; few of them for a connection, whose client needs one."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()

    def take(self, peer: str) -> bool:
        with self._lock:
            if self._taken[peer] >= _PER_CONNECTION or self._taken.total() >= self._limit:
                return False
            self._taken[peer] += 1
            return True

    def give_back(self, peer: str) -> None:
        with self._lock:
            self._taken[peer] -= 1
            if not self._taken[peer]:
                del self._taken[peer]


class HealthServicer:
    """Health, as every server tells it that this is added to."""

    def __init__(self, request_timeout_seconds: float, *, watch_limit: int) -> None:
        self._request_timeout_seconds = request_timeout_seconds
        self._watch_limit = watch_limit
        self._statuses: dict[str, int] = {
            LIVENESS: SERVING,
            STARTUP: NOT_SERVING,
            READINESS: NOT_SERVING,
        }
        self._watches: set[_Watch] = set()
        self._changed = threading.Condition()  # Nothing is sent while it is held.
        self._is_draining = self._is_ended = False

    def add_to(self, server: grpc.Server, *, for_probes: bool = False) -> None:
        """Serves health there, with a thread of its own: probes never wait behind calls.

        But on the port for probes alone, few calls may wait, and fewer of a connection.

        It has places of its own for Watches, too: what strangers do on one port is not felt on
        another.
        """
        waiting = (Limit(), Limit()) if for_probes else (_WAITING, _WAITING_OF_CONNECTION)
        pool = RequestPool(1, "health", self._request_timeout_seconds, *waiting)
        watch = _on(pool, partial(self._watch, _Places(self._watch_limit)))
        watch.experimental_non_blocking = True
        response = health_pb2.HealthCheckResponse.SerializeToString
        handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(
                _on(pool, self._check), _check_request, response
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(watch, _check_request, response),
            "List": grpc.unary_unary_rpc_method_handler(
                _on(pool, self._list),
                health_pb2.HealthListRequest.FromString,  # type: ignore[attr-defined]
                health_pb2.HealthListResponse.SerializeToString,  # type: ignore[attr-defined]
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_HEALTH, handlers),))

    def set(self, service: str, status: int) -> None:
        """Those who watch hear of it; nobody does any more when the process drains."""
        with self._changed:
            if not self._is_draining:
                self._statuses[service] = status
        self._tell()

    def enter_graceful_shutdown(self) -> None:
        """NOT_SERVING, for good."""
        with self._changed:
            self._is_draining = True
            self._statuses.update(dict.fromkeys(self._statuses, NOT_SERVING))
        self._tell()

    def end_watches(self) -> None:
        """Ends every Watch, and lets none begin; who does not read is not waited for long."""
        with self._changed:
            self._is_ended = True
            watches = list(self._watches)
        for watch in watches:
            watch.end()
        with self._changed:
            self._changed.wait_for(lambda: not self._watches, _FAREWELL_SECONDS)
            watches = list(self._watches)
        for watch in watches:
            watch.cut()

    def _tell(self) -> None:
        with self._changed:
            watches = list(self._watches)
        for watch in watches:
            watch.tell()

    def _check(self, request: Any, context: grpc.ServicerContext) -> Any:
        status = self._statuses.get(request.service)
        if status is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return health_pb2.HealthCheckResponse(status=status)

    def _list(self, _request: Any, _context: grpc.ServicerContext) -> Any:
        return health_pb2.HealthListResponse(  # type: ignore[attr-defined]
            statuses={
                service: health_pb2.HealthCheckResponse(status=status)
                for service, status in self._statuses.items()
            }
        )

    def _watch(
        self,
        places: _Places,
        request: Any,
        context: grpc.ServicerContext,
        _wait_and_send: object,
    ) -> None:
        peer = context.peer()
        if not places.take(peer):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch here already")
        # A name that is not known stays so, and may be long: it is not kept.
        known = request.service if request.service in self._statuses else None
        watch = _Watch(
            lambda: _SERVICE_UNKNOWN if known is None else self._statuses[known], context
        )

        def forget() -> None:
            places.give_back(peer)
            with self._changed:
                self._watches.discard(watch)
                self._changed.notify_all()

        with self._changed:
            self._watches.add(watch)
            is_ended = self._is_ended
        if not context.add_callback(forget):
            forget()
            return
        context.send_initial_metadata(())
        watch.tell()
        if is_ended:
            watch.end()


def _check_request(data: bytes) -> Any:
    if len(data) > _REQUEST_BYTES:
        return health_pb2.HealthCheckRequest(service="?")
    return health_pb2.HealthCheckRequest.FromString(data)


def _on(pool: RequestPool, behavior: Callable[..., Any]) -> Any:
    """The behavior, of one server: grpcio reads its pool from an attribute."""
    own: Any = partial(behavior)
    own.experimental_thread_pool = pool
    return own
