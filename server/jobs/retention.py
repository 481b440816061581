"""Remove rows whose retention time is over, and repair the counters of tasks.

One process at a time does. Rows are removed in small batches, so that locks are short.
"""

import datetime as dt
from collections.abc import Callable

import structlog

from server.periodic import Periodic
from server.settings import Settings
from server.telemetry.tracing import traced_operation
from storage.database import Database
from storage.events import EventLog
from storage.repository import TaskRepository

log = structlog.get_logger()

# The request ids of writes are remembered at least for so long.
REQUEST_RETENTION = dt.timedelta(hours=24)

_INTERVAL_SECONDS = 600.0
_BATCH = 1000

# The key of the advisory lock, unique in the database: the letters "keep".
_LOCK = 0x6B656570


class Maintenance:
    """Remove old request records, old events, and tasks deleted long ago; repair counters."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._repository = TaskRepository(database)
        self._events = EventLog(database)
        self._event_retention = dt.timedelta(days=settings.event_retention_days)
        self._deleted_retention = dt.timedelta(days=settings.deleted_retention_days)
        self._periodic = Periodic(
            "maintenance", self._run, _INTERVAL_SECONDS, delay_seconds=_INTERVAL_SECONDS
        )
        self.start, self.stop = self._periodic.start, self._periodic.stop

    def run_once(self) -> dict[str, int]:
        """Remove the rows that are due, unless another process does; return their numbers."""
        with self._database.exclusively(_LOCK) as alone:
            if not alone:
                return {}
            removed = {
                "requests": self._all(self._repository.forget_requests, REQUEST_RETENTION),
                "events": self._all(self._events.trim, self._event_retention),
                "tasks": self._all(self._repository.purge_old, self._deleted_retention),
            }
            if repaired := self._repository.repair_counters():
                log.warning("counters of tasks repaired", counters=repaired)
            return removed

    def _all(self, remove: Callable[..., int], older_than: dt.timedelta) -> int:
        removed = 0
        while not self._periodic.is_stopped:
            batch = remove(older_than=older_than, limit=_BATCH)
            removed += batch
            if batch < _BATCH:
                break
        return removed

    def _run(self) -> None:
        with traced_operation("maintenance"):
            removed = self.run_once()
        log.info("maintenance done", **removed)
