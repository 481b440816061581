"""Housekeeping: what is kept for a set time is removed when that time is over."""

from __future__ import annotations

import datetime as dt
import threading

import structlog

from storage.errors import StorageError
from storage.repository import TaskRepository

log = structlog.get_logger()

_INTERVAL_SECONDS = 600.0
_BATCH = 1000


class Maintenance:
    """Removes old request records, a small batch at a time, from a thread of its own."""

    def __init__(self, repository: TaskRepository, *, request_id_retention: dt.timedelta) -> None:
        self._repository = repository
        self._request_id_retention = request_id_retention
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="maintenance", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def run_once(self) -> int:
        """Removes all that is due; returns how much. Raises: StorageError."""
        removed = 0
        while not self._stopped.is_set():
            batch = self._repository.forget_requests(
                older_than=self._request_id_retention, limit=_BATCH
            )
            removed += batch
            if batch < _BATCH:
                break
        return removed

    def _run(self) -> None:
        while not self._stopped.wait(_INTERVAL_SECONDS):
            try:
                removed = self.run_once()
            except StorageError as error:
                log.warning("maintenance failed", why=str(error))
            else:
                log.debug("maintenance done", request_ids_forgotten=removed)
