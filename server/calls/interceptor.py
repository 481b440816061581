"""The base of all interceptors.

Each wraps every method once. grpcio sees them as one interceptor, which it asks once a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeAlias, cast

import grpc

from server.calls.grpcio_internals import pool_of, with_pool

Behavior: TypeAlias = Callable[[object, grpc.ServicerContext], object]
StreamBehavior: TypeAlias = Callable[[object, grpc.ServicerContext], Iterator[object]]
Deserialize: TypeAlias = Callable[[bytes], object]
Serialize: TypeAlias = Callable[[object], bytes]


class Handler(Protocol):
    """The handler of a method, as grpcio makes it: one of the three behaviors is there."""

    request_streaming: bool
    response_streaming: bool
    request_deserializer: Deserialize
    response_serializer: Serialize
    unary_unary: Behavior
    unary_stream: StreamBehavior | None
    stream_stream: StreamBehavior


class CallInterceptor:
    """Wrap the methods of TaskService, unary and streaming.

    A subclass overrides `around`, or `unary` and `stream` to choose what is called.
    """

    def around(
        self, method: str, request: object, context: grpc.ServicerContext
    ) -> AbstractContextManager[object]:
        """Return the context in which a call runs."""
        return nullcontext()

    def unary(self, method: str, handler: Handler) -> Behavior:
        behavior = handler.unary_unary

        def unary(request: object, context: grpc.ServicerContext) -> object:
            with self.around(method, request, context):
                return behavior(request, context)

        return unary

    def stream(self, method: str, handler: Handler) -> StreamBehavior:
        behavior = handler.unary_stream or handler.stream_stream

        def stream(request: object, context: grpc.ServicerContext) -> Iterator[object]:
            with self.around(method, request, context):
                yield from behavior(request, context)

        return stream

    def deserializer(self, method: str, deserialize: Deserialize) -> Deserialize:
        return deserialize

    def serializer(self, method: str, serialize: Serialize) -> Serialize:
        return serialize

    def wrap(self, method: str, handler: Handler, streams: ThreadPoolExecutor) -> Handler:
        """Return the wrapped handler; a stream runs in its own pool, or else in `streams`."""
        deserialize = self.deserializer(method, handler.request_deserializer)
        serialize = self.serializer(method, handler.response_serializer)
        behavior: Behavior
        if not handler.response_streaming:
            make, behavior = grpc.unary_unary_rpc_method_handler, self.unary(method, handler)
        else:
            is_stream = handler.request_streaming
            make = (
                grpc.stream_stream_rpc_method_handler
                if is_stream
                else grpc.unary_stream_rpc_method_handler
            )
            inner = handler.unary_stream or handler.stream_stream
            behavior = with_pool(self.stream(method, handler), pool_of(inner) or streams)
        return cast(Handler, make(behavior, deserialize, serialize))


# A client starts its deadline before the server does, and so cancels shortly before it here.
_DEADLINE_SKEW_SECONDS = 0.1


def is_out_of_time(context: grpc.ServicerContext) -> bool:
    """Return whether the deadline has passed at the client."""
    remaining = context.time_remaining()
    return remaining is not None and remaining < _DEADLINE_SKEW_SECONDS


def code_name(context: grpc.ServicerContext) -> str:
    """Return the code of a call that has ended, as its client sees it."""
    code = context.code()  # type: ignore[attr-defined]
    if code is not None:
        return str(code.name)
    if context.is_active():
        return "OK"
    return "DEADLINE_EXCEEDED" if is_out_of_time(context) else "CANCELLED"
