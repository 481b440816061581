"""Serve gRPC health: Check and Watch.

"" is liveness: this process serves, with or without its database. The service's name is readiness:
the database answers, and its schema serves this build. "startup": the process was ready once.

The servicer of grpcio-health-checking sends while it holds a lock: one client that does not read
blocks all calls of health. Here no thread waits for a client.
"""

import threading
from collections.abc import Callable
from functools import partial

import grpc
from grpc_health.v1.health_pb2 import DESCRIPTOR, HealthCheckRequest, HealthCheckResponse

from server.calls.admission import ConcurrencyLimiter, Limit, RequestPool
from server.calls.grpcio_internals import ServerCall, with_pool
from server.errors import RefusedError
from server.network import connections
from taskservice.v1 import task_service_pb2

LIVENESS = ""
STARTUP = "startup"
READINESS = task_service_pb2.DESCRIPTOR.services_by_name["TaskService"].full_name

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN

_HEALTH = DESCRIPTOR.services_by_name["Health"].full_name

_WATCHES_PER_CONNECTION = Limit(16)
# In flight, in all and for each connection; a check takes a tenth of a millisecond.
_CALLS, _CALLS_PER_CONNECTION = Limit(64), Limit(16)
# A longer service name is answered as unknown, and not kept.
_MAX_REQUEST_BYTES = 1024

_DRAIN_SECONDS = 1.0


class _Watch:
    """An open Watch. One message at most is in flight; the next has the status of its moment."""

    def __init__(self, status: Callable[[], int], call: ServerCall) -> None:
        self._status = status
        self._call = call
        self._sent: int | None = None
        self._is_ending = False

    def send(self) -> None:
        """Send the status if it has changed, without blocking."""
        with self._call.lock:
            self._advance()

    def end(self) -> None:
        """End the Watch after the client has read its last message."""
        with self._call.lock:
            self._is_ending = True
            self._advance()

    def cut(self) -> None:
        """End the Watch at once."""
        self._call.cancel(grpc.StatusCode.UNAVAILABLE, "the watch was not read")

    def _advance(self) -> None:
        if self._call.is_sending or not self._call.is_active:
            return
        if (status := self._status()) != self._sent:
            self._sent = status
            message = HealthCheckResponse(status=status).SerializeToString()
            self._call.send(message, self._advance)
        elif self._is_ending:
            self._call.finish()


class HealthServicer:
    """Serve the same statuses on every server that it is added to."""

    def __init__(self) -> None:
        self._statuses = {LIVENESS: SERVING, STARTUP: NOT_SERVING, READINESS: NOT_SERVING}
        self._watches: set[_Watch] = set()
        self._changed = threading.Condition()  # Not held while anything is sent.
        self._is_draining = self._is_ended = False

    def add_to(self, server: grpc.Server, *, for_probes: bool = False) -> None:
        """Serve health on a server, with a thread and limits of its own, apart from other calls."""
        limits = (Limit(), Limit()) if for_probes else (_CALLS, _CALLS_PER_CONNECTION)
        pool = RequestPool(1, "health", *limits)
        watches = ConcurrencyLimiter(Limit(connections.MAX_CONNECTIONS), _WATCHES_PER_CONNECTION)
        watch = partial(self._watch, watches)
        codecs = _deserialize, HealthCheckResponse.SerializeToString
        handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(with_pool(self._check, pool), *codecs),
            "Watch": grpc.unary_stream_rpc_method_handler(
                with_pool(watch, pool, non_blocking=True), *codecs
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_HEALTH, handlers),))

    def set(self, service: str, status: int) -> None:
        """Set a status and send it to its Watches; without effect while draining."""
        with self._changed:
            if not self._is_draining:
                self._statuses[service] = status
        self._send()

    def enter_graceful_shutdown(self) -> None:
        """Set all statuses to NOT_SERVING for good."""
        with self._changed:
            self._is_draining = True
            self._statuses.update(dict.fromkeys(self._statuses, NOT_SERVING))
        self._send()

    def end_watches(self) -> None:
        """End every Watch, and let none begin. Wait for clients to read, but not for long."""
        self._is_ended = True
        for watch in self._open_watches():
            watch.end()
        with self._changed:
            self._changed.wait_for(lambda: not self._watches, _DRAIN_SECONDS)
        for watch in self._open_watches():
            watch.cut()

    def _send(self) -> None:
        for watch in self._open_watches():
            watch.send()

    def _open_watches(self) -> list[_Watch]:
        with self._changed:
            return list(self._watches)

    def _check(
        self, request: HealthCheckRequest, context: grpc.ServicerContext
    ) -> HealthCheckResponse:
        if request.service not in self._statuses:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return HealthCheckResponse(status=self._statuses[request.service])

    def _watch(
        self,
        limiter: ConcurrencyLimiter,
        request: HealthCheckRequest,
        context: grpc.ServicerContext,
        _blocking_send: object,
    ) -> None:
        watch = _Watch(self._status_of(request.service), ServerCall.of(context))
        end = partial(self._end, limiter, context.peer(), watch)
        try:
            with self._changed:
                limiter.acquire(context.peer(), 0)
                self._watches.add(watch)
        except RefusedError:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "limit of Watches reached")
        if not context.add_callback(end):
            end()
            return
        context.send_initial_metadata(())
        watch.send()
        if self._is_ended:
            watch.end()

    def _end(self, limiter: ConcurrencyLimiter, peer: str, watch: _Watch) -> None:
        with self._changed:
            limiter.release(peer, 0)
            self._watches.discard(watch)
            self._changed.notify_all()

    def _status_of(self, service: str) -> Callable[[], int]:
        """Return a function for the status. An unknown name is not kept: it may be long."""
        if service not in self._statuses:
            return lambda: _SERVICE_UNKNOWN
        return lambda: self._statuses[service]


def _deserialize(data: bytes) -> HealthCheckRequest:
    if len(data) > _MAX_REQUEST_BYTES:
        return HealthCheckRequest(service="?")
    return HealthCheckRequest.FromString(data)
