# Generated from _async/watch.py by `make client`.
"""Watch tasks across streams, connections and restarts of the service."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Self

import grpc

from taskservice_client import requests, tracing
from taskservice_client._sync import io
from taskservice_client._sync.calls import Calls
from taskservice_client.errors import (
    ServiceUnavailable,
    TaskServiceError,
    Unauthenticated,
    error_of,
)
from taskservice_client.retries import backoff_seconds
from taskservice_client.tokens import Metadata
from taskservice_client.watching import LONGEST_PAUSE_SECONDS, Position, WatchEvent


class Watch:
    """An endless iterator of events, which `cancel` or the end of a `with` block ends."""

    def __init__(self, calls: Calls, open_stream: io.OpenStream, position: Position) -> None:
        self._calls = calls
        self._open_stream = open_stream
        self._position = position
        self._stop = io.Stop()
        self._stream: io.Stream | None = None
        self._failures = self._refusals = 0  # Since the last response.
        self._call_id = ""  # Of the last stream.
        self._events = self._run()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WatchEvent:
        self._calls.check_process()
        return self._events.__next__()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """End the iteration, also from elsewhere."""
        self._stop.set()
        if self._stream is not None:
            self._end(self._stream)

    def _end(self, stream: io.Stream) -> None:
        if not self._calls.is_forked():  # A stream does not survive a fork.
            stream.cancel()

    def _run(self) -> Iterator[WatchEvent]:
        """Yield the events of one stream after another. Raises: TaskServiceError."""
        while not self._stop.is_set():
            self._calls.check()
            token = self._token()
            if token is None:
                self._stop.wait(backoff_seconds(self._failures, LONGEST_PAUSE_SECONDS))
                continue
            self._stream = stream = self._open(token)
            try:
                if self._stop.is_set():  # While the stream was opened.
                    return
                for response in stream:
                    self._failures = self._refusals = 0
                    event = self._position.event(response)
                    yield event
                    self._position.keep(event)
                failure: BaseException | None = None
            except (grpc.RpcError, io.Cancelled) as caught:
                failure = caught
            finally:
                self._end(stream)
            if self._stop.is_set() or self._calls.is_closed:
                return
            error = self._recovered(failure, token)
            if restarted := self._position.restarted(error):
                yield restarted
            self._stop.wait(self._pause_seconds(error))

    def _token(self) -> Metadata | None:
        """Return the token of a stream; None if that of a later stream cannot be obtained."""
        try:
            return self._calls.token.metadata()
        except Exception:
            if self._stream is None:
                raise
            self._failures += 1
            return None

    def _can_renew(self, refused: Metadata) -> bool:
        """Return whether another token is obtained, now or, after a failure, by the next stream."""
        try:
            return self._calls.token.renew(refused)
        except Exception:
            return True

    def _open(self, token: Metadata) -> io.Stream:
        context = tracing.context_metadata() if tracing.is_traced() else ()
        self._call_id = requests.new_call_id()
        own = (("x-request-id", self._call_id),)
        return self._open_stream(self._position.request(), metadata=token + own + context)

    def _recovered(self, failure: BaseException | None, token: Metadata) -> TaskServiceError:
        """Return the error of a stream that another one can follow. Raises: any other error."""
        if isinstance(failure, io.Cancelled):
            raise failure  # The task, not this watch, was cancelled.
        error: TaskServiceError = ServiceUnavailable(
            grpc.StatusCode.UNAVAILABLE, "the stream ended"
        )
        if isinstance(failure, grpc.RpcError):
            error = error_of(failure, self._call_id)
        self._failures += 1
        if isinstance(error, Unauthenticated):
            self._refusals += 1
            if self._refusals > 1 or not self._can_renew(token):
                raise error
        elif not self._position.can_continue(error):
            raise error
        return error

    def _pause_seconds(self, error: TaskServiceError) -> float:
        if error.retry_after is not None:
            return error.retry_after
        return backoff_seconds(self._failures, LONGEST_PAUSE_SECONDS)
