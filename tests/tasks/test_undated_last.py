"""Tasks without a due date come after all others, in every order and on every page."""

from __future__ import annotations

import datetime as dt

import pytest

from taskservice.v1.task_pb2 import TASK_PRIORITY_HIGH, TASK_PRIORITY_LOW, Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest, ListTasksRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub

FIRST, SECOND = (dt.datetime(year, 1, 1, tzinfo=dt.UTC) for year in (2098, 2099))


@pytest.fixture(autouse=True)
def tasks(stub: TaskServiceStub) -> None:
    """Of each priority two tasks with a due date and two without."""
    for priority in (TASK_PRIORITY_LOW, TASK_PRIORITY_HIGH):
        name = "low" if priority == TASK_PRIORITY_LOW else "high"
        for due_date in (None, FIRST, SECOND, None):
            year = due_date.year if due_date else "never"
            task = Task(title=f"{name} {year}", priority=priority)
            if due_date:
                task.due_date.FromDatetime(due_date)
            stub.CreateTask(CreateTaskRequest(task=task))


def walk(stub: TaskServiceStub, request: ListTasksRequest) -> list[str]:
    """The titles of all pages."""
    titles: list[str] = []
    while True:
        page = stub.ListTasks(request)
        titles += [task.title for task in page.tasks]
        if not page.next_page_token:
            return titles
        request.page_token = page.next_page_token


LOW_UP = ["low 2098", "low 2099", "low never", "low never"]
LOW_DOWN = ["low 2099", "low 2098", "low never", "low never"]
HIGH_UP = [title.replace("low", "high") for title in LOW_UP]
HIGH_DOWN = [title.replace("low", "high") for title in LOW_DOWN]
NEVER_LOW, NEVER_HIGH = ["low never"] * 2, ["high never"] * 2


@pytest.mark.parametrize("page_size", [1, 3, 100])
@pytest.mark.parametrize(
    ("order", "titles"),
    [
        ("due_date", ["low 2098", "high 2098", "low 2099", "high 2099", *NEVER_LOW, *NEVER_HIGH]),
        (
            "due_date desc",
            ["high 2099", "low 2099", "high 2098", "low 2098", *NEVER_HIGH, *NEVER_LOW],
        ),
        (
            "due_date desc, priority",
            ["low 2099", "high 2099", "low 2098", "high 2098", *NEVER_LOW, *NEVER_HIGH],
        ),
        (
            "due_date desc, title desc",
            ["low 2099", "high 2099", "low 2098", "high 2098", *NEVER_LOW, *NEVER_HIGH],
        ),
        ("priority desc, due_date", HIGH_UP + LOW_UP),
        ("priority desc, due_date desc", HIGH_DOWN + LOW_DOWN),
        ("priority, due_date", LOW_UP + HIGH_UP),
        ("priority, due_date desc", LOW_DOWN + HIGH_DOWN),
        (
            "status, due_date desc, priority desc",
            ["high 2099", "low 2099", "high 2098", "low 2098", *NEVER_HIGH, *NEVER_LOW],
        ),
        ("priority, due_date desc, title, updated_at desc", LOW_DOWN + HIGH_DOWN),
    ],
)
def test_undated_tasks_come_last(
    stub: TaskServiceStub, order: str, titles: list[str], page_size: int
) -> None:
    assert walk(stub, ListTasksRequest(order_by=order, page_size=page_size)) == titles


def test_a_filter_of_due_dates_keeps_the_order(stub: TaskServiceStub) -> None:
    request = ListTasksRequest(
        filter="priority = LOW AND (NOT due_date:* OR due_date > 2098-06-01T00:00:00Z)",
        order_by="due_date desc",
        page_size=1,
    )
    assert walk(stub, request) == ["low 2099", *NEVER_LOW]
