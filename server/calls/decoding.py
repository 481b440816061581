"""Decode requests on the thread of their call, after their clients are authorised.

grpcio would decode them on the polling thread, has one size limit for all methods, and answers a
malformed request with INTERNAL. A decoded request may be a hundred times as large as its bytes.
"""

from collections.abc import Callable
from typing import cast

from google.protobuf.message import DecodeError, Message

from server.calls.text import normalise
from server.calls.wire import (
    MALFORMED,
    MAX_BATCH_REQUEST_BYTES,
    MAX_REQUEST_BYTES,
    check_item_counts,
)
from server.errors import InvalidRequestError, RequestTooLargeError
from taskservice.v1 import task_service_pb2

_METHODS = task_service_pb2.DESCRIPTOR.services_by_name["TaskService"].methods_by_name
_LARGE = ("/BatchCreateTasks", "/BatchUpdateTasks")


def receiver(method: str) -> Callable[[bytes], bytes | RequestTooLargeError]:
    """Return what grpcio gets as deserializer: it keeps the bytes unless they are too many."""
    limit = MAX_BATCH_REQUEST_BYTES if method.endswith(_LARGE) else MAX_REQUEST_BYTES

    def keep(data: bytes) -> bytes | RequestTooLargeError:
        return data if len(data) <= limit else RequestTooLargeError(len(data), limit)

    return keep


def decoder(method: str, deserialize: Callable[[bytes], object]) -> Callable[[object], Message]:
    """Return a function for the requests of a method, as `receiver` leaves them.

    It raises: RequestTooLargeError, InvalidRequestError.
    """
    found = _METHODS.get(method.rpartition("/")[2])

    def decode(request: object) -> Message:
        if isinstance(request, Exception):
            raise request
        data = cast(bytes, request)
        if found:
            check_item_counts(data, found.input_type)
        try:
            message = cast(Message, deserialize(data))
        except DecodeError:
            raise InvalidRequestError([MALFORMED]) from None
        if not data.isascii():
            normalise(message)
        return message

    return decode
