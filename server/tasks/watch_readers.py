"""Read the events of watches: each by itself until it has caught up, then one reader for all."""

import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from weakref import WeakValueDictionary

import structlog

from server.tasks.watch import ADDED, Notice, Watch, notices_of
from storage.errors import DatabaseUnavailableError, StatementTimeoutError
from storage.events import Batch, EventLog, InitialPages, Position
from storage.query import Filter
from storage.wakeups import Listener

log = structlog.get_logger()

_BATCH = 200
_SLOTS = 2  # Own reads at once: watches that resume must not occupy the connection pool.
_READ_SECONDS = 1.0  # The limit of a read of initial tasks.
_SCANNED = 500  # The ids of a read after one has exceeded it: 0.2 s for a filter without an index.
_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.01, 1.0
_POLL_SECONDS = 1.0  # Announcements may be lost, or precede the settling of their events.


class OwnReads:
    """The reads of all watches of this process that have not joined the shared reader."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._free_slots = threading.Semaphore(_SLOTS)
        self._lock = threading.Lock()
        self._turns = WeakValueDictionary[str, threading.Lock]()

    def head(self, watch: Watch) -> Position:
        with self._slot(watch):
            return self._events.head()

    def events(self, watch: Watch, position: Position) -> Batch:
        with self._slot(watch):
            return self._events.read(position, limit=_BATCH, filters=(watch.filter_,))

    def initial_tasks(self, watch: Watch) -> Generator[Notice, None, Position]:
        """Yield the tasks, then their changes during these reads; return the position reached.

        Each page is read by its own snapshot. The changes that follow are those that the page's
        snapshot does not contain: nothing is repeated, and no transaction stays open.
        """
        position = self.head(watch)
        pages = InitialPages()
        yield from self._pages(watch, pages)
        pause_seconds = _MIN_PAUSE_SECONDS
        while True:
            batch = self.events(watch, position)
            unseen = [event for event in batch.events if not pages.have_seen(event)]
            yield from (notice._replace(position=None) for notice in notices_of(unseen))
            position = batch.position
            if batch.at_head and batch.settled >= pages.end:
                return position
            if batch.at_head:  # A transaction is open that was open when a page was read.
                watch.pause(pause_seconds)
                pause_seconds = min(2 * pause_seconds, _MAX_PAUSE_SECONDS)

    def _pages(self, watch: Watch, pages: InitialPages) -> Iterator[Notice]:
        by_index = partial(self._events.tasks_as_they_stand, limit=_BATCH, seconds=_READ_SECONDS)
        by_scan = partial(self._events.tasks_among, ids=_SCANNED)
        read = by_index
        while not pages.are_complete:
            try:
                with self._slot(watch):
                    page = read(watch.filter_, after=pages.last_id)
            except StatementTimeoutError:
                if read is by_scan:
                    raise
                read = by_scan  # No index serves the filter: scan in small steps.
                continue
            pages.add(page.last_id, page.snapshot)
            yield from (Notice(ADDED, row, None) for row in page.tasks)

    @contextmanager
    def _slot(self, watch: Watch) -> Iterator[None]:
        """Wait for a slot, one at a time for a client, so that clients take turns."""
        with self._lock:
            turn = self._turns.setdefault(watch.client, threading.Lock())
        with turn, self._free_slots:
            watch.check()
            yield


class SharedReader:
    """A thread that reads the stream of events and delivers notices to the watches joined to it.

    A watch whose buffer is full leaves: the events in the database are its buffer.
    """

    def __init__(
        self, events: EventLog, listener: Listener, each_round: Callable[[], object]
    ) -> None:
        self._events = events
        self._listener = listener
        self._each_round = each_round
        self._lock = threading.Lock()
        self._joined: dict[Watch, None] = {}  # Ordered, so that statements repeat.
        self._position = Position(0, 0)
        self._has_joined = threading.Event()
        self._is_reachable = True

    def start(self) -> None:
        threading.Thread(target=self._run, name="watches", daemon=True).start()

    @property
    def joined(self) -> int:
        return len(self._joined)

    def join(self, watch: Watch, position: Position) -> bool:
        """Deliver to the watch what follows a position; False if the reader is past it."""
        with self._lock:
            if not self._joined:
                self._position = position
            elif self._position > position:
                return False
            watch.begin(position)
            self._joined[watch] = None
            self._has_joined.set()
            return True

    def leave(self, watch: Watch) -> None:
        with self._lock:
            self._joined.pop(watch, None)

    def _run(self) -> None:
        while True:
            try:
                self._each_round()
                if self._joined:
                    self._listener.listen()
                    self._deliver_new()
                    self._listener.wait(_POLL_SECONDS)
                elif self._has_joined.wait(_POLL_SECONDS):
                    self._has_joined.clear()
                else:
                    self._listener.close()  # Unread announcements fill PostgreSQL's queue.
            except DatabaseUnavailableError as error:
                if self._is_reachable:
                    log.warning("watches wait for the database", why=str(error))
                self._is_reachable = False
                time.sleep(_POLL_SECONDS)
            except Exception:
                # Each watch then reads by itself, which ends the one that fails.
                log.exception("shared watch reader failed")
                self._detach(*self._snapshot()[0])
                time.sleep(_POLL_SECONDS)

    def _deliver_new(self) -> None:
        """Read and deliver up to the head of the stream."""
        at_head = False
        while not at_head:
            joined, position = self._snapshot()
            if not joined:
                return
            filters = tuple(dict.fromkeys(watch.filter_ for watch in joined))
            batch = self._events.read(position, limit=_BATCH, filters=filters)
            at_head = batch.at_head
            notices = {key: list(notices_of(batch.events, n)) for n, key in enumerate(filters)}
            self._deliver(notices, position, batch.position)
        if not self._is_reachable:
            log.info("watches resumed")
        self._is_reachable = True

    def _snapshot(self) -> tuple[list[Watch], Position]:
        with self._lock:
            return list(self._joined), self._position

    def _deliver(
        self, notices: Mapping[Filter | None, Sequence[Notice]], after: Position, until: Position
    ) -> None:
        with self._lock:
            self._position = until
            joined = list(self._joined)
        for watch in joined:
            # One that joined during the read may have another filter, or an earlier position.
            own = notices.get(watch.filter_)
            if own is None or watch.delivered < after or not watch.deliver(own, until):
                self._detach(watch)

    def _detach(self, *watches: Watch) -> None:
        """Have the watches read for themselves, from what their clients have got."""
        with self._lock:
            for watch in watches:
                self._joined.pop(watch, None)
        for watch in watches:
            watch.fall_behind()
