"""Watches: one thread follows the stream of events for all of them, and each gets what it matches.

A watch begins with reads of its own: the tasks as they stand, or the events behind its token. Once
it has caught up it joins the others, who are served from what the one thread reads. A watch whose
buffer is full leaves them and reads for itself again, at its own pace: the events in the database
are the buffer that has no end.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import grpc
import structlog

from server.calls.current import current_call
from server.calls.fair_queue import FairQueue
from server.calls.grpcio_internals import ServerCall
from server.errors import (
    CredentialsExpiredError,
    ShuttingDownError,
    TooManyFiltersError,
    TooManyWatchesError,
    UnauthenticatedError,
)
from server.principal import ANONYMOUS
from server.telemetry.tracing import add_span_event
from storage.errors import (
    DatabaseUnavailableError,
    StatementCancelledError,
    StatementTimeoutError,
)
from storage.events import Batch, Event, EventLog, Position
from storage.initial_pages import InitialPage, InitialPages
from storage.query import Filter
from storage.tables import TaskRow
from storage.wakeups import Listener
from taskservice.v1.task_service_pb2 import WatchTasksResponse

log = structlog.get_logger()

ADDED = WatchTasksResponse.TYPE_ADDED
MODIFIED = WatchTasksResponse.TYPE_MODIFIED
DELETED = WatchTasksResponse.TYPE_DELETED
BOOKMARK = WatchTasksResponse.TYPE_BOOKMARK

# Announcements may be lost, and some events are announced before they are settled.
_POLL_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 0.01
_BATCH = 200
_BUFFER = 1000
# Watches that read for themselves at once: a thousand that resume must leave the pool to calls.
_OWN_READS = 2
# How long such a read may take while others wait, and how many tasks are looked at in one when that
# does not do. A filter that no index serves took 22 s for 50,000 tasks, 0.2 s for so many.
_READ_SECONDS = 1.0
_SCANNED = 500
# Filters of one caller that the common reader asks about: each costs every write.
_FILTERS_PER_CALLER = 20


class Notice(NamedTuple):
    """What a watch tells its caller; without a position there is nothing to resume from yet."""

    kind: WatchTasksResponse.Type.ValueType
    row: TaskRow | None
    position: Position | None


class _Credentials:
    """What a watch was begun with: checked when they expire, and every so often before, for their
    key may have been removed."""

    def __init__(self, authenticate: Callable[[], object], every_seconds: float) -> None:
        self._authenticate = authenticate
        self._every_seconds = every_seconds
        self._expires = current_call().principal.expires
        self._plan()

    def _plan(self) -> None:
        self._next = min(time.time() + self._every_seconds, self._expires)

    def seconds_left(self) -> float:
        """Until the next check."""
        return max(0.0, self._next - time.time())

    def check(self) -> None:
        """Raises: CredentialsExpiredError."""
        if time.time() < self._next:
            return
        try:
            self._authenticate()
        except UnauthenticatedError:
            raise CredentialsExpiredError from None
        self._plan()


class Watch:
    """An open watch: the notices that were delivered to it, and how it is to end."""

    def __init__(
        self, filter_: Filter | None, context: grpc.ServicerContext, credentials: _Credentials
    ) -> None:
        self.principal = current_call().principal.name
        # Where nothing is authenticated, the connection.
        self.caller = context.peer() if self.principal == ANONYMOUS.name else self.principal
        self.filter_ = filter_
        self.context = context
        self.sending_since: float | None = None
        self.delivered = Position(0, 0)
        self.taken = Position(0, 0)
        self._credentials = credentials
        self._changed = threading.Condition()
        self._notices: deque[Notice] = deque()
        self._heard = False
        self._behind = False
        self._end: Exception | None = None

    def begin(self, position: Position) -> None:
        """From this position on notices are delivered."""
        with self._changed:
            self.delivered = self.taken = position
            self._behind = False

    def deliver(self, notices: Sequence[Notice], position: Position) -> bool:
        """Takes what there is up to a position; False when that is more than it can hold."""
        with self._changed:
            new = [n for n in notices if n.position is not None and n.position > self.delivered]
            if len(self._notices) + len(new) > _BUFFER:
                return False
            self._notices.extend(new)
            self.delivered = max(self.delivered, position)
            self._heard = True
            if new:
                self._changed.notify()
            return True

    def fall_behind(self) -> None:
        """From what was taken on it has to read for itself."""
        with self._changed:
            self._behind = True
            self._notices.clear()
            self._changed.notify()

    def end(self, error: Exception) -> None:
        with self._changed:
            self._end = self._end or error
            self._changed.notify()

    def check(self) -> None:
        """Raises: what the watch was ended with, if it was; CredentialsExpiredError."""
        if self._end:
            raise self._end
        self._credentials.check()

    def pause(self, seconds: float) -> None:
        """Waits. Raises: as `check`."""
        with self._changed:
            self._changed.wait_for(lambda: self._end, seconds)
        self.check()

    def notices(self, bookmark_seconds: float) -> Iterator[Notice]:
        """What is delivered, and bookmarks, until it falls behind. Raises: as `check`."""
        while (taken := self._take(bookmark_seconds)) is not None:
            yield from taken

    def _take(self, bookmark_seconds: float) -> list[Notice] | None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._notices or self._behind or self._end,
                min(bookmark_seconds, self._credentials.seconds_left()),
            )
            self.check()
            if self._behind:
                return None
            notices = list(self._notices)
            self._notices.clear()
            self.taken = self.delivered
            if not notices and self._heard:  # Not when the database has not been heard of.
                notices = [Notice(BOOKMARK, None, self.taken)]
            self._heard = False
            return notices


class _OwnReads:
    """Places for watches that read for themselves: a caller has one, and callers take turns."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._lock = threading.Lock()
        self._turns = FairQueue[threading.Event](share=1)

    @contextmanager
    def turn(self, caller: str) -> Iterator[None]:
        """Waits for a turn of the caller; it lasts until the end of the block."""
        begun = threading.Event()
        with self._lock:
            self._turns.add(caller, begun)
            self._begin()
        begun.wait()
        try:
            yield
        finally:
            with self._lock:
                self._turns.finish(caller)
                self._free += 1
                self._begin()

    def _begin(self) -> None:
        while self._free and (begun := self._turns.next()):
            self._free -= 1
            begun.set()


