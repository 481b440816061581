"""Open, limit and end the watches of this process.

A watch begins with reads of its own: the initial tasks, or the events that follow its
resume_token. Once it has caught up it joins the shared reader, until its buffer is full; then it
reads for itself again.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import grpc
import structlog

from server.calls.current import current_call
from server.calls.grpcio_internals import ServerCall
from server.errors import ShuttingDownError, TooManyFiltersError, TooManyWatchesError
from server.tasks.watch import BOOKMARK, Notice, Watch, notices_of
from server.tasks.watch_readers import OwnReads, SharedReader
from server.telemetry.tracing import add_span_event
from storage.errors import StatementCancelledError
from storage.events import EventLog, Position
from storage.query import Filter
from storage.wakeups import Listener

log = structlog.get_logger()

MAX_WATCHES = 1000  # Open in one process: each holds a thread.
MAX_PER_PRINCIPAL = 100
BOOKMARK_SECONDS = 30.0  # A watch without changes receives a bookmark.
STALL_SECONDS = 10.0  # A watch whose client reads nothing is ended; the client may resume it.
_FILTERS_PER_CLIENT = 20  # The shared reader evaluates each filter for each write.


class Watches:
    """The watches of this process."""

    def __init__(
        self,
        events: EventLog,
        listener: Listener,
        authenticate: Callable[[grpc.ServicerContext], object],
        *,
        limit_per_principal: int,
    ) -> None:
        self._own_reads = OwnReads(events)
        self._shared_reader = SharedReader(events, listener, self._end_stalled)
        self.start = self._shared_reader.start
        self._authenticate = authenticate
        self._limit_per_principal = limit_per_principal
        self._lock = threading.Lock()
        self._open: set[Watch] = set()
        self._is_stopped = False

    def counts(self) -> dict[str, int]:
        joined = self._shared_reader.joined
        return {"joined": joined, "reading": max(0, len(self._open) - joined)}

    def stop(self) -> None:
        """End every watch, and let none begin."""
        with self._lock:
            self._is_stopped = True
            for watch in self._open:
                watch.end(ShuttingDownError())

    def follow(
        self,
        filter_: Filter | None,
        position: Position | None,
        *,
        initial: bool,
        context: grpc.ServicerContext,
    ) -> Iterator[Notice]:
        """Yield the notices of a watch, from a position or from now on, until the call ends.

        Raises: TooManyWatchesError, TooManyFiltersError, ShuttingDownError, EventsRemovedError, and
            the errors of `Watch.check`.
        """
        with self._opened(filter_, context) as watch:
            current_call().on_opened()
            for notice in self._notices(watch, position, initial=initial):
                watch.check()
                watch.sending_since = time.monotonic()
                yield notice
                watch.sending_since = None

    def _notices(
        self, watch: Watch, position: Position | None, *, initial: bool
    ) -> Iterator[Notice]:
        if initial:
            position = yield from self._own_reads.initial_tasks(watch)
        elif position is None:
            position = self._own_reads.head(watch)
        while True:
            position = yield from self._catch_up(watch, position)
            add_span_event("joined")
            yield Notice(BOOKMARK, None, position)
            yield from watch.notices()
            add_span_event("fell behind")
            position = watch.taken

    def _catch_up(self, watch: Watch, position: Position) -> Generator[Notice, None, Position]:
        """Yield what follows a position; return the position where the shared reader takes over."""
        while True:
            batch = self._own_reads.events(watch, position)
            yield from notices_of(batch.events)
            position = batch.position
            if batch.at_head and self._shared_reader.join(watch, position):
                return position

    @contextmanager
    def _opened(self, filter_: Filter | None, context: grpc.ServicerContext) -> Iterator[Watch]:
        watch = Watch(filter_, context, self._authenticate, BOOKMARK_SECONDS)
        with self._lock:
            self._check_limits(watch)
            self._open.add(watch)
        try:
            if not context.add_callback(lambda: watch.end(StatementCancelledError())):
                raise StatementCancelledError
            yield watch
        finally:
            with self._lock:
                self._open.discard(watch)
            self._shared_reader.leave(watch)

    def _check_limits(self, watch: Watch) -> None:
        if self._is_stopped:
            raise ShuttingDownError
        if len(self._open) >= MAX_WATCHES:
            raise TooManyWatchesError
        own = sum(other.principal == watch.principal for other in self._open)
        if own >= self._limit_per_principal:
            raise TooManyWatchesError(watch.principal)
        filters = {other.filter_ for other in self._open if other.client == watch.client}
        if len((filters | {watch.filter_}) - {None}) > _FILTERS_PER_CLIENT:
            raise TooManyFiltersError(watch.principal, _FILTERS_PER_CLIENT)

    def _end_stalled(self) -> None:
        """End the watches whose clients have not read for too long: each holds a thread."""
        now = time.monotonic()
        with self._lock:
            watches = list(self._open)
        for watch in watches:
            since = watch.sending_since
            if since is not None and now - since > STALL_SECONDS:
                log.warning("watch stalled", peer=watch.context.peer())
                watch.end(StatementCancelledError())
                # The status must pass the messages that are not read.
                call = ServerCall.of(watch.context)
                call.cancel(grpc.StatusCode.UNAVAILABLE, "the watch was not read for too long")
