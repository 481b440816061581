"""GetTaskStats."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable

from server.tasks.conversions import stats_to_proto
from storage.database import Database
from storage.repository import Stats, StatusPriorityCount
from taskservice.v1.task_pb2 import (
    TASK_PRIORITY_HIGH,
    TASK_PRIORITY_LOW,
    TASK_STATUS_CANCELLED,
    TASK_STATUS_COMPLETED,
    TASK_STATUS_IN_PROGRESS,
    Task,
)
from taskservice.v1.task_service_pb2 import DeleteTaskRequest, GetTaskStatsRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import INVALID, fails
from tests.support.tasks import make_overdue, moment

Create = Callable[..., Task]


class TestGetTaskStats:
    def test_an_empty_service_counts_nothing_of_everything(self, stub: TaskServiceStub) -> None:
        stats = stub.GetTaskStats(GetTaskStatsRequest())
        assert (stats.total, stats.overdue) == (0, 0)
        assert [(c.status, c.count) for c in stats.by_status] == [(s, 0) for s in range(1, 5)]
        assert [(c.priority, c.count) for c in stats.by_priority] == [(p, 0) for p in range(1, 5)]

    def test_it_counts_by_status_and_priority_and_what_is_overdue(
        self, stub: TaskServiceStub, create_task: Create, database: Database
    ) -> None:
        create_task(status=TASK_STATUS_COMPLETED, priority=TASK_PRIORITY_LOW)
        create_task(priority=TASK_PRIORITY_HIGH, due_date=moment(days=1))
        late = create_task(status=TASK_STATUS_IN_PROGRESS, due_date=moment(days=1))
        done = create_task(status=TASK_STATUS_CANCELLED, due_date=moment(days=1))
        gone = create_task(due_date=moment(days=1))
        for task in (late, done, gone):
            make_overdue(database, task.id)
        stub.DeleteTask(DeleteTaskRequest(id=gone.id))

        before = time.time()
        stats = stub.GetTaskStats(GetTaskStatsRequest())

        assert stats.total == 4
        assert [c.count for c in stats.by_status] == [1, 1, 1, 1]
        assert [c.count for c in stats.by_priority] == [1, 2, 1, 0]
        assert stats.overdue == 1
        assert before <= stats.as_of.ToNanoseconds() / 1e9 <= time.time()

    def test_a_filter_narrows_it(self, stub: TaskServiceStub, create_task: Create) -> None:
        create_task(assigned_to="ann")
        create_task(assigned_to="ben")
        stats = stub.GetTaskStats(GetTaskStatsRequest(filter='assigned_to = "ann"'))
        assert stats.total == 1

    def test_a_bad_filter_is_refused(self, stub: TaskServiceStub) -> None:
        with fails(INVALID, "INVALID_REQUEST") as failure:
            stub.GetTaskStats(GetTaskStatsRequest(filter="colour = red"))
        assert failure.violations == {"filter": "FILTER_INVALID"}


def test_counts_beyond_int32_saturate() -> None:
    half = 2**30 + 1
    counts = [StatusPriorityCount(status, 1, total=half) for status in (1, 2)]
    stats = stats_to_proto(Stats(dt.datetime.now(dt.UTC), 2 * half, counts))
    assert (stats.total, stats.overdue, stats.by_priority[0].count) == (2**31 - 1,) * 3
    assert [each.count for each in stats.by_status[:2]] == [half] * 2
