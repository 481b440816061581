"""Count the tasks in the database at an interval, for dashboards; one worker of a service does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from server.periodic import Periodic
from server.telemetry.tracing import traced_operation
from storage.database import Database
from storage.events import EventLog
from storage.repository import TaskRepository
from taskservice.v1.task_pb2 import TaskStatus

INTERVAL_SECONDS = 60.0


class Census:
    """Keep the latest counts; empty or None while there are none."""

    def __init__(self, database: Database, interval_seconds: float) -> None:
        self._repository = TaskRepository(database)
        self._events = EventLog(database)
        self._periodic = Periodic("census", self._run, interval_seconds)
        self.start, self.stop = self._periodic.start, self._periodic.stop
        self._forget()

    def tasks(self) -> Mapping[str, int]:
        """Return the number of tasks by status."""
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
        try:
            with traced_operation("census"):
                self._count()
        except Exception:
            self._forget()  # An old number would look like a new one.
            raise

    def _count(self) -> None:
        stats = self._repository.stats()
        totals = Counter[int]()
        for count in stats.counts:
            totals[count.status] += count.total
        self._overdue = stats.overdue
        self._tasks = {
            name.removeprefix("TASK_STATUS_"): totals[number]
            for name, number in TaskStatus.items()
            if number
        }
        self._events_lag_seconds = self._events.lag_seconds()
