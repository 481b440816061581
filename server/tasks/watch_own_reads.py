"""Reads that a watch makes itself: the initial tasks, and the events until it has caught up.

Few run at once: a thousand watches that resume must not occupy the connection pool.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from server.calls.fair_queue import FairQueue
from server.tasks.watch import ADDED, Notice, Watch, notices_of
from storage.errors import StatementTimeoutError
from storage.events import Batch, EventLog, InitialPage, InitialPages, Position

_SLOTS = 2
_BATCH = 200
# The limit of a read of initial tasks, and how many ids a read scans after one has exceeded it.
# A filter without an index took 22 s for 50,000 tasks, and 0.2 s for this many.
_READ_SECONDS = 1.0
_SCANNED = 500
_MIN_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.01, 1.0


class _ReadSlots:
    """Slots for reads: a client takes one at a time, and clients take turns."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._lock = threading.Lock()
        self._queue = FairQueue[threading.Event](share=1)

    @contextmanager
    def acquired(self, client: str) -> Iterator[None]:
        """Wait for a slot; release it at the end of the block."""
        acquired = threading.Event()
        with self._lock:
            self._queue.add(client, acquired)
            self._assign()
        acquired.wait()
        try:
            yield
        finally:
            with self._lock:
                self._queue.finish(client)
                self._free += 1
                self._assign()

    def _assign(self) -> None:
        while self._free and (acquired := self._queue.next()):
            self._free -= 1
            acquired.set()


class OwnReads:
    """The reads of all watches of this process that have not joined the shared reader."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._slots = _ReadSlots(_SLOTS)

    def head(self, watch: Watch) -> Position:
        """Return the position of the latest event."""
        with self._slot(watch):
            return self._events.head()

    def events(self, watch: Watch, position: Position) -> Batch:
        """Read the events that follow a position."""
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
        is_slow = False
        while not pages.are_complete:
            try:
                page = self._page(watch, pages.last_id, is_slow=is_slow)
            except StatementTimeoutError:
                if is_slow:
                    raise
                is_slow = True  # No index serves the filter: scan in small steps.
                continue
            pages.add(page.last_id, page.snapshot)
            yield from (Notice(ADDED, row, None) for row in page.tasks)

    def _page(self, watch: Watch, after: str | None, *, is_slow: bool) -> InitialPage:
        with self._slot(watch):
            if is_slow:
                return self._events.tasks_among(watch.filter_, after=after, ids=_SCANNED)
            return self._events.tasks_as_they_stand(
                watch.filter_, after=after, limit=_BATCH, seconds=_READ_SECONDS
            )

    @contextmanager
    def _slot(self, watch: Watch) -> Iterator[None]:
        """Take a read slot; raise if the watch has ended."""
        with self._slots.acquired(watch.client):
            watch.check()
            yield
