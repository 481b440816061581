"""Call methods with a deadline, credentials, a span and safe retries."""

from __future__ import annotations

import os
import time
from typing import Generic, TypeVar

import grpc
from google.protobuf.message import Message

from taskservice_client import requests, retries, tracing
from taskservice_client._async import io
from taskservice_client.errors import (
    ClosedClientError,
    ForkedClientError,
    TaskServiceError,
    Unauthenticated,
    error_of,
)
from taskservice_client.tokens import Metadata, bearer, expiry_of, renewal_of

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


PAUSE_SECONDS = 5.0
"""The time between two attempts to renew a token that is still valid."""


class Method(Generic[Request, Response]):
    """A method, and how it is repeated."""

    __slots__ = "invoke", "is_safe", "name"

    def __init__(
        self, name: str, invoke: io.Invoke[Request, Response], *, is_safe: bool = True
    ) -> None:
        self.name = f"taskservice.v1.TaskService/{name}"
        self.invoke = invoke
        self.is_safe = is_safe
        """Whether a call that may have been executed can be repeated."""


class Token:
    """A bearer token, renewed by a callable before it expires and after it is refused."""

    def __init__(self, source: str | io.TokenCallable | None) -> None:
        self._source = source
        self._lock = io.Lock()
        self._metadata = bearer(source) if isinstance(source, str) else ()
        self._renew_at = self._expiry = 0.0 if callable(source) else float("inf")

    async def metadata(self) -> Metadata:
        """Return the metadata of a call; empty without a token."""
        if time.time() >= self._renew_at:
            await self._renew(self._metadata)
        return self._metadata

    async def renew(self, refused: Metadata) -> bool:
        """Replace a token that was refused; return whether there is another one."""
        if not callable(self._source):
            return False
        if self._metadata == refused:
            self._expiry = self._renew_at = 0.0
        await self._renew(refused)
        return self._metadata != refused

    async def _renew(self, old: Metadata) -> None:
        async with self._lock:
            if self._metadata != old or not callable(self._source):
                return  # Renewed by another call.
            try:
                token = await io.call_token(self._source)
            except Exception:
                if time.time() >= self._expiry:
                    raise
                self._renew_at = min(self._expiry, time.time() + PAUSE_SECONDS)
                return  # The old token is valid until then.
            self._metadata = bearer(token)
            self._expiry = expiry_of(token)
            self._renew_at = renewal_of(token, time.time())


class Calls:
    """Call methods of one channel, until it is closed."""

    def __init__(self, token: Token, timeout: float) -> None:
        self._timeout = timeout
        self._pid = os.getpid()
        self.token = token
        self.is_closed = False

    def check(self) -> None:
        """Check that the channel can be used. Raises: ClosedClientError, ForkedClientError."""
        if self.is_closed:
            raise ClosedClientError("the client is closed")
        self.check_process()

    def check_process(self) -> None:
        """Check that the channel was not made before a fork. Raises: ForkedClientError."""
        if self.is_forked():
            raise ForkedClientError("the client was made before a fork: make one in each process")

    def is_forked(self) -> bool:
        """Return whether the channel was made before a fork, and must not be used."""
        return os.getpid() != self._pid

    def deadline(self, timeout: float | None) -> float:
        """Return the monotonic time at which a call ends, by default with the client's timeout."""
        return time.monotonic() + (self._timeout if timeout is None else timeout)

    async def call(
        self,
        method: Method[Request, Response],
        request: Request,
        timeout: float | None,
        request_id: str = "",
    ) -> Response:
        """Return the response, after retries within the timeout. Raises: TaskServiceError."""
        self.check()
        own: Metadata = (("x-request-id", request_id or requests.new_call_id()),)
        deadline = self.deadline(timeout)
        if not tracing.is_traced():
            return await self._attempt(method, request, deadline, own)
        with tracing.span_of(method.name) as context:
            return await self._attempt(method, request, deadline, own + context)

    async def _attempt(
        self, method: Method[Request, Response], request: Request, deadline: float, own: Metadata
    ) -> Response:
        attempts = 0
        may_renew, may_have_run = True, False
        while True:
            token = await self.token.metadata()
            try:
                return await method.invoke(
                    request, timeout=deadline - time.monotonic(), metadata=token + own
                )
            except grpc.RpcError as failure:
                error = error_of(failure, request_id=own[0][1])
            attempts += 1
            error.attempts, error.may_have_run = attempts, may_have_run
            may_have_run = may_have_run or retries.may_have_run(error)
            if may_renew and isinstance(error, Unauthenticated) and await self.token.renew(token):
                may_renew = False
                continue
            await self._pause(error, deadline, is_safe=method.is_safe)

    async def _pause(self, error: TaskServiceError, deadline: float, *, is_safe: bool) -> None:
        """Wait until the next attempt. Raises: the error, if there is none."""
        if not retries.may_repeat(error, is_safe=is_safe):
            raise error
        seconds = retries.pause_seconds(error)
        if time.monotonic() + seconds >= deadline:
            raise error
        await io.sleep(seconds)
        self.check()