class Watches:
    """The watches of this process."""

    def __init__(
        self,
        events: EventLog,
        listener: Listener,
        authenticate: Callable[[grpc.ServicerContext], object],
        *,
        limit: int,
        limit_per_principal: int,
        bookmark_seconds: float,
        stall_seconds: float,
    ) -> None:
        self._events = events
        self._listener = listener
        self._authenticate = authenticate
        self._limit = limit
        self._limit_per_principal = limit_per_principal
        self._bookmark_seconds = bookmark_seconds
        self._stall_seconds = stall_seconds
        self._lock = threading.Lock()
        self._open: set[Watch] = set()
        self._joined: dict[Watch, None] = {}  # In an order that lasts, and so do statements.
        self._position = Position(0, 0)
        self._needed = threading.Event()
        self._own_reads = _OwnReads(_OWN_READS)
        self._stopped = False
        self._reachable = True

    def start(self) -> None:
        threading.Thread(target=self._run, name="watches", daemon=True).start()

    def counts(self) -> dict[str, int]:
        """How many watches have joined the others, and how many read for themselves."""
        with self._lock:
            joined = len(self._joined)
            return {"joined": joined, "reading": len(self._open) - joined}

    def stop(self) -> None:
        """Ends every watch, and lets none begin."""
        with self._lock:
            self._stopped = True
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
        """What a watch tells, from a position or from now on, for as long as the call lasts.

        Raises: TooManyWatchesError, ShuttingDownError, CredentialsExpiredError, EventsRemovedError,
            and what the database raises.
        """
        with self._opened(filter_, context) as watch:
            current_call().on_opened()
            for notice in self._follow(watch, position, initial=initial):
                watch.check()
                watch.sending_since = time.monotonic()
                yield notice
                watch.sending_since = None

    def _follow(
        self, watch: Watch, position: Position | None, *, initial: bool
    ) -> Iterator[Notice]:
        if initial:
            position = yield from self._as_they_stand(watch)
        elif position is None:
            position = self._head(watch)
        while True:
            position = yield from self._catch_up(watch, position)
            add_span_event("joined")
            yield Notice(BOOKMARK, None, position)
            yield from watch.notices(self._bookmark_seconds)
            add_span_event("fell behind")
            position = watch.taken

    @contextmanager
    def _opened(self, filter_: Filter | None, context: grpc.ServicerContext) -> Iterator[Watch]:
        again = partial(self._authenticate, context)
        watch = Watch(filter_, context, _Credentials(again, self._bookmark_seconds))
        with self._lock:
            if self._stopped:
                raise ShuttingDownError
            self._check_limits(watch)
            self._open.add(watch)
        try:
            if not context.add_callback(lambda: watch.end(StatementCancelledError())):
                raise StatementCancelledError
            self._needed.set()
            yield watch
        finally:
            with self._lock:
                self._open.discard(watch)
                self._joined.pop(watch, None)

    def _check_limits(self, watch: Watch) -> None:
        """Raises: TooManyWatchesError, TooManyFiltersError."""
        if len(self._open) >= self._limit:
            raise TooManyWatchesError
        own = sum(other.principal == watch.principal for other in self._open)
        if own >= self._limit_per_principal:
            raise TooManyWatchesError(watch.principal)
        filters = {other.filter_ for other in self._open if other.caller == watch.caller}
        if len((filters | {watch.filter_}) - {None}) > _FILTERS_PER_CALLER:
            raise TooManyFiltersError(watch.principal, _FILTERS_PER_CALLER)

    def _as_they_stand(self, watch: Watch) -> Generator[Notice, None, Position]:
        """The tasks, and then what happened while they were sent; returns where that ends.

        Each page has seen other transactions: what it has not seen follows, and nothing that it
        has. So a watch repeats nothing, and holds no transaction open while it sends.
        """
        position = self._head(watch)
        pages = InitialPages()
        is_slow = False
        while not pages.are_complete:
            try:
                page = self._page(watch, pages.last_id, is_slow=is_slow)
            except StatementTimeoutError:
                if is_slow:
                    raise
                is_slow = True  # What no index finds is looked for in small steps.
                continue
            pages.add(page.last_id, page.snapshot)
            yield from (Notice(ADDED, row, None) for row in page.tasks)
        pause_seconds = _FIRST_PAUSE_SECONDS
        while True:
            batch = self._read(watch, position)
            unseen = [event for event in batch.events if not pages.have_seen(event)]
            yield from (notice._replace(position=None) for notice in _notices(unseen))
            position = batch.position
            if batch.at_head and batch.settled >= pages.end:
                return position
            if batch.at_head:  # A transaction still runs that ran when a page was read.
                watch.pause(pause_seconds)
                pause_seconds = min(2 * pause_seconds, _POLL_SECONDS)

    def _page(self, watch: Watch, after: str | None, *, is_slow: bool) -> InitialPage:
        with self._own_read(watch):
            if is_slow:
                return self._events.tasks_among(watch.filter_, after=after, ids=_SCANNED)
            return self._events.tasks_as_they_stand(
                watch.filter_, after=after, limit=_BATCH, seconds=_READ_SECONDS
            )

    def _catch_up(self, watch: Watch, position: Position) -> Generator[Notice, None, Position]:
        """What follows a position; returns where the watch has joined the others."""
        while True:
            batch = self._read(watch, position)
            yield from _notices(batch.events)
            position = batch.position
            if batch.at_head and self._join(watch, position):
                return position

    def _head(self, watch: Watch) -> Position:
        with self._own_read(watch):
            return self._events.head()

    def _read(self, watch: Watch, position: Position) -> Batch:
        with self._own_read(watch):
            return self._events.read(position, limit=_BATCH, filters=(watch.filter_,))

    @contextmanager
    def _own_read(self, watch: Watch) -> Iterator[None]:
        """In its turn, and not for somebody who is gone."""
        with self._own_reads.turn(watch.caller):
            watch.check()
            yield

    def _join(self, watch: Watch, position: Position) -> bool:
        """Serves the watch with the others from here on, unless it is behind them."""
        with self._lock:
            if not self._joined:
                self._position = position
            elif self._position > position:
                return False
            watch.begin(position)
            self._joined[watch] = None
            return True

    def _run(self) -> None:
        while True:
            if not self._needed.is_set():
                self._listener.close()  # A listener that does not read fills PostgreSQL's queue.
                self._needed.wait()
            try:
                self._end_stalled()
                self._listener.listen()
                self._deliver_new()
            except DatabaseUnavailableError as error:
                self._note(reachable=False, why=str(error))
            except Exception:
                log.exception("watches read for themselves")
                self._leave_all_behind()
            else:
                self._note(reachable=True)
            self._wait()

    def _wait(self) -> None:
        try:
            self._listener.wait(_POLL_SECONDS)
        except Exception:
            log.exception("the listener failed")
            time.sleep(_POLL_SECONDS)

    def _deliver_new(self) -> None:
        """Reads to the head of the stream, for those who have joined."""
        at_head = False
        while not at_head:
            with self._lock:
                joined, position = list(self._joined), self._position
                if not self._open:
                    self._needed.clear()
            if not joined:
                return
            filters = tuple(dict.fromkeys(watch.filter_ for watch in joined))
            batch = self._events.read(position, limit=_BATCH, filters=filters)
            at_head = batch.at_head
            notices = {it: list(_notices(batch.events, n)) for n, it in enumerate(filters)}
            with self._lock:
                self._position = batch.position
                joined = list(self._joined)
            for watch in joined:
                # One that joined meanwhile may have a filter that nobody asked about, or have read
                # less than those who were there before.
                known = notices.get(watch.filter_)
                fits = known is not None and watch.delivered >= position
                if not fits or not watch.deliver(known or (), batch.position):
                    self._leave_behind(watch)

    def _leave_behind(self, *watches: Watch) -> None:
        with self._lock:
            for watch in watches:
                self._joined.pop(watch, None)
        for watch in watches:
            watch.fall_behind()

    def _leave_all_behind(self) -> None:
        """Each reads for itself then, and so finds out whether it is the one that fails."""
        with self._lock:
            joined = list(self._joined)
        self._leave_behind(*joined)

    def _end_stalled(self) -> None:
        """Whoever reads nothing for so long is told to resume, instead of holding a thread."""
        now = time.monotonic()
        with self._lock:
            watches = list(self._open)
        for watch in watches:
            since = watch.sending_since
            if since is not None and now - since > self._stall_seconds:
                log.warning("watch stalled", peer=watch.context.peer())
                watch.end(StatementCancelledError())
                _disconnect(watch.context)

    def _note(self, *, reachable: bool, why: str = "") -> None:
        if reachable != self._reachable:
            self._reachable = reachable
            if reachable:
                log.info("watches go on")
            else:
                log.warning("watches wait for the database", why=why)


_KINDS = {(False, True): ADDED, (True, True): MODIFIED, (True, False): DELETED}


def _notices(events: Iterable[Event], filter_number: int = 0) -> Iterator[Notice]:
    for event in events:
        change = event.matched[filter_number], event.matches[filter_number]
        if any(change):
            yield Notice(_KINDS[change], event.after, event.position)


def _disconnect(context: grpc.ServicerContext) -> None:
    """Ends a call that is blocked in sending, with a status that gets past what waits to be sent.

    grpcio's own context.cancel() knows no status but CANCELLED.
    """
    code, details = grpc.StatusCode.UNAVAILABLE, "the watch was not read for too long"
    ServerCall.of(context).cancel(code, details)
