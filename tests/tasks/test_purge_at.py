"""AIP-164: purge_at is the time until which a task can be undeleted."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator

import pytest

from server.settings import Settings
from storage.database import Database
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchDeleteTasksRequest,
    BatchGetTasksRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    GetTaskRequest,
    ListTaskEventsRequest,
    ListTasksRequest,
    UndeleteTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.watching import DELETED, Watch
from tests.support.workers import running_worker

Create = Callable[..., Task]

DAYS = 3


@pytest.fixture
def keeping(settings: Settings, database_url: str, database: Database) -> Iterator[TaskServiceStub]:
    """A service that keeps deleted tasks for three days."""
    own = settings.model_copy(update={"deleted_retention_days": DAYS})
    with running_worker(own, database_url) as channel:
        yield TaskServiceStub(channel)


def kept_for(task: Task) -> dt.timedelta:
    return task.purge_at.ToDatetime() - task.deleted_at.ToDatetime()


def test_every_answer_with_a_deleted_task_has_purge_at(keeping: TaskServiceStub) -> None:
    watching = Watch(keeping)
    watching.bookmark()
    created = keeping.CreateTask(CreateTaskRequest(task=Task(title="one")))
    assert not created.HasField("purge_at")
    assert not watching.change().task.HasField("purge_at")
    deleted = keeping.DeleteTask(DeleteTaskRequest(id=created.id))
    again = DeleteTaskRequest(id=created.id, allow_missing=True)
    change = watching.change()
    assert change.type == DELETED
    answers = [
        deleted,
        change.task,
        keeping.GetTask(GetTaskRequest(id=created.id)),
        keeping.DeleteTask(again),
        *keeping.ListTasks(ListTasksRequest(show_deleted=True)).tasks,
        *keeping.BatchGetTasks(BatchGetTasksRequest(ids=[created.id])).tasks,
        *keeping.BatchDeleteTasks(BatchDeleteTasksRequest(requests=[again])).tasks,
    ]
    assert [kept_for(task) for task in answers] == [dt.timedelta(days=DAYS)] * 7
    watching.cancel()


def test_a_task_that_was_undeleted_has_none(keeping: TaskServiceStub) -> None:
    task = keeping.CreateTask(CreateTaskRequest(task=Task(title="one")))
    keeping.DeleteTask(DeleteTaskRequest(id=task.id))
    assert not keeping.UndeleteTask(UndeleteTaskRequest(id=task.id)).HasField("purge_at")


def test_it_is_not_among_the_changes_of_an_event(keeping: TaskServiceStub) -> None:
    task = keeping.CreateTask(CreateTaskRequest(task=Task(title="one")))
    keeping.DeleteTask(DeleteTaskRequest(id=task.id))
    newest = keeping.ListTaskEvents(ListTaskEventsRequest(task_id=task.id)).events[0]
    assert [change.field for change in newest.changes] == ["deleted_at"]


def test_what_a_client_sends_as_purge_at_is_ignored(stub: TaskServiceStub) -> None:
    task = Task(title="one")
    task.purge_at.GetCurrentTime()
    assert not stub.CreateTask(CreateTaskRequest(task=task)).HasField("purge_at")


def test_a_retention_of_a_century_still_has_a_date(
    settings: Settings, database_url: str, database: Database
) -> None:
    own = settings.model_copy(update={"deleted_retention_days": 100 * 365})
    with running_worker(own, database_url) as channel:
        stub = TaskServiceStub(channel)
        task = stub.CreateTask(CreateTaskRequest(task=Task(title="one")))
        deleted = stub.DeleteTask(DeleteTaskRequest(id=task.id))
    assert kept_for(deleted) == dt.timedelta(days=100 * 365)
