"""What is in the database, counted every so often for dashboards: by one worker of the service."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import structlog

from server.telemetry.tracing import traced_operation
from storage.database import Database
from storage.events import EventLog
from storage.repository import TaskRepository
from taskservice.v1.task_pb2 import TaskStatus

log = structlog.get_logger()

INTERVAL_SECONDS = 60.0


class Census:
    """The latest counts; None and nothing while there are none."""

    def __init__(self, database: Database, interval_seconds: float) -> None:
        self._repository = TaskRepository(database)
        self._events = EventLog(database)
        self._interval_seconds = interval_seconds
        self._stopped = threading.Event()
        self._forget()

    def start(self) -> None:
        threading.Thread(target=self._run, name="census", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def tasks(self) -> Mapping[str, int]:
        """How many tasks there are of each status."""
        return self._tasks

    def overdue(self) -> int | None:
        return self._overdue

    def events_lag_seconds(self) -> float | None:
        return self._events_lag_seconds

    def _forget(self) -> None:
        self._tasks: dict[str, int] = {}
        self._overdue: int | None = None
        self._events_lag_seconds: float | None = None

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                with traced_operation("census"):
                    self._count()
            except Exception as error:  # The next turn may be better.
                self._forget()  # An old number would look like a new one.
                log.warning("tasks were not counted", why=str(error))
            self._stopped.wait(self._interval_seconds)

    def _count(self) -> None:
        counts = self._repository.stats().counts
        self._overdue = sum(count.overdue for count in counts)
        self._tasks = {
            name.removeprefix("TASK_STATUS_"): sum(c.total for c in counts if c.status == number)
            for name, number in TaskStatus.items()
            if number
        }
        self._events_lag_seconds = self._events.lag_seconds()
