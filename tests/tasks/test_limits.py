"""The contract's limits, where more than one method enforces them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    GetTaskStatsRequest,
    ListTaskEventsRequest,
    ListTasksRequest,
    PurgeTasksRequest,
    UpdateTaskRequest,
    WatchTasksRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import fails

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def test_a_page_of_events_ends_at_the_limit(
    stub: TaskServiceStub, create_task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.tasks.servicer.MAX_PAGE_SIZE", 2)
    task = create_task()
    for title in "bc":
        stub.UpdateTask(UpdateTaskRequest(task=Task(id=task.id, title=title)))
    page = stub.ListTaskEvents(ListTaskEventsRequest(task_id=task.id, page_size=1000))
    assert len(page.events) == 2
    assert page.next_page_token


@pytest.mark.parametrize(
    ("filter_", "reason", "text"),
    [
        ("priority = LOW " * 51, "FILTER_TOO_LONG", "than 50 terms"),
        ("(" * 21 + "a" + ")" * 21, "FILTER_TOO_DEEP", "deeper than 20"),
    ],
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
