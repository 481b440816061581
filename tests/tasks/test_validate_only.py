"""AIP-163: the answer that a request would have, without generated fields."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from taskservice.v1.task_pb2 import TASK_STATUS_COMPLETED, Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    BatchUpdateTasksRequest,
    CreateTaskRequest,
    GetTaskRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub

Create = Callable[..., Task]

GENERATED = {"etag", "updated_at", "completed_at"}


def fields(task: Task) -> set[str]:
    return {field.name for field, _ in task.ListFields()}


def create(stub: TaskServiceStub, **request: Any) -> Task:
    task = Task(title="try", status=TASK_STATUS_COMPLETED)
    return stub.CreateTask(CreateTaskRequest(task=task, validate_only=True, **request))


def test_a_creation_is_answered_without_generated_values(stub: TaskServiceStub) -> None:
    assert fields(create(stub)) == {"title", "status", "priority", "created_by"}


@pytest.mark.parametrize("upper", [False, True])
def test_a_creation_is_answered_with_the_id_that_was_given(
    stub: TaskServiceStub, upper: bool
) -> None:
    task_id = str(uuid.uuid4())
    assert create(stub, task_id=task_id.upper() if upper else task_id).id == task_id


def test_an_update_is_answered_without_generated_values(
    stub: TaskServiceStub, create_task: Create
) -> None:
    task = create_task()
    new = Task(id=task.id, status=TASK_STATUS_COMPLETED)
    answer = stub.UpdateTask(UpdateTaskRequest(task=new, validate_only=True))
    assert (answer.status, answer.created_at) == (TASK_STATUS_COMPLETED, task.created_at)
    assert not fields(answer) & GENERATED
    assert stub.GetTask(GetTaskRequest(id=task.id)) == task


def test_an_update_that_changes_nothing_is_answered_alike(
    stub: TaskServiceStub, create_task: Create
) -> None:
    task = create_task()
    answer = stub.UpdateTask(UpdateTaskRequest(task=task, validate_only=True))
    assert not fields(answer) & GENERATED


def test_batches_are_answered_without_generated_values(
    stub: TaskServiceStub, create_task: Create
) -> None:
    given = str(uuid.uuid4())
    creations = [
        CreateTaskRequest(task=Task(title="one"), task_id=given, validate_only=True),
        CreateTaskRequest(task=Task(title="two"), validate_only=True),
    ]
    created = stub.BatchCreateTasks(BatchCreateTasksRequest(requests=creations)).tasks
    assert [task.id for task in created] == [given, ""]
    update = UpdateTaskRequest(task=Task(id=create_task().id, title="new"), validate_only=True)
    updated = stub.BatchUpdateTasks(BatchUpdateTasksRequest(requests=[update])).tasks
    assert not any(fields(task) & GENERATED for task in [*created, *updated])
