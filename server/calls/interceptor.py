"""What all interceptors share.

Each wraps every method of ours once. grpcio sees them as one: it would ask each of them at every
call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import grpc

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behavior = Callable[[Any, grpc.ServicerContext], Any]


class CallInterceptor:
    """Stands around the calls of our service, unary and streaming.

    A subclass says how: by `around`, or by `unary` and `stream` when it chooses what is called.
    """

    def around(
        self, method: str, request: Any, context: grpc.ServicerContext
    ) -> AbstractContextManager[object]:
        """What a call happens within."""
        return nullcontext()

    def unary(self, method: str, handler: Handler) -> Behavior:
        behavior: Any = handler.unary_unary

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            with self.around(method, request, context):
                return behavior(request, context)

        return unary

    def stream(self, method: str, handler: Handler) -> Behavior:
        behavior: Any = handler.unary_stream or handler.stream_stream

        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self.around(method, request, context):
                yield from behavior(request, context)

        return stream

    def deserializer(self, method: str, deserialize: Any) -> Any:
        return deserialize

    def serializer(self, method: str, serialize: Any) -> Any:
        return serialize

    def wrap(self, method: str, handler: Handler, streams: ThreadPoolExecutor) -> Handler:
        """The handler with this around it; `streams` has the threads that streams run on, unless
        the handler has threads of its own."""
        codecs = {
            "request_deserializer": self.deserializer(method, handler.request_deserializer),
            "response_serializer": self.serializer(method, handler.response_serializer),
        }
        if not handler.response_streaming:
            return grpc.unary_unary_rpc_method_handler(self.unary(method, handler), **codecs)
        stream: Any = self.stream(method, handler)
        # A stream holds its thread for as long as the caller likes: none of those that calls need.
        inner = handler.unary_stream or handler.stream_stream
        stream.experimental_thread_pool = getattr(inner, "experimental_thread_pool", streams)
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, **codecs)
        return grpc.unary_stream_rpc_method_handler(stream, **codecs)


_DEADLINE_SKEW_SECONDS = 0.1


def is_out_of_time(context: grpc.ServicerContext) -> bool:
    """The caller's clock began before ours: it hangs up at its deadline a little before ours."""
    remaining = context.time_remaining()
    return remaining is not None and remaining < _DEADLINE_SKEW_SECONDS


def code_name(context: grpc.ServicerContext) -> str:
    """The code that a caller gets, or would if he still were there."""
    code = context.code()  # type: ignore[attr-defined]
    if code is not None:
        return str(code.name)
    if context.is_active():
        return "OK"
    return "DEADLINE_EXCEEDED" if is_out_of_time(context) else "CANCELLED"
