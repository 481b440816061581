"""Read new events once for all watches that have caught up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

import structlog

from server.tasks.watch import Notice, Watch, notices_of
from storage.errors import DatabaseUnavailableError
from storage.events import EventLog, Position
from storage.query import Filter
from storage.wakeups import Listener

log = structlog.get_logger()

# Announcements may be lost, and some events are announced before they are settled.
_POLL_SECONDS = 1.0
_BATCH = 200


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
        self._users = 0
        self._joined: dict[Watch, None] = {}  # Ordered, so that statements repeat.
        self._position = Position(0, 0)
        self._needed = threading.Event()
        self._is_reachable = True

    def start(self) -> None:
        threading.Thread(target=self._run, name="watches", daemon=True).start()

    @property
    def joined(self) -> int:
        """The number of watches that have joined."""
        return len(self._joined)

    def open(self) -> None:
        """Listen for announcements, as a watch has opened."""
        with self._lock:
            self._users += 1
            self._needed.set()

    def close(self, watch: Watch) -> None:
        with self._lock:
            self._users -= 1
            self._joined.pop(watch, None)

    def join(self, watch: Watch, position: Position) -> bool:
        """Deliver to the watch what follows a position; False if the reader is past it."""
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
                self._each_round()
                self._listener.listen()
                self._deliver_new()
            except DatabaseUnavailableError as error:
                self._note(reachable=False, why=str(error))
            except Exception:
                # Each watch then reads by itself, which ends the one that fails.
                log.exception("shared watch reader failed")
                self._detach(*self._snapshot()[0])
            else:
                self._note(reachable=True)
            self._wait()

    def _wait(self) -> None:
        try:
            self._listener.wait(_POLL_SECONDS)
        except Exception:
            log.exception("listener failed")
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

    def _snapshot(self) -> tuple[list[Watch], Position]:
        with self._lock:
            if not self._users:
                self._needed.clear()
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

    def _note(self, *, reachable: bool, why: str = "") -> None:
        if reachable != self._is_reachable:
            self._is_reachable = reachable
            if reachable:
                log.info("watches resumed")
            else:
                log.warning("watches wait for the database", why=why)
