"""What a watch yields, where it keeps its position, and how it continues after a failure."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import WatchTasksRequest, WatchTasksResponse
from taskservice_client.errors import InvalidRequest, ResumeTokenExpired, TaskServiceError

LONGEST_PAUSE_SECONDS = 10.0

_TEMPORARY = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class WatchEventType(enum.StrEnum):
    """The kinds of events."""

    ADDED = "ADDED"
    """The task now matches the filter."""
    MODIFIED = "MODIFIED"
    """The task changed and still matches."""
    DELETED = "DELETED"
    """The task no longer matches, or was deleted."""
    BOOKMARK = "BOOKMARK"
    """All changes so far were sent."""
    RESTARTED = "RESTARTED"
    """The position was lost: forget the tasks known so far. With `initial`, those that match follow
    as ADDED, then a BOOKMARK."""


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """A change of a task, a bookmark or a restart."""

    type: WatchEventType
    task: Task
    """The task after the change; empty in a BOOKMARK and a RESTARTED."""
    resume_token: str = ""
    """Resumes a watch after this event; empty while the initial tasks are sent."""


class TokenStore(Protocol):
    """A place for the resume token, which outlives the process."""

    def load(self) -> str:
        """Return the token, or an empty text if there is none."""

    def save(self, token: str) -> None:
        """Replace the token; an empty one begins anew."""


class FileTokenStore:
    """Keep the token in a file of the mode 0600, replaced atomically."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def load(self) -> str:
        """Return the token, or an empty text if there is no file."""
        try:
            return self._path.read_text()
        except FileNotFoundError:
            return ""

    def save(self, token: str) -> None:
        """Replace the file."""
        new = self._path.with_name(self._path.name + ".new")
        new.touch(mode=0o600)
        new.write_text(token)
        os.replace(new, self._path)


class Position:
    """The position of a watch in the changes, across its streams."""

    def __init__(
        self, filter_: str, token: str, store: TokenStore | None, *, initial: bool
    ) -> None:
        self._filter = filter_
        self._store = store
        self._initial = initial
        self._token = token or (store.load() if store else "")
        self._has_yielded = bool(self._token)

    def request(self) -> WatchTasksRequest:
        """Return the request that continues the watch, or begins it."""
        return WatchTasksRequest(
            filter=self._filter,
            resume_token=self._token,
            send_initial_tasks=self._initial and not self._token,
        )

    def event(self, response: WatchTasksResponse) -> WatchEvent:
        """Convert a response."""
        self._has_yielded = True
        kind = WatchTasksResponse.Type.Name(response.type).removeprefix("TYPE_")
        return WatchEvent(WatchEventType(kind), response.task, response.resume_token)

    def keep(self, event: WatchEvent) -> None:
        """Continue after this event, which was processed."""
        if event.resume_token:
            self._move_to(event.resume_token)

    def restarted(self, error: TaskServiceError) -> WatchEvent | None:
        """Return the event of a lost position: no token, or one that is no longer valid."""
        if self._token and not _is_token_invalid(error):
            return None
        if self._token:
            self._move_to("")
        has_yielded, self._has_yielded = self._has_yielded, False
        return WatchEvent(WatchEventType.RESTARTED, Task()) if has_yielded else None

    def can_continue(self, error: TaskServiceError) -> bool:
        """Return whether another stream can succeed: not if the filter is wrong, for instance."""
        if error.code in _TEMPORARY or (self._token and _is_token_invalid(error)):
            return True
        # A proxy's, or the transport's.
        unknown = grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN
        return error.code in unknown and not error.reason

    def _move_to(self, token: str) -> None:
        self._token = token
        if self._store:
            self._store.save(token)


def _is_token_invalid(error: TaskServiceError) -> bool:
    """Return whether the token is too old, of another watch, or encrypted with a removed key."""
    if isinstance(error, ResumeTokenExpired):
        return True
    fields = {violation.field for violation in error.violations}
    return isinstance(error, InvalidRequest) and fields == {"resume_token"}
