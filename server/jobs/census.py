"""Count the tasks in the database at an interval, for dashboards; one worker of a service does."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from server.periodic import Periodic
from server.telemetry.tracing import traced_operation
from storage.database import Database
from storage.events import EventLog
from storage.repository import TaskRepository
from taskservice.v1.task_pb2 import TaskStatus

INTERVAL_SECONDS = 60.0


class Counts(NamedTuple):
    """The counts of the database; empty or None while they are unknown."""

    tasks: Mapping[str, int]  # The number of tasks by status.
    overdue: int | None
    events_lag_seconds: float | None


UNKNOWN = Counts({}, None, None)


class Census:
    """Keep the latest counts."""

    def __init__(self, database: Database, interval_seconds: float) -> None:
        self._repository = TaskRepository(database)
        self._events = EventLog(database)
        self._periodic = Periodic("census", self._run, interval_seconds)
        self.start, self.stop = self._periodic.start, self._periodic.stop
        self.latest = UNKNOWN

    def _run(self) -> None:
        try:
            with traced_operation("census"):
                self.latest = self._count()
        except Exception:
            self.latest = UNKNOWN  # An old number would look like a new one.
            raise

    def _count(self) -> Counts:
        stats = self._repository.stats()
        totals = Counter[int]()
        for count in stats.counts:
            totals[count.status] += count.total
        tasks = {
            name.removeprefix("TASK_STATUS_"): totals[number]
            for name, number in TaskStatus.items()
            if number
        }
        return Counts(tasks, stats.overdue, self._events.lag_seconds())
