"""Make sixty tasks with many combinations of values, and select tasks by a filter."""

from __future__ import annotations

import datetime as dt
import uuid
from itertools import cycle, islice

from google.protobuf.timestamp_pb2 import Timestamp

from taskservice.v1.task_pb2 import TASK_STATUS_COMPLETED, Task
from taskservice.v1.task_service_pb2 import ListTasksRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub

ANY = "tags:any"  # No search for words, whose number has a lower limit.
UUID = "0198c0de-0000-7000-8000-000000000001"
TIMES = ("due_date", "created_at", "updated_at", "completed_at", "deleted_at")
TEXTS = ("title", "description", "assigned_to", "created_by")

EARLY, MIDDLE, LATE = (
    dt.datetime(year, 6, 1, 12, 0, 0, 500, dt.UTC) for year in (2020, 2030, 2040)
)

DUE = (None, EARLY, MIDDLE, LATE)
TITLES = ("Pay the invoice", "invoice", "INVOICE now", "the late late show", "Übung", "say 'hi'")
DESCRIPTIONS = ("", "the invoice", "Pay now", "late", "invoice now the")
ASSIGNEES = ("", "ana", "Ana", "bob@example.com", "😀")
TAGS: tuple[list[str], ...] = ([], ["billing"], ["Billing", "x y"], ["*", "late"])


def sample_rows() -> list[dict[str, object]]:
    """Return rows with many combinations of values; some are completed or deleted."""
    columns = (TITLES, DESCRIPTIONS, ASSIGNEES, DUE, TAGS, (1, 2, 3, 3, 4, 1, 2), (1, 2, 3, 4, 1))
    rows = []
    for number, values in enumerate(islice(zip(*map(cycle, columns), strict=True), 60)):
        title, description, assigned_to, due_date, tags, status, priority = values
        rows.append(
            {
                "id": str(uuid.UUID(int=number + 1)),
                "title": title,
                "description": description,
                "assigned_to": assigned_to,
                "due_date": due_date,
                "tags": tags,
                "status": status,
                "priority": priority,
                "created_by": "maker" if number % 3 else "",
                "created_at": (EARLY, MIDDLE)[number % 2],
                "updated_at": (EARLY, MIDDLE, LATE)[number % 3],
                "completed_at": (EARLY, LATE)[number % 2]
                if status == TASK_STATUS_COMPLETED
                else None,
                "deleted_at": MIDDLE if number % 7 == 0 else None,
            }
        )
    return rows


def selected(stub: TaskServiceStub, text: str) -> list[Task]:
    """Return the tasks that a filter selects, including deleted ones."""
    request = ListTasksRequest(
        filter=text, page_size=1000, show_deleted=True, order_by="created_at"
    )
    return list(stub.ListTasks(request).tasks)


def ids(tasks: list[Task]) -> set[str]:
    return {task.id for task in tasks}


def time_of(task: Task, field: str) -> dt.datetime | None:
    value: Timestamp = getattr(task, field)
    return value.ToDatetime(dt.UTC) if task.HasField(field) else None  # type: ignore[arg-type]
