"""A gRPC server that fails as told, for what a real service does rarely."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from server.network.health import READINESS, HealthServicer
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import BatchGetTasksResponse
from tests.support.service import SERVING

_TASK = Task(id="an id", etag="an etag")
_BATCH = BatchGetTasksResponse(tasks=[_TASK])


class Failure(NamedTuple):
    """A status that the server sends instead of a task."""

    code: grpc.StatusCode
    reason: str = ""
    retry_after: float | None = None
    details: bytes = b""
    """Sent in place of the details that follow from the others."""

    def trailers(self) -> tuple[tuple[str, bytes], ...]:
        if self.details:
            return (("grpc-status-details-bin", self.details),)
        if not self.reason:
            return ()
        details: list[Message] = [
            error_details_pb2.ErrorInfo(reason=self.reason, domain="taskservice")
        ]
        if self.retry_after is not None:
            delay = Duration()
            delay.FromMilliseconds(int(self.retry_after * 1000))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        status = status_pb2.Status(code=self.code.value[0], message="as told")
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        return (("grpc-status-details-bin", status.SerializeToString()),)


class Received(NamedTuple):
    """A call that arrived."""

    method: str
    request: bytes
    metadata: dict[str, str | bytes]
    seconds: float
    """The time until its deadline."""


class FailingServer(grpc.GenericRpcHandler):
    """Answer with the failures in their order, then with a task, or an empty response."""

    def __init__(self, failures: Sequence[Failure]) -> None:
        self.failures = deque(failures)
        self.received: list[Received] = []

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method.rpartition("/")[2]
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._answer(method, request, context)
        )

    def _answer(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        metadata = dict(context.invocation_metadata())
        seconds = context.time_remaining()
        self.received.append(Received(method, request, metadata, seconds))
        if self.failures:
            failure = self.failures.popleft()
            context.set_trailing_metadata(failure.trailers())
            context.abort(failure.code, "as told")
        return _answer(method)


def _answer(method: str) -> bytes:
    if method == "BatchGetTasks":
        return _BATCH.SerializeToString()
    return _TASK.SerializeToString() if method.endswith("Task") else b""


@contextmanager
def failing(*failures: Failure) -> Iterator[tuple[str, FailingServer]]:
    """Run the server; yield its address and itself."""
    service = FailingServer(failures)
    health = HealthServicer()
    health.set(READINESS, SERVING)
    server = grpc.server(ThreadPoolExecutor(4))
    health.add_to(server)
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", service
    finally:
        health.end_watches()
        server.stop(0).wait()
