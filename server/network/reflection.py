"""Serve reflection, v1 and v1alpha: the contract, health, and the messages of error details.

With these a client such as grpcurl needs no .proto files. Other loaded descriptors are not served.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from server.calls.grpcio_internals import with_pool
from taskservice.v1 import error_reason_pb2, task_service_pb2

_FILES: tuple[Any, ...] = (
    task_service_pb2.DESCRIPTOR,
    error_reason_pb2.DESCRIPTOR,
    health_pb2.DESCRIPTOR,
    error_details_pb2.DESCRIPTOR,
    status_pb2.DESCRIPTOR,
)
_SERVICES = tuple(
    service.full_name for file in _FILES for service in file.services_by_name.values()
)

# A client keeps its stream open for further requests.
_MAX_STREAMS = 16
# Threads on which a stream over the limit ends the oldest.
_SPARE_THREADS = 4


class _Streams:
    """The open streams, `_MAX_STREAMS` at most: a new one ends the oldest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[grpc.ServicerContext, None] = {}  # The oldest first.

    def add(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._open[context] = None
            oldest = next(iter(self._open)) if len(self._open) > _MAX_STREAMS else None
        if not context.add_callback(lambda: self._forget(context)):
            self._forget(context)
        if oldest:
            self._forget(oldest)
            oldest.cancel()

    def end_all(self) -> None:
        for context in list(self._open):
            context.cancel()

    def _forget(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._open.pop(context, None)


def add_reflection(server: grpc.Server) -> Callable[[], None]:
    """Serve reflection under both names; return a function that ends the open streams.

    grpcio-reflection knows only v1alpha; v1 has the same messages.
    """
    streams = _Streams()
    handlers = {"ServerReflectionInfo": _handler(streams)}
    for version in ("v1", "v1alpha"):
        service = grpc.method_handlers_generic_handler(
            f"grpc.reflection.{version}.ServerReflection", handlers
        )
        server.add_generic_rpc_handlers((service,))
    return streams.end_all


def _handler(streams: _Streams) -> Any:
    servicer: Any = reflection.ReflectionServicer(_SERVICES, pool=_descriptor_pool())

    def reflect(requests: object, context: grpc.ServicerContext) -> Iterator[object]:
        streams.add(context)
        with suppress(grpc.RpcError):  # The client disconnected.
            yield from servicer.ServerReflectionInfo(requests, context)

    # Streams last as long as clients like: they must not hold the threads of calls.
    threads = ThreadPoolExecutor(_MAX_STREAMS + _SPARE_THREADS, thread_name_prefix="reflection")
    return grpc.stream_stream_rpc_method_handler(
        with_pool(reflect, threads),
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )


def _descriptor_pool() -> DescriptorPool:
    pool = DescriptorPool()
    for file in _FILES:
        _add_file(pool, file)
    return pool


def _add_file(pool: DescriptorPool, file: FileDescriptor) -> None:
    for dependency in file.dependencies:
        _add_file(pool, dependency)
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    pool.Add(proto)
