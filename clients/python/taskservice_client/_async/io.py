"""What differs from `_sync/io.py`: channels, locks and pauses of asyncio."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import WatchTasksRequest, WatchTasksResponse
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from taskservice_client.channels import Options

if TYPE_CHECKING:  # Only the types know it.
    from taskservice.v1.task_service_pb2_grpc import TaskServiceAsyncStub

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Item = TypeVar("Item", bound=Message | str)

Stub: TypeAlias = "TaskServiceAsyncStub"
Channel: TypeAlias = grpc.aio.Channel
Interceptor: TypeAlias = grpc.aio.ClientInterceptor
Invoke: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[Request, Response]"
OpenStream: TypeAlias = "grpc.aio.UnaryStreamMultiCallable[WatchTasksRequest, WatchTasksResponse]"
Stream: TypeAlias = "grpc.aio.UnaryStreamCall[WatchTasksRequest, WatchTasksResponse]"
CallPart: TypeAlias = Callable[[Sequence[Item], float | None], Awaitable[Sequence[Task]]]
TokenCallable: TypeAlias = Callable[[], str | Awaitable[str]]

Cancelled = asyncio.CancelledError
Lock = asyncio.Lock
sleep = asyncio.sleep
stub_of = TaskServiceStub


async def call_token(source: TokenCallable) -> str:
    """Call a function or a coroutine function."""
    token = source()
    return await token if inspect.isawaitable(token) else token


def open_channel(
    target: str,
    credentials: grpc.ChannelCredentials | None,
    options: Options,
    interceptors: Sequence[Interceptor],
) -> Channel:
    """Open a channel, plaintext without credentials."""
    if credentials is None:
        return grpc.aio.insecure_channel(target, options, interceptors=interceptors)
    return grpc.aio.secure_channel(target, credentials, options, interceptors=interceptors)


class Stop:
    """A signal that ends pauses."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """End pauses, now and from now on."""
        self._event.set()

    def is_set(self) -> bool:
        """Return whether pauses have ended."""
        return self._event.is_set()

    async def wait(self, seconds: float) -> bool:
        """Return whether the signal was set within the time."""
        try:
            async with asyncio.timeout(seconds):
                return await self._event.wait()
        except TimeoutError:
            return False
