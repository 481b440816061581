"""What all interceptors share.

Each wraps a method once and keeps the wrapped handler, for grpcio asks at every call. What is not
a method of our service passes through untouched: unknown methods stay UNIMPLEMENTED, and the
health service's streams stay alive.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import grpc

OURS = "/taskservice.v1."

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behavior = Callable[[Any, grpc.ServicerContext], Any]


class CallInterceptor(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Stands around the calls of our service, unary and streaming; a subclass says how."""

    def __init__(self, streams: ThreadPoolExecutor) -> None:
        self._streams = streams
        self._wrapped: dict[str, Handler] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method = handler_call_details.method
        handler = continuation(handler_call_details)
        if handler is None or not method.startswith(OURS):
            return handler
        if method not in self._wrapped:
            self._wrapped[method] = self._wrap(method, handler)
        return self._wrapped[method]

    @abstractmethod
    def around(
        self, method: str, request: Any, context: grpc.ServicerContext
    ) -> AbstractContextManager[object]:
        """What a call happens within."""

    def unary(self, method: str, handler: Handler) -> Behavior:
        behavior: Any = handler.unary_unary

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            with self.around(method, request, context):
                return behavior(request, context)

        return unary

    def stream(self, method: str, handler: Handler) -> Behavior:
        behavior: Any = handler.unary_stream

        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self.around(method, request, context):
                yield from behavior(request, context)

        return stream

    def deserializer(self, method: str, deserialize: Any) -> Any:
        return deserialize

    def serializer(self, method: str, serialize: Any) -> Any:
        return serialize

    def _wrap(self, method: str, handler: Handler) -> Handler:
        codecs = {
            "request_deserializer": self.deserializer(method, handler.request_deserializer),
            "response_serializer": self.serializer(method, handler.response_serializer),
        }
        if not handler.response_streaming:
            return grpc.unary_unary_rpc_method_handler(self.unary(method, handler), **codecs)
        stream: Any = self.stream(method, handler)
        # A stream holds its thread for as long as the caller likes: none of those that calls need.
        stream.experimental_thread_pool = self._streams
        return grpc.unary_stream_rpc_method_handler(stream, **codecs)
