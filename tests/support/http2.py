"""Send raw HTTP/2 frames, also invalid ones."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

from google.protobuf.message import Message
from hpack import Encoder
from hyperframe.frame import DataFrame, Frame, HeadersFrame, SettingsFrame

from tests.support.service import PATIENCE_SECONDS

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SERVICE = "/taskservice.v1.TaskService"
HEALTH = "/grpc.health.v1.Health"

_HEADER_BYTES = 9

F = TypeVar("F", bound=Frame)


def connected(port: int) -> socket.socket:
    """A connection on which nothing was said yet."""
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)


class RawConnection:
    """A connection that has said what HTTP/2 begins with; closed at the end of its block."""

    def __init__(self, port: int, settings: dict[int, int] | None = None) -> None:
        self.socket = connected(port)
        self.socket.sendall(PREFACE + SettingsFrame(0, settings).serialize())

    def __enter__(self) -> RawConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *frames: Frame, times: int = 1) -> bool:
        """Whether they could be sent: the server may have had enough of this connection."""
        with suppress(ConnectionError):
            self.socket.sendall(b"".join(frame.serialize() for frame in frames) * times)
            return True
        return False

    def received(self) -> Iterator[Frame]:
        """The frames that come, until the server closes the connection."""
        with suppress(ConnectionError), self.socket.makefile("rb") as stream:
            while header := stream.read(_HEADER_BYTES):
                frame, length = Frame.parse_frame_header(memoryview(header))
                frame.parse_body(memoryview(stream.read(length)))
                yield frame

    def await_frame(self, kind: type[F]) -> F:
        """The next frame of this kind."""
        return next(frame for frame in self.received() if isinstance(frame, kind))


def call_headers(
    stream: int,
    method: str = "GetTaskStats",
    more: Iterable[tuple[str, str]] = (),
    service: str = SERVICE,
) -> HeadersFrame:
    """What a call begins with. It is compressed by itself, and so can be sent in any order."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", f"{service}/{method}"),
        (":authority", "127.0.0.1"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *more,
    ]
    return HeadersFrame(stream, Encoder().encode(fields), flags=["END_HEADERS"])


def call(
    stream: int, method: str, request: Message, service: str = SERVICE
) -> tuple[HeadersFrame, DataFrame]:
    """A call as a whole."""
    data = request.SerializeToString()
    head = bytes(1) + len(data).to_bytes(4, "big")
    return call_headers(stream, method, service=service), DataFrame(
        stream, head + data, flags=["END_STREAM"]
    )
