"""Update tasks, and set times that no call can set."""

from __future__ import annotations

import datetime as dt
import uuid

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import text

from storage.database import Database
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import UpdateTaskRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub

SOME_ID = str(uuid.UUID(int=1))


def moment(**from_now: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(dt.datetime.now(dt.UTC) + dt.timedelta(**from_now))
    return timestamp


def update(stub: TaskServiceStub, task: Task, *paths: str, **options: object) -> Task:
    mask = FieldMask(paths=paths) if paths else None
    return stub.UpdateTask(UpdateTaskRequest(task=task, update_mask=mask, **options))  # type: ignore[arg-type]


def make_overdue(database: Database, task_id: str) -> None:
    """Move the due date into the past, in the database."""
    with database.engine.connect() as connection:
        connection.execute(
            text("UPDATE tasks SET due_date = now() - interval '1 day' WHERE id = :id"),
            {"id": task_id},
        )
