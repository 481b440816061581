"""A request is bytes until its caller is let in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError

from server.calls.interceptor import Behavior, CallInterceptor, Handler
from server.calls.text import normalise
from server.calls.wire import MALFORMED, check_item_counts
from server.errors import InvalidRequestError, RequestTooLargeError
from taskservice.v1 import task_service_pb2

_SERVICE = task_service_pb2.DESCRIPTOR.services_by_name["TaskService"]
_LARGE = ("/BatchCreateTasks", "/BatchUpdateTasks")


class DecodingInterceptor(CallInterceptor):
    """Decodes requests on the thread of their call.

    What arrives may be too large, or no message: the caller's mistakes, for which grpcio knows one
    limit for all methods, and INTERNAL.
    """

    def __init__(self, *, max_request_bytes: int, max_batch_request_bytes: int) -> None:
        self._max_request_bytes = max_request_bytes
        self._max_batch_request_bytes = max_batch_request_bytes

    def unary(self, method: str, handler: Handler) -> Behavior:
        behavior: Any = handler.unary_unary
        decode = _decoder(method, handler.request_deserializer)
        return lambda request, context: behavior(decode(request), context)

    def stream(self, method: str, handler: Handler) -> Behavior:
        decode = _decoder(method, handler.request_deserializer)
        if streamed := handler.stream_stream:
            return lambda requests, context: streamed(map(decode, requests), context)
        behavior: Any = handler.unary_stream
        return lambda request, context: behavior(decode(request), context)

    def deserializer(self, method: str, deserialize: Any) -> Any:
        """Keeps the bytes, on the polling thread; what is too large leaves only its size."""
        is_large = method.endswith(_LARGE)
        limit = self._max_batch_request_bytes if is_large else self._max_request_bytes

        def keep(data: bytes) -> bytes | RequestTooLargeError:
            return data if len(data) <= limit else RequestTooLargeError(len(data), limit)

        return keep


def _decoder(method: str, deserialize: Any) -> Callable[[bytes | Exception], Any]:
    kind: Descriptor | None = None
    if found := _SERVICE.methods_by_name.get(method.rpartition("/")[2]):
        kind = found.input_type

    def decode(request: bytes | Exception) -> Any:
        if isinstance(request, Exception):
            raise request
        if kind:
            check_item_counts(request, kind)
        try:
            message = deserialize(request)
        except DecodeError:
            raise InvalidRequestError([MALFORMED]) from None
        if not request.isascii():
            normalise(message)
        return message

    return decode
