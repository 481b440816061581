"""Run what surrounds each call, in one function for unary calls and one for streams.

grpcio sees one interceptor, which makes the handler of each method once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias, cast

import grpc

from server.access.authorization import WriteAnswer, requires_read, visible_to
from server.calls import wire
from server.calls.access import Access
from server.calls.accounting import Accounting, note_error
from server.calls.current import begin_call, current_call
from server.calls.grpcio_internals import pool_of, with_pool
from server.calls.tracing import Tracing
from server.errors import RefusedError
from storage.cancellation import Cancellation
from storage.database import Database
from storage.errors import StatementCancelledError
from taskservice.v1.task_pb2 import Task

Behavior: TypeAlias = Callable[[object, grpc.ServicerContext], object]
StreamBehavior: TypeAlias = Callable[[object, grpc.ServicerContext], Iterator[object]]
_GrpcHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_WRAPPED_PACKAGES = "/taskservice.v1.", "/grpc.reflection."


class Handler(Protocol):
    """A handler as grpcio makes it: one of the three behaviors is there."""

    request_streaming: bool
    response_streaming: bool
    request_deserializer: Callable[[bytes], object]
    response_serializer: Callable[[object], bytes]
    unary_unary: Behavior
    unary_stream: StreamBehavior | None
    stream_stream: StreamBehavior


class CallPath(grpc.ServerInterceptor):
    """Wrap the methods of TaskService and of reflection.

    Other methods pass unchanged: unknown ones stay UNIMPLEMENTED, and health has its own threads.
    `streams` runs the streams that have no thread pool of their own.
    """

    def __init__(
        self, access: Access, tracing: Tracing, database: Database, streams: ThreadPoolExecutor
    ) -> None:
        self._accounting = Accounting()
        self._access = access
        self._tracing = tracing
        self._database = database
        self._streams = streams
        self._handlers: dict[str, _GrpcHandler] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], _GrpcHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _GrpcHandler | None:
        """Return the handler of a call. This runs on the polling thread: it must be fast."""
        method = handler_call_details.method
        handler = self._handlers.get(method)
        if handler is None:
            handler = continuation(handler_call_details)
            if handler is None:
                self._accounting.end_unknown(method)
            if handler is None or not method.startswith(_WRAPPED_PACKAGES):
                return handler
            wrap = self._stream if handler.response_streaming else self._unary
            handler = self._handlers[method] = wrap(method, cast(Handler, handler))
        begin_call(method, is_stream=handler.response_streaming)
        return handler

    def _unary(self, method: str, handler: Handler) -> _GrpcHandler:
        work, encode = handler.unary_unary, handler.response_serializer
        decode = wire.decoder(method, handler.request_deserializer)
        is_write = not requires_read(method)

        def serve(request: object, context: grpc.ServicerContext) -> bytes:
            call = current_call()
            self._accounting.begin(call, request, context)
            try:
                if isinstance(request, RefusedError):
                    raise request  # By admission, before its credentials were verified.
                self._access.check(call, method, context)
                with self._cancellable(context):
                    answer = work(decode(request), context)
                    if is_write:
                        answer = visible_to(call.principal, cast(WriteAnswer, answer))
                    data = encode(answer)
                if call.is_rest and isinstance(answer, Task):
                    context.send_initial_metadata((("task-id", answer.id), ("etag", answer.etag)))
            except Exception as error:
                status = note_error(call, error, context)
                self._accounting.end(call, context)
                context.abort_with_status(status)
            call.sent_bytes = len(data)
            self._accounting.end(call, context)
            return data

        return _handler(
            grpc.unary_unary_rpc_method_handler,
            self._tracing.of(method, serve, is_stream=False),
            method,
        )

    def _stream(self, method: str, handler: Handler) -> _GrpcHandler:
        work, encode = handler.unary_stream or handler.stream_stream, handler.response_serializer
        decode = wire.decoder(method, handler.request_deserializer)

        def serve(request: object, context: grpc.ServicerContext) -> Iterator[bytes]:
            call = current_call()
            self._accounting.begin(call, request, context)
            try:
                if isinstance(request, RefusedError):
                    raise request
                self._access.check(call, method, context)
                if handler.request_streaming:
                    message: object = map(decode, self._access.limited(call, request))
                else:
                    message = decode(request)
                with self._cancellable(context):
                    for answer in work(message, context):
                        data = encode(answer)
                        call.sent_bytes += len(data)
                        yield data
            except Exception as error:
                context.abort_with_status(note_error(call, error, context))
            finally:
                self._accounting.end(call, context)

        kind = "stream_stream" if handler.request_streaming else "unary_stream"
        behavior = self._tracing.of(method, serve, is_stream=True)
        pooled = with_pool(behavior, pool_of(work) or self._streams)
        return _handler(getattr(grpc, f"{kind}_rpc_method_handler"), pooled, method)

    def _cancellable(self, context: grpc.ServicerContext) -> AbstractContextManager[object]:
        """Cancel the running statement when the call ends before it."""
        cancellation = Cancellation(context.time_remaining())
        if not context.add_callback(lambda: self._database.cancel_later(cancellation)):
            raise StatementCancelledError
        return cancellation


def _handler(
    make: Callable[..., _GrpcHandler], behavior: Callable[..., object], method: str
) -> _GrpcHandler:
    """Make a handler that gets requests, and returns answers, as bytes."""
    return make(behavior, wire.receiver(method), None)
