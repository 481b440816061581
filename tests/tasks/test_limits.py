"""What an operator allows of what the contract allows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from server.settings import Settings
from storage.database import Database
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    BatchDeleteTasksRequest,
    BatchGetTasksRequest,
    BatchUpdateTasksRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    GetTaskStatsRequest,
    ListTaskEventsRequest,
    ListTasksRequest,
    PurgeTasksRequest,
    UpdateTaskRequest,
    WatchTasksRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import fails
from tests.support.workers import running_worker

INVALID = grpc.StatusCode.INVALID_ARGUMENT

LOW = {"max_page_size": 2, "max_batch_items": 2, "max_filter_terms": 2, "max_filter_depth": 1}

IDS = [f"0190a8d0-1e2b-7c3d-8e4f-5a6b7c8d9e0{digit}" for digit in "123"]


@pytest.fixture
def stub(settings: Settings, database: Database, database_url: str) -> Iterator[TaskServiceStub]:
    """A service that allows little."""
    with running_worker(settings.model_copy(update=LOW), database_url) as channel:
        yield TaskServiceStub(channel)


def create(stub: TaskServiceStub, title: str) -> Task:
    return stub.CreateTask(CreateTaskRequest(task=Task(title=title)))


def test_a_page_of_tasks_ends_at_the_limit(stub: TaskServiceStub) -> None:
    """What is asked for beyond it is no mistake (AIP-158)."""
    for title in "abc":
        create(stub, title)
    page = stub.ListTasks(ListTasksRequest(page_size=1000))
    assert len(page.tasks) == 2
    rest = stub.ListTasks(ListTasksRequest(page_size=1000, page_token=page.next_page_token))
    assert len(rest.tasks) == 1


def test_a_page_of_events_ends_at_the_limit(stub: TaskServiceStub) -> None:
    task = create(stub, "a")
    for title in "bc":
        stub.UpdateTask(UpdateTaskRequest(task=Task(id=task.id, title=title)))
    page = stub.ListTaskEvents(ListTaskEventsRequest(task_id=task.id))
    assert len(page.events) == 2
    assert page.next_page_token


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (BatchGetTasksRequest(ids=IDS), "ids"),
        (
            BatchCreateTasksRequest(
                requests=[CreateTaskRequest(task=Task(title=title)) for title in "abc"]
            ),
            "requests",
        ),
        (
            BatchUpdateTasksRequest(
                requests=[UpdateTaskRequest(task=Task(id=id_, title="b")) for id_ in IDS]
            ),
            "requests",
        ),
        (
            BatchDeleteTasksRequest(requests=[DeleteTaskRequest(id=id_) for id_ in IDS]),
            "requests",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_batch_over_the_limit_is_refused(
    stub: TaskServiceStub, request_: Any, field: str
) -> None:
    method = getattr(stub, request_.DESCRIPTOR.name.removesuffix("Request"))
    with fails(INVALID, "INVALID_REQUEST") as failure:
        method(request_)
    assert failure.violations == {field: "REPEATED_MAX_ITEMS"}
    assert "1 to 2 items" in failure.message


@pytest.mark.parametrize(
    ("filter_", "reason", "text"),
    [("a b c", "FILTER_TOO_LONG", "than 2 terms"), ("((a))", "FILTER_TOO_DEEP", "deeper than 1")],
)
@pytest.mark.parametrize(
    "request_type", [ListTasksRequest, GetTaskStatsRequest, PurgeTasksRequest, WatchTasksRequest]
)
def test_a_filter_over_the_limit_is_refused(
    stub: TaskServiceStub, request_type: Any, filter_: str, reason: str, text: str
) -> None:
    method = getattr(stub, request_type.DESCRIPTOR.name.removesuffix("Request"))
    with fails(INVALID, "INVALID_REQUEST") as failure:
        answer = method(request_type(filter=filter_))
        next(answer)
    assert failure.violations == {"filter": reason}
    assert text in failure.message
