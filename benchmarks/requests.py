"""Send a request once, and check its answer. `load.py` sends the same bytes many times."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import grpc

_SECONDS = 60
_FRAME_BYTES = 5
_GRPC_HEADERS = {"content-type": "application/grpc", "te": "trailers"}


@dataclass(frozen=True)
class Request:
    """One request, and whether an answer to it is right."""

    path: str
    headers: Mapping[str, str]
    body: bytes | None
    is_right: Callable[[bytes], bool]
    is_grpc: bool

    def send(self, address: str) -> bytes:
        """Send it; return the body of the answer. Raises: ValueError, if that is wrong."""
        answer = self._call(address) if self.is_grpc else self._fetch(address)
        if not self.is_right(answer):
            raise ValueError(f"{self.path}: a wrong answer: {answer[:200]!r}")
        return answer

    def framed_bytes(self, answer: bytes) -> int:
        """Return how many bytes of data an answer with this body has."""
        return len(answer) + (_FRAME_BYTES if self.is_grpc else 0)

    def _call(self, address: str) -> bytes:
        own = {name: text for name, text in self.headers.items() if name not in _GRPC_HEADERS}
        own_connection = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(address, options=own_connection) as channel:
            method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                self.path, request_serializer=bytes, response_deserializer=bytes
            )
            message = (self.body or b"")[_FRAME_BYTES:]
            return method(message, timeout=_SECONDS, metadata=tuple(own.items()))

    def _fetch(self, address: str) -> bytes:
        connection = http.client.HTTPConnection(address, timeout=_SECONDS)
        method = "GET" if self.body is None else "POST"
        connection.request(method, self.path, self.body, dict(self.headers))
        with connection.getresponse() as response:
            answer = response.read()
        connection.close()
        return answer


def grpc_request(
    path: str, message: bytes, is_right: Callable[[bytes], bool], bearer: str | None = None
) -> Request:
    """Frame a message as gRPC does: one byte for compression, and the length."""
    access = {"authorization": f"Bearer {bearer}"} if bearer else {}
    frame = b"\0" + len(message).to_bytes(_FRAME_BYTES - 1, "big") + message
    return Request(path, {**_GRPC_HEADERS, **access}, frame, is_right, is_grpc=True)


def http_request(
    path: str, body: bytes | None, is_right: Callable[[bytes], bool], bearer: str | None = None
) -> Request:
    """Make a request of HTTP/1.1: GET without a body, else POST."""
    headers = {"content-type": "application/json"} if body else {}
    access = {"authorization": f"Bearer {bearer}"} if bearer else {}
    return Request(path, {**headers, **access}, body, is_right, is_grpc=False)
