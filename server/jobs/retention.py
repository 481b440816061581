"""Housekeeping: what is kept for a set time is removed when that time is over.

By one process at a time, and a small batch at a time, so that nobody waits for it.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from functools import partial

import structlog

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

# Any number will do, as long as nobody else takes the same one: the letters "keep".
_LOCK = 0x6B656570


class Maintenance:
    """Removes old request records, old events, and tasks deleted long ago; on its own thread."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._repository = TaskRepository(database)
        self._events = EventLog(database)
        self._event_retention = dt.timedelta(days=settings.event_retention_days)
        self._deleted_retention = dt.timedelta(days=settings.deleted_retention_days)
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="maintenance", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def run_once(self) -> dict[str, int]:
        """Removes all that is due, unless another process does; returns how much.

        Raises: StorageError.
        """
        with self._database.exclusively(_LOCK) as alone:
            if not alone:
                return {}
            return {
                "requests": self._all(
                    partial(self._repository.forget_requests, older_than=REQUEST_RETENTION)
                ),
                "events": self._all(partial(self._events.trim, older_than=self._event_retention)),
                "tasks": self._all(
                    partial(self._repository.purge_old, older_than=self._deleted_retention)
                ),
            }

    def _all(self, remove: Callable[..., int]) -> int:
        removed = 0
        while not self._stopped.is_set():
            batch = remove(limit=_BATCH)
            removed += batch
            if batch < _BATCH:
                break
        return removed

    def _run(self) -> None:
        while not self._stopped.wait(_INTERVAL_SECONDS):
            try:
                with traced_operation("maintenance"):
                    removed = self.run_once()
            except Exception as error:  # The next turn may be better.
                log.warning("maintenance failed", why=str(error))
            else:
                log.info("maintenance done", **removed)
