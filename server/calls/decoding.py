"""Decode requests after their clients are authorised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import cast

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from server.calls.interceptor import Behavior, CallInterceptor, Deserialize, Handler, StreamBehavior
from server.calls.text import normalise
from server.calls.wire import MALFORMED, check_item_counts
from server.errors import InvalidRequestError, RequestTooLargeError
from server.limits import MAX_BATCH_REQUEST_BYTES, MAX_REQUEST_BYTES
from taskservice.v1 import task_service_pb2

_SERVICE = task_service_pb2.DESCRIPTOR.services_by_name["TaskService"]
_LARGE = ("/BatchCreateTasks", "/BatchUpdateTasks")


class DecodingInterceptor(CallInterceptor):
    """Decode requests on the thread of their call.

    A request that is too large or malformed is the client's error; grpcio has one size limit for
    all methods, and answers INTERNAL.
    """

    def unary(self, method: str, handler: Handler) -> Behavior:
        behavior = handler.unary_unary
        decode = _decoder(method, handler.request_deserializer)
        return lambda request, context: behavior(decode(request), context)

    def stream(self, method: str, handler: Handler) -> StreamBehavior:
        decode = _decoder(method, handler.request_deserializer)
        if single := handler.unary_stream:
            return lambda request, context: single(decode(request), context)
        streamed = handler.stream_stream

        def stream(requests: object, context: grpc.ServicerContext) -> Iterator[object]:
            return streamed(map(decode, cast(Iterable[object], requests)), context)

        return stream

    def deserializer(self, method: str, deserialize: Deserialize) -> Deserialize:
        """Keep the bytes, on the polling thread; of a request that is too large only its size."""
        is_large = method.endswith(_LARGE)
        limit = MAX_BATCH_REQUEST_BYTES if is_large else MAX_REQUEST_BYTES

        def keep(data: bytes) -> bytes | RequestTooLargeError:
            return data if len(data) <= limit else RequestTooLargeError(len(data), limit)

        return keep


def _decoder(method: str, deserialize: Deserialize) -> Callable[[object], Message]:
    kind: Descriptor | None = None
    if found := _SERVICE.methods_by_name.get(method.rpartition("/")[2]):
        kind = found.input_type

    def decode(request: object) -> Message:
        if isinstance(request, Exception):
            raise request
        data = cast(bytes, request)
        if kind:
            check_item_counts(data, kind)
        try:
            message = cast(Message, deserialize(data))
        except DecodeError:
            raise InvalidRequestError([MALFORMED]) from None
        if not data.isascii():
            normalise(message)
        return message

    return decode
