"""Server reflection, v1 and v1alpha, of our contract and what it imports, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_status import rpc_status

from server.errors import status_of
from taskservice.v1 import task_service_pb2

_SERVICES = tuple(
    service.full_name for service in task_service_pb2.DESCRIPTOR.services_by_name.values()
)

_STREAMS = 16


def add_reflection(
    server: grpc.Server, admit: Callable[[grpc.ServicerContext], object]
) -> Callable[[], None]:
    """Serves reflection under both of its names; returns what ends the streams that are open.

    `admit` raises, or aborts, for callers who may not ask: no interceptor of ours stands around
    reflection. grpcio-reflection knows v1alpha only; v1 has the same messages, so that the same
    servicer answers for it.
    """
    streams: set[Any] = set()
    pool = DescriptorPool()
    _add_file(pool, task_service_pb2.DESCRIPTOR)
    servicer: Any = reflection.ReflectionServicer(_SERVICES, pool=pool)

    def reflect(requests: Any, context: grpc.ServicerContext) -> Any:
        try:
            admit(context)
        except Exception as error:
            if status := status_of(error):
                context.abort_with_status(rpc_status.to_status(status))
            raise
        streams.add(context)
        context.add_callback(lambda: streams.discard(context))
        yield from servicer.ServerReflectionInfo(requests, context)

    # A stream holds its thread for as long as the client likes: none of those that calls need.
    reflect.experimental_thread_pool = ThreadPoolExecutor(  # type: ignore[attr-defined]
        _STREAMS, thread_name_prefix="reflection"
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

    def end_streams() -> None:
        for stream in list(streams):
            stream.cancel()

    return end_streams


def _add_file(pool: DescriptorPool, file: FileDescriptor) -> None:
    for dependency in file.dependencies:
        _add_file(pool, dependency)
    proto = FileDescriptorProto()
    file.CopyToProto(proto)
    pool.Add(proto)
