"""Server reflection, v1 and v1alpha: our contract, the health service, and the details of errors.

With these a client such as grpcurl needs no files: it calls the health service, and shows an
error's details in words. Nothing else that this process has loaded is served.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
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

from taskservice.v1 import task_service_pb2

_FILES: tuple[Any, ...] = (
    task_service_pb2.DESCRIPTOR,
    health_pb2.DESCRIPTOR,
    error_details_pb2.DESCRIPTOR,
    status_pb2.DESCRIPTOR,
)
_SERVICES = tuple(
    service.full_name for file in _FILES for service in file.services_by_name.values()
)

# A client keeps its stream for a while, to ask more.
_STREAMS = 16
# Threads on which one stream too many ends the oldest.
_SPARE = 4


class _Streams:
    """No more than `_STREAMS` are open: for a new one the oldest gives way, so that nobody keeps
    others out by saying nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[grpc.ServicerContext, None] = {}  # The oldest first.

    def add(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._open[context] = None
            oldest = next(iter(self._open)) if len(self._open) > _STREAMS else None
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
    """Serves reflection under both of its names; returns what ends the streams that are open.

    Who may ask, and how often, is the interceptors' matter. grpcio-reflection knows v1alpha only;
    v1 has the same messages, so that the same servicer answers for it.
    """
    streams = _Streams()
    pool = DescriptorPool()
    for file in _FILES:
        _add_file(pool, file)
    servicer: Any = reflection.ReflectionServicer(_SERVICES, pool=pool)

    def reflect(requests: Any, context: grpc.ServicerContext) -> Any:
        streams.add(context)
        with suppress(grpc.RpcError):  # Who hangs up has heard enough.
            yield from servicer.ServerReflectionInfo(requests, context)

    # A stream holds its thread for as long as the client likes: none of those that calls need.
    reflect.experimental_thread_pool = ThreadPoolExecutor(  # type: ignore[attr-defined]
        _STREAMS + _SPARE, thread_name_prefix="reflection"
    )
    handler: Any = grpc.stream_stream_rpc_method_handler(
        reflect,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for version in ("v1", "v1alpha"):
        service = grpc.method_handlers_generic_handler(
            f"grpc.reflection.{version}.ServerReflection", {"ServerReflectionInfo": handler}
        )
        server.add_generic_rpc_handlers((service,))
    return streams.end_all


def _add_file(pool: DescriptorPool, file: FileDescriptor) -> None:
    for dependency in file.dependencies:
        _add_file(pool, dependency)
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    pool.Add(proto)
