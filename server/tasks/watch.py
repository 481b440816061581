"""One open watch: its buffer, its end, and the credentials that it began with."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import grpc

from server.calls.current import current_call
from server.errors import CredentialsExpiredError, UnauthenticatedError
from server.principal import ANONYMOUS
from storage.events import Event, Position
from storage.query import Filter
from storage.tables import TaskRow
from taskservice.v1.task_service_pb2 import WatchTasksResponse

ADDED = WatchTasksResponse.TYPE_ADDED
MODIFIED = WatchTasksResponse.TYPE_MODIFIED
DELETED = WatchTasksResponse.TYPE_DELETED
BOOKMARK = WatchTasksResponse.TYPE_BOOKMARK

# By whether the task matched before and matches after the event.
_KINDS = {(False, True): ADDED, (True, True): MODIFIED, (True, False): DELETED}

_BUFFER = 1000


class Notice(NamedTuple):
    """A response of a watch before conversion; without a position it has no resume_token."""

    kind: WatchTasksResponse.Type.ValueType
    row: TaskRow | None
    position: Position | None


def notices_of(events: Iterable[Event], filter_number: int = 0) -> Iterator[Notice]:
    """Return the notices of events for one of the filters that they were read with."""
    for event in events:
        change = event.matched[filter_number], event.matches[filter_number]
        if any(change):
            yield Notice(_KINDS[change], event.after, event.position)


class Credentials:
    """Check the credentials of a watch when they expire.

    They are checked in between, too: their key may have been removed.
    """

    def __init__(self, authenticate: Callable[[], object], every_seconds: float) -> None:
        self._authenticate = authenticate
        self._every_seconds = every_seconds
        self._expires = current_call().principal.expires
        self._schedule()

    def _schedule(self) -> None:
        self._next = min(time.time() + self._every_seconds, self._expires)

    def seconds_left(self) -> float:
        """Return the time until the next check."""
        return max(0.0, self._next - time.time())

    def check(self) -> None:
        """Raises: CredentialsExpiredError."""
        if time.time() < self._next:
            return
        try:
            self._authenticate()
        except UnauthenticatedError:
            raise CredentialsExpiredError from None
        self._schedule()


class Watch:
    """The notices delivered to a watch, and the exception that ends it."""

    def __init__(
        self, filter_: Filter | None, context: grpc.ServicerContext, credentials: Credentials
    ) -> None:
        self.principal = current_call().principal.name
        # The connection where nothing is authenticated.
        self.client = context.peer() if self.principal == ANONYMOUS.name else self.principal
        self.filter_ = filter_
        self.context = context
        self.sending_since: float | None = None
        self.delivered = Position(0, 0)
        self.taken = Position(0, 0)
        self._credentials = credentials
        self._changed = threading.Condition()
        self._notices: deque[Notice] = deque()
        self._was_delivered_to = False
        self._is_behind = False
        self._end: Exception | None = None

    def begin(self, position: Position) -> None:
        """Accept deliveries of what follows a position."""
        with self._changed:
            self.delivered = self.taken = position
            self._is_behind = False

    def deliver(self, notices: Sequence[Notice], position: Position) -> bool:
        """Buffer the notices up to a position; return False if the buffer is too small."""
        with self._changed:
            new = [n for n in notices if n.position is not None and n.position > self.delivered]
            if len(self._notices) + len(new) > _BUFFER:
                return False
            self._notices.extend(new)
            self.delivered = max(self.delivered, position)
            self._was_delivered_to = True
            if new:
                self._changed.notify()
            return True

    def fall_behind(self) -> None:
        """Drop the buffer: the watch must read what follows `taken` itself."""
        with self._changed:
            self._is_behind = True
            self._notices.clear()
            self._changed.notify()

    def end(self, error: Exception) -> None:
        """End the watch with an exception; the first one counts."""
        with self._changed:
            self._end = self._end or error
            self._changed.notify()

    def check(self) -> None:
        """Raises: the exception that ended the watch; CredentialsExpiredError."""
        if self._end:
            raise self._end
        self._credentials.check()

    def pause(self, seconds: float) -> None:
        """Wait, unless the watch ends. Raises: as `check`."""
        with self._changed:
            self._changed.wait_for(lambda: self._end, seconds)
        self.check()

    def notices(self, bookmark_seconds: float) -> Iterator[Notice]:
        """Yield deliveries and bookmarks until the watch falls behind. Raises: as `check`."""
        while (taken := self._take(bookmark_seconds)) is not None:
            yield from taken

    def _take(self, bookmark_seconds: float) -> list[Notice] | None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._notices or self._is_behind or self._end,
                min(bookmark_seconds, self._credentials.seconds_left()),
            )
            self.check()
            if self._is_behind:
                return None
            notices = list(self._notices)
            self._notices.clear()
            self.taken = self.delivered
            if not notices and self._was_delivered_to:  # Not while the database is unavailable.
                notices = [Notice(BOOKMARK, None, self.taken)]
            self._was_delivered_to = False
            return notices
