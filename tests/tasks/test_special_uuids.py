"""Ids of clients: the nil and the max UUID are refused as defaults that were never set."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import grpc
import pytest

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    BatchUpdateTasksRequest,
    CreateTaskRequest,
    ListTasksRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import fails

INVALID = grpc.StatusCode.INVALID_ARGUMENT

SPECIAL = [
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "FFFFFFFF-FFFF-ffff-FFFF-FFFFFFFFFFFF",
]
TASK = Task(title="one")

Send = Callable[[TaskServiceStub, str], object]

REQUESTS: dict[str, tuple[str, Send]] = {
    "create": (
        "request_id",
        lambda stub, id_: stub.CreateTask(CreateTaskRequest(task=TASK, request_id=id_)),
    ),
    "create with a task id": (
        "task_id",
        lambda stub, id_: stub.CreateTask(CreateTaskRequest(task=TASK, task_id=id_)),
    ),
    "update": (
        "request_id",
        lambda stub, id_: stub.UpdateTask(
            UpdateTaskRequest(task=Task(id=str(uuid.uuid4())), request_id=id_)
        ),
    ),
    "batch create": (
        "requests[0].request_id",
        lambda stub, id_: stub.BatchCreateTasks(
            BatchCreateTasksRequest(requests=[CreateTaskRequest(task=TASK, request_id=id_)])
        ),
    ),
    "batch update": (
        "requests[0].request_id",
        lambda stub, id_: stub.BatchUpdateTasks(
            BatchUpdateTasksRequest(
                requests=[UpdateTaskRequest(task=Task(id=str(uuid.uuid4())), request_id=id_)]
            )
        ),
    ),
}


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize(("field", "send"), REQUESTS.values(), ids=REQUESTS)
def test_a_special_uuid_is_refused(
    stub: TaskServiceStub, field: str, send: Send, special: str
) -> None:
    with fails(INVALID, "INVALID_REQUEST") as failure:
        send(stub, special)
    assert list(failure.violations) == [field]
    assert not stub.ListTasks(ListTasksRequest()).tasks


@pytest.mark.parametrize(
    "id_", ["00000000-0000-0000-0000-000000000001", "ffffffff-ffff-ffff-ffff-fffffffffffe"]
)
def test_the_uuids_beside_them_are_taken(stub: TaskServiceStub, id_: str) -> None:
    request = CreateTaskRequest(task=TASK, task_id=id_, request_id=id_)
    assert stub.CreateTask(request).id == id_
