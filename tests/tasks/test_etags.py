"""An etag names one state of one task: none is generated twice."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchDeleteTasksRequest,
    BatchUpdateTasksRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    GetTaskRequest,
    PurgeTasksRequest,
    UndeleteTaskRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import fails

ABORTED = grpc.StatusCode.ABORTED

Write = Callable[[TaskServiceStub, Task], object]


def create(stub: TaskServiceStub, task_id: str, title: str = "one") -> Task:
    return stub.CreateTask(CreateTaskRequest(task=Task(title=title), task_id=task_id))


def update(stub: TaskServiceStub, task_id: str, title: str, etag: str = "") -> Task:
    task = Task(id=task_id, title=title, etag=etag)
    return stub.UpdateTask(UpdateTaskRequest(task=task))


def delete(stub: TaskServiceStub, task_id: str) -> Task:
    return stub.DeleteTask(DeleteTaskRequest(id=task_id))


def undelete(stub: TaskServiceStub, task_id: str) -> Task:
    return stub.UndeleteTask(UndeleteTaskRequest(id=task_id))


def purge(stub: TaskServiceStub, task_id: str) -> None:
    stub.PurgeTasks(PurgeTasksRequest(filter=f'id = "{task_id}"', force=True))


WRITES: dict[str, Write] = {
    "update": lambda stub, old: update(stub, old.id, "mine", old.etag),
    "delete": lambda stub, old: stub.DeleteTask(DeleteTaskRequest(id=old.id, etag=old.etag)),
    "batch update": lambda stub, old: stub.BatchUpdateTasks(
        BatchUpdateTasksRequest(
            requests=[UpdateTaskRequest(task=Task(id=old.id, title="mine", etag=old.etag))]
        )
    ),
    "batch delete": lambda stub, old: stub.BatchDeleteTasks(
        BatchDeleteTasksRequest(requests=[DeleteTaskRequest(id=old.id, etag=old.etag)])
    ),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_an_etag_from_before_a_purge_lets_no_write_through(
    stub: TaskServiceStub, write: Write
) -> None:
    old = create(stub, str(uuid.uuid4()), "old")
    delete(stub, old.id)
    purge(stub, old.id)
    new = create(stub, old.id, "new")
    with fails(ABORTED, "ETAG_MISMATCH"):
        write(stub, old)
    assert stub.GetTask(GetTaskRequest(id=old.id)) == new


def test_an_etag_from_before_a_purge_undeletes_nothing(stub: TaskServiceStub) -> None:
    task_id = create(stub, str(uuid.uuid4())).id
    old = delete(stub, task_id)
    purge(stub, task_id)
    create(stub, task_id)
    delete(stub, task_id)
    with fails(ABORTED, "ETAG_MISMATCH"):
        stub.UndeleteTask(UndeleteTaskRequest(id=task_id, etag=old.etag))


def test_two_tasks_with_the_same_content_have_different_etags(stub: TaskServiceStub) -> None:
    """An etag that is sent with another task's id does not let the write through."""
    first, second = (create(stub, str(uuid.uuid4())) for _ in range(2))
    with fails(ABORTED, "ETAG_MISMATCH"):
        update(stub, second.id, "mine", first.etag)


def test_a_write_that_leads_back_to_an_old_content_has_a_new_etag(stub: TaskServiceStub) -> None:
    first = create(stub, str(uuid.uuid4()), "there")
    update(stub, first.id, "back")
    assert update(stub, first.id, "there").etag != first.etag


_STEPS: dict[str, Callable[[TaskServiceStub, str], object]] = {
    "create": create,
    "update": lambda stub, task_id: update(stub, task_id, str(uuid.uuid4())),
    "delete": delete,
    "undelete": undelete,
    "purge": purge,
}


def test_no_order_of_writes_gives_an_old_etag_again(stub: TaskServiceStub) -> None:
    def step(name: str, task_id: str) -> None:
        try:
            _STEPS[name](stub, task_id)
        except grpc.RpcError as error:
            refusals = {"NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION"}
            assert error.code().name in refusals, error  # noqa: PT017

    @given(st.lists(st.sampled_from(["create", *_STEPS]), max_size=14))
    def hold(steps: list[str]) -> None:
        task_id = str(uuid.uuid4())
        seen: dict[str, Task] = {}
        for name in ["create", *steps]:
            step(name, task_id)
            try:
                task = stub.GetTask(GetTaskRequest(id=task_id))
            except grpc.RpcError:
                continue
            assert seen.setdefault(task.etag, task) == task

    hold()
