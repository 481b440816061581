"""Make, send and compare batches of the four kinds."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import text

from storage.database import Database
from taskservice.v1.task_event_pb2 import TaskEvent
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    BatchDeleteTasksRequest,
    BatchGetTasksRequest,
    BatchUpdateTasksRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    ListTaskEventsRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub

Create = Callable[..., Task]
Item = str | CreateTaskRequest | UpdateTaskRequest | DeleteTaskRequest
Make = Callable[[Task], Item]
SOME_ID = str(uuid.UUID(int=0xABCDEF))
PAST = Timestamp(seconds=1)
WIDE = "\U00010348"


def new_id() -> str:
    return str(uuid.uuid4())


def send(stub: TaskServiceStub, items: Sequence[Any]) -> list[Task]:
    """Send the batch of these items; their type selects the method."""
    match items[0]:
        case str():
            return list(stub.BatchGetTasks(BatchGetTasksRequest(ids=items)).tasks)
        case CreateTaskRequest():
            created = stub.BatchCreateTasks(BatchCreateTasksRequest(requests=items))
            return list(created.tasks)
        case UpdateTaskRequest():
            updated = stub.BatchUpdateTasks(BatchUpdateTasksRequest(requests=items))
            return list(updated.tasks)
        case _:
            deleted = stub.BatchDeleteTasks(BatchDeleteTasksRequest(requests=items))
            return list(deleted.tasks)


def create(title: str = "new", **options: Any) -> CreateTaskRequest:
    return CreateTaskRequest(task=Task(title=title), **options)


def update(task_id: str, *paths: str, etag: str = "", **fields: Any) -> UpdateTaskRequest:
    task = Task(id=task_id, etag=etag, **fields)
    return UpdateTaskRequest(task=task, update_mask=FieldMask(paths=paths) if paths else None)


def delete(task_id: str, **options: Any) -> DeleteTaskRequest:
    return DeleteTaskRequest(id=task_id, **options)


def made(stub: TaskServiceStub, count: int, **fields: Any) -> list[Task]:
    """Create this many tasks."""
    tasks = [Task(**{"title": f"task {number}", **fields}) for number in range(count)]
    return send(stub, [CreateTaskRequest(task=task) for task in tasks])


# The four kinds of items, each made from a task that exists.
KINDS: list[Any] = [
    pytest.param(lambda task: task.id, id="get"),
    pytest.param(lambda task: create(f"another {task.title}"), id="create"),
    pytest.param(lambda task: update(task.id, title=f"new {task.title}"), id="update"),
    pytest.param(lambda task: delete(task.id), id="delete"),
]


def contents(database: Database) -> list[Any]:
    """Return every row that a write could change."""
    names = ("tasks", "requests", "task_events")
    return [
        [row[0] for row in database.read(text(f"SELECT to_jsonb(t) FROM {name} t ORDER BY 1"))]  # noqa: S608
        for name in names
    ]


@contextmanager
def nothing_is_written(database: Database) -> Iterator[None]:
    before = contents(database)
    yield
    assert contents(database) == before


def event_types(stub: TaskServiceStub, task: Task) -> list[TaskEvent.Type.ValueType]:
    events = stub.ListTaskEvents(ListTaskEventsRequest(task_id=task.id)).events
    return [event.type for event in events]
