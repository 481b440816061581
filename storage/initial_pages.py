"""The pages of tasks that a watch begins with, and the snapshots that they were read in."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from storage.tables import TaskRow

if TYPE_CHECKING:
    from storage.events import Event


class Snapshot:
    """The transactions that a statement saw, as PostgreSQL writes them: `xmin:xmax:xip,…`."""

    def __init__(self, text: str) -> None:
        xmin, xmax, running = text.split(":")
        self._xmin, self._xmax = int(xmin), int(xmax)
        self._running = {int(xid) for xid in running.split(",") if xid}

    @property
    def end(self) -> int:
        """The transaction id from which on no transaction had begun."""
        return self._xmax

    def sees(self, xid: int) -> bool:
        return xid < self._xmin or (xid < self._xmax and xid not in self._running)


class InitialPage(NamedTuple):
    """A page of tasks, the last id that it covers (None for the last page), and its snapshot."""

    tasks: list[TaskRow]
    last_id: str | None
    snapshot: Snapshot


class InitialPages:
    """The pages read so far: the ids that each covers, and its snapshot."""

    def __init__(self) -> None:
        self._last_ids: list[str] = []
        self._snapshots: list[Snapshot] = []

    def add(self, last_id: str | None, snapshot: Snapshot) -> None:
        """Add a page; without a last id it covers all further ids."""
        self._snapshots.append(snapshot)
        if last_id is not None:
            self._last_ids.append(last_id)

    @property
    def are_complete(self) -> bool:
        return len(self._snapshots) > len(self._last_ids)

    @property
    def last_id(self) -> str | None:
        return self._last_ids[-1] if self._last_ids else None

    @property
    def end(self) -> int:
        """The transaction id from which on no page saw any."""
        return self._snapshots[-1].end

    def have_seen(self, event: Event) -> bool:
        page = bisect_left(self._last_ids, event.task_id)
        return self._snapshots[page].sees(event.written_by)
