"""What happens around every call of ours; `interceptors` says in which order, and why.

Each wraps a method once and keeps the wrapped handler, for grpcio asks at every call. What is not
a method of our service passes through untouched: unknown methods stay UNIMPLEMENTED, and the
health service's streams stay alive.
"""

from __future__ import annotations

import re
import time
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from server.errors import (
    InvalidRequestError,
    RequestTooLargeError,
    internal_status,
    status_of,
    violation,
)
from storage.database import Cancellation, Database
from storage.errors import StatementCancelledError

log = structlog.get_logger()

OURS = "/taskservice.v1."

request_id: ContextVar[str] = ContextVar("request_id", default="")

# The largest request that keeps the rules has less than 16 KiB; a batch of them may have so much
# that its answer still is within the 4 MiB that a client takes by default.
MAX_REQUEST_BYTES = 256 * 1024
MAX_BATCH_BYTES = 3 * 1024 * 1024
_LARGE = ("/BatchCreateTasks", "/BatchUpdateTasks")

_DEADLINE_SKEW_SECONDS = 0.1
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def interceptors(
    database: Database, streams: ThreadPoolExecutor
) -> list[grpc.ServerInterceptor[Any, Any]]:
    """The interceptors, the outermost first. `streams` has the threads that streams run on."""
    return [
        CallLogInterceptor(streams),  # Outermost, so that it sees the code a caller sees.
        ErrorInterceptor(streams),  # Whatever is raised below becomes a status here.
        # Innermost: it covers the statements and no more.
        CancellationInterceptor(streams, database),
    ]


class CallInterceptor(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Stands around the calls of our service, unary and streaming; a subclass says how."""

    def __init__(self, streams: ThreadPoolExecutor) -> None:
        self._streams = streams
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = handler_call_details.method
        if method in self._wrapped:
            return self._wrapped[method]
        handler = continuation(handler_call_details)
        if handler is None or not method.startswith(OURS):
            return handler
        wrap = self._wrap_stream if handler.response_streaming else self._wrap_unary
        self._wrapped[method] = wrap(method, handler)
        return self._wrapped[method]

    @abstractmethod
    def around(
        self, method: str, request: Any, context: grpc.ServicerContext
    ) -> AbstractContextManager[object]:
        """What a call happens within."""

    def deserializer(self, method: str, deserialize: Any) -> Any:
        return deserialize

    def _wrap_unary(self, method: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        behavior = handler.unary_unary

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            with self.around(method, request, context):
                return behavior(request, context)

        return grpc.unary_unary_rpc_method_handler(
            unary,
            request_deserializer=self.deserializer(method, handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _wrap_stream(self, method: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        behavior = handler.unary_stream

        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self.around(method, request, context):
                yield from behavior(request, context)

        # A stream holds its thread for as long as the caller likes: none of those that calls need.
        stream.experimental_thread_pool = self._streams  # type: ignore[attr-defined]
        return grpc.unary_stream_rpc_method_handler(
            stream,
            request_deserializer=self.deserializer(method, handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )


class CallLogInterceptor(CallInterceptor):
    """Writes one line for each call: the method, the code, how long, for whom."""

    @contextmanager
    def around(self, method: str, request: Any, context: grpc.ServicerContext) -> Iterator[None]:
        request_id.set(_request_id(context))
        began = time.perf_counter()
        try:
            yield
        finally:
            log.info(
                "call",
                method=method,
                code=_code_name(context),
                duration_ms=round((time.perf_counter() - began) * 1000, 3),
                peer=context.peer(),
                request_id=request_id.get(),
            )


class ErrorInterceptor(CallInterceptor):
    """Turns what a call raises into a status with details; what is unknown into INTERNAL."""

    @contextmanager
    def around(self, method: str, request: Any, context: grpc.ServicerContext) -> Iterator[None]:
        try:
            if isinstance(request, Exception):
                raise request
            yield
        except Exception as error:
            context.abort_with_status(rpc_status.to_status(_status(error, context, method)))

    def deserializer(self, method: str, deserialize: Any) -> Any:
        """What arrives may be no message, or one too large to look at: the caller's mistakes.

        grpcio answers the first with INTERNAL, and knows one limit for all methods.
        """
        limit = MAX_BATCH_BYTES if method.endswith(_LARGE) else MAX_REQUEST_BYTES

        def lenient(data: bytes) -> Any:
            if len(data) > limit:
                return RequestTooLargeError(len(data), limit)
            try:
                return deserialize(data)
            except DecodeError:
                return InvalidRequestError([_UNREADABLE])

        return lenient


class CancellationInterceptor(CallInterceptor):
    """Ends a call's statement in the database when the call ends before it: by its deadline, by
    the caller, or because the connection broke."""

    def __init__(self, streams: ThreadPoolExecutor, database: Database) -> None:
        super().__init__(streams)
        self._database = database

    @contextmanager
    def around(self, method: str, request: Any, context: grpc.ServicerContext) -> Iterator[None]:
        with Cancellation() as cancellation:
            if not context.add_callback(lambda: self._database.cancel_later(cancellation)):
                raise StatementCancelledError
            yield


_UNREADABLE = violation("", "the request is not a message of this method", "MALFORMED")


def _request_id(context: grpc.ServicerContext) -> str:
    """The caller's x-request-id, or one of ours."""
    for key, value in context.invocation_metadata():
        if key == "x-request-id" and _REQUEST_ID.fullmatch(str(value)):
            return str(value)
    return uuid.uuid4().hex


def _status(error: Exception, context: grpc.ServicerContext, method: str) -> status_pb2.Status:
    known = status_of(error)
    if known is None:
        log.error("internal error", method=method, request_id=request_id.get(), exc_info=error)
        return internal_status(request_id.get())
    if isinstance(error, StatementCancelledError) and _is_out_of_time(context):
        known.code = code_pb2.DEADLINE_EXCEEDED
    return known


def _is_out_of_time(context: grpc.ServicerContext) -> bool:
    """The caller's clock began before ours: it hangs up at its deadline a little before ours."""
    remaining = context.time_remaining()
    return remaining is not None and remaining < _DEADLINE_SKEW_SECONDS


def _code_name(context: grpc.ServicerContext) -> str:
    code = context.code()  # type: ignore[attr-defined]
    if code is None:
        return "OK" if context.is_active() else "CANCELLED"
    return str(code.name)
