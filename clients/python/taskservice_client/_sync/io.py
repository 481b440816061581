"""What differs from `_async/io.py`: channels, locks and pauses of threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Protocol, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import WatchTasksRequest, WatchTasksResponse
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from taskservice_client.channels import Options

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Item = TypeVar("Item", bound=Message | str)

Stub: TypeAlias = TaskServiceStub
Channel: TypeAlias = grpc.Channel
Interceptor: TypeAlias = grpc.UnaryUnaryClientInterceptor | grpc.UnaryStreamClientInterceptor
OpenStream: TypeAlias = "grpc.UnaryStreamMultiCallable[WatchTasksRequest, WatchTasksResponse]"
Invoke: TypeAlias = "grpc.UnaryUnaryMultiCallable[Request, Response]"
CallPart: TypeAlias = Callable[[Sequence[Item], float | None], Sequence[Task]]
TokenCallable: TypeAlias = Callable[[], str]

Cancelled = CancelledError
Lock = threading.Lock
Stop = threading.Event
sleep = time.sleep
stub_of = TaskServiceStub


class Stream(Protocol):
    """A stream of responses."""

    def __iter__(self) -> Iterator[WatchTasksResponse]: ...
    def cancel(self) -> bool: ...


def call_token(source: TokenCallable) -> str:
    """Call the function."""
    return source()


def open_channel(
    target: str,
    credentials: grpc.ChannelCredentials | None,
    options: Options,
    interceptors: Sequence[Interceptor],
) -> Channel:
    """Open a channel, plaintext without credentials."""
    if credentials is None:
        channel = grpc.insecure_channel(target, options)
    else:
        channel = grpc.secure_channel(target, credentials, options)
    return grpc.intercept_channel(channel, *interceptors) if interceptors else channel
