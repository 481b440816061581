"""Decode requests on the thread of their call, after their clients are authorised.

grpcio would decode them on the polling thread, has one size limit for all methods, and answers a
malformed request with INTERNAL.

The items of a large message are counted before it is parsed: an item of two bytes becomes an object
of 200, and 3 MiB of them, which compress to 3 KB, 160 MB.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from server.calls.text import normalise
from server.errors import InvalidRequestError, RequestTooLargeError, violation
from taskservice.v1.task_service_pb2 import DESCRIPTOR

# The contract's limit for the items of a batch, and for any other repeated field.
MAX_BATCH_ITEMS = 1000
MAX_REQUEST_BYTES = 256 * 1024
# The response to a batch of this size is within the 4 MiB that clients accept by default.
MAX_BATCH_REQUEST_BYTES = 3 * 1024 * 1024
# A message that keeps the rules of the contract is smaller, except for a batch.
LARGEST_VALID_BYTES = 16 * 1024

# A varint has ten bytes at most, of seven bits each.
_LAST_SHIFT = 63

_METHODS = DESCRIPTOR.services_by_name["TaskService"].methods_by_name
_LARGE = ("/BatchCreateTasks", "/BatchUpdateTasks")

_MALFORMED = violation("", "the request is not a message of this method", "MALFORMED")


def receiver(method: str) -> Callable[[bytes], bytes | RequestTooLargeError]:
    """Return what grpcio gets as deserializer: it keeps the bytes unless they are too many."""
    limit = MAX_BATCH_REQUEST_BYTES if method.endswith(_LARGE) else MAX_REQUEST_BYTES

    def keep(data: bytes) -> bytes | RequestTooLargeError:
        return data if len(data) <= limit else RequestTooLargeError(len(data), limit)

    return keep


def decoder(method: str, deserialize: Callable[[bytes], object]) -> Callable[[object], Message]:
    """Return a function that raises RequestTooLargeError and InvalidRequestError."""
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
            raise InvalidRequestError([_MALFORMED]) from None
        if not data.isascii():
            normalise(message)
        return message

    return decode


class _Span(NamedTuple):
    begin: int
    end: int

    @property
    def is_large(self) -> bool:
        return self.end - self.begin > LARGEST_VALID_BYTES


def check_item_counts(data: bytes, kind: Descriptor) -> None:
    """Limit the items of each repeated field, at any depth. Raises: InvalidRequestError."""
    whole = _Span(0, len(data))
    if whole.is_large:
        try:
            _check(data, whole, kind, "")
        except IndexError:
            raise InvalidRequestError([_MALFORMED]) from None


def _check(data: bytes, span: _Span, kind: Descriptor, prefix: str) -> None:
    known, counts = _fields_of(kind), Counter[int]()
    for number, value in _length_delimited(data, span):
        field = known.get(number)
        if field is None:
            continue
        count = counts[number] = counts[number] + 1
        if field.is_repeated and count > MAX_BATCH_ITEMS:
            description = f"has more than {MAX_BATCH_ITEMS} items"
            violated = violation(prefix + field.name, description, "REPEATED_MAX_ITEMS")
            raise InvalidRequestError([violated])
        if field.message_type and not field.is_repeated and count > 1:
            raise InvalidRequestError([_MALFORMED])  # Legal, and merged; no library writes it.
        if field.message_type and value.is_large:
            item = f"[{count - 1}]" if field.is_repeated else ""
            _check(data, value, field.message_type, f"{prefix}{field.name}{item}.")


@cache
def _fields_of(kind: Descriptor) -> dict[int, FieldDescriptor]:
    return {field.number: field for field in kind.fields}


def _length_delimited(data: bytes, span: _Span) -> Iterator[tuple[int, _Span]]:
    """Yield the fields that have a length. Raises: InvalidRequestError; IndexError at the end."""
    at = span.begin
    while at < span.end:
        tag, at = _varint(data, at)
        begin = at
        match tag & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 2:
                size, begin = _varint(data, at)
                at = begin + size
            case 5:
                at += 4
            case _:  # Groups, which the contract does not have.
                raise InvalidRequestError([_MALFORMED])
        if at > span.end:
            raise InvalidRequestError([_MALFORMED])
        if tag & 7 == 2:
            yield tag >> 3, _Span(begin, at)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins there, and where it ends."""
    byte = data[at]
    value, shift = byte & 0x7F, 7
    while byte & 0x80:
        if shift > _LAST_SHIFT:
            raise InvalidRequestError([_MALFORMED])
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift += 7
    return value, at + 1
