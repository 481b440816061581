"""Store tasks directly and walk through the pages of a list."""

from __future__ import annotations

import datetime as dt
import random
import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import insert

from storage.database import Database
from storage.tables import tasks as tasks_table
from taskservice.v1.task_pb2 import TASK_STATUS_COMPLETED
from taskservice.v1.task_service_pb2 import ListTasksRequest, ListTasksResponse
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub

DAY = dt.timedelta(days=1)
TODAY = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)


def store(database: Database, rows: list[dict[str, object]]) -> None:
    """Store tasks directly, with what no call can set: ids in any order, equal times."""
    defaults = {
        "title": "a task",
        "description": "",
        "status": 1,
        "priority": 2,
        "assigned_to": "",
        "due_date": None,
        "created_by": "",
        "created_at": TODAY,
        "updated_at": TODAY,
        "completed_at": None,
        "deleted_at": None,
    }
    complete = [{"id": str(uuid.uuid4()), **defaults, **row} for row in rows]
    with database.engine.connect() as connection:
        connection.execute(insert(tasks_table), complete)


def tied_rows(count: int, chance: random.Random) -> list[dict[str, object]]:
    """Return rows with few different values, so that every order has many ties."""
    statuses = [chance.randint(1, 4) for _ in range(count)]
    return [
        {
            "id": str(uuid.UUID(int=chance.getrandbits(128))),
            "title": chance.choice("abc"),
            "assigned_to": chance.choice(["", "ana", "bob"]),
            "status": status,
            "priority": chance.randint(1, 4),
            "due_date": chance.choice([None, None, TODAY, TODAY + DAY]),
            "created_at": TODAY - chance.randint(0, 3) * DAY,
            "updated_at": TODAY + chance.randint(0, 2) * DAY,
            "completed_at": TODAY if status == TASK_STATUS_COMPLETED else None,
        }
        for status in statuses
    ]


def pages(
    stub: TaskServiceStub, request: ListTasksRequest, sizes: Iterator[int] | None = None
) -> Iterator[ListTasksResponse]:
    """Yield the pages of a list, each of the next size where sizes are given."""
    request = ListTasksRequest.FromString(request.SerializeToString())
    for _ in range(200):
        if sizes is not None:
            request.page_size = next(sizes)
        page = stub.ListTasks(request)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
    pytest.fail("the walk does not end")


def ids(page: ListTasksResponse) -> list[str]:
    return [task.id for task in page.tasks]


def walk(stub: TaskServiceStub, request: ListTasksRequest) -> list[str]:
    """Return the ids of all pages, in order."""
    return [id_ for page in pages(stub, request) for id_ in ids(page)]
