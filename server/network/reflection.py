"""Serve reflection, v1 and v1alpha: a client such as grpcurl needs no .proto files."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc

# Loaded for clients that show the details of errors.
from google.rpc import error_details_pb2, status_pb2  # noqa: F401
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.reflection import ReflectionServicer
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from server.calls.grpcio_internals import with_pool
from taskservice.v1 import error_reason_pb2, task_service_pb2  # noqa: F401

_SERVICES = [
    service.full_name
    for file in (task_service_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
]

# A client keeps its stream open for further requests.
_MAX_STREAMS = 16
# Threads on which a stream over the limit ends the oldest.
_SPARE_THREADS = 4


class _Streams:
    """The open streams, `_MAX_STREAMS` at most: a new one ends the oldest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[grpc.ServicerContext] = []  # The oldest first.

    def add(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._open = [*(stream for stream in self._open if stream.is_active()), context]
            if len(self._open) > _MAX_STREAMS:
                self._open.pop(0).cancel()

    def end_all(self) -> None:
        for context in self._open:
            context.cancel()


def add_reflection(server: grpc.Server) -> Callable[[], None]:
    """Serve both versions: their messages are equal. Return a function that ends the streams."""
    streams = _Streams()
    servicer = ReflectionServicer(_SERVICES)

    def reflect(
        requests: Iterator[ServerReflectionRequest], context: grpc.ServicerContext
    ) -> Iterator[ServerReflectionResponse]:
        streams.add(context)
        with suppress(grpc.RpcError):  # The client disconnected.
            yield from servicer.ServerReflectionInfo(requests, context)

    # Streams last as long as clients like: they must not hold the threads of calls.
    threads = ThreadPoolExecutor(_MAX_STREAMS + _SPARE_THREADS, thread_name_prefix="reflection")
    handler = grpc.stream_stream_rpc_method_handler(
        with_pool(reflect, threads),
        ServerReflectionRequest.FromString,
        ServerReflectionResponse.SerializeToString,
    )
    for version in ("v1", "v1alpha"):
        service = f"grpc.reflection.{version}.ServerReflection"
        methods = {"ServerReflectionInfo": handler}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
    return streams.end_all
