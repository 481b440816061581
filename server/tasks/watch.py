"""Buffer the notices of an open watch, check its credentials, and end it."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import grpc

from server.access.principal import ANONYMOUS
from server.calls.current import current_call
from server.errors import CredentialsExpiredError, UnauthenticatedError
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


class Watch:
    """The notices delivered to a watch, its credentials, and the exception that ends it.

    The credentials are checked when they expire, and periodically: their key may be removed.
    """

    def __init__(
        self,
        filter_: Filter | None,
        context: grpc.ServicerContext,
        authenticate: Callable[[grpc.ServicerContext], object],
        bookmark_seconds: float,
    ) -> None:
        principal = current_call().principal
        self.principal = principal.name
        # The connection where nothing is authenticated.
        self.client = context.peer() if self.principal == ANONYMOUS.name else self.principal
        self.filter_ = filter_
        self.context = context
        self.sending_since: float | None = None
        self.delivered = self.taken = Position(0, 0)
        self._authenticate = authenticate
        self._bookmark_seconds = bookmark_seconds
        self._expires = principal.expires
        self._next_check = min(time.time() + bookmark_seconds, self._expires)
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
        if time.time() < self._next_check:
            return
        try:
            self._authenticate(self.context)
        except UnauthenticatedError:
            raise CredentialsExpiredError from None
        self._next_check = min(time.time() + self._bookmark_seconds, self._expires)

    def pause(self, seconds: float) -> None:
        """Wait, unless the watch ends. Raises: as `check`."""
        with self._changed:
            self._changed.wait_for(lambda: self._end, seconds)
        self.check()

    def notices(self) -> Iterator[Notice]:
        """Yield deliveries and bookmarks until the watch falls behind. Raises: as `check`."""
        while (taken := self._take()) is not None:
            yield from taken

    def _take(self) -> list[Notice] | None:
        seconds = min(self._bookmark_seconds, max(0.0, self._next_check - time.time()))
        with self._changed:
            self._changed.wait_for(lambda: self._notices or self._is_behind or self._end, seconds)
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
