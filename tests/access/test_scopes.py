"""Scopes: the fields that each scope shows, of own tasks and of tasks of others."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterable
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from taskservice.v1.task_pb2 import TASK_PRIORITY_HIGH, TASK_STATUS_COMPLETED, Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    BatchDeleteTasksRequest,
    BatchUpdateTasksRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    GetTaskRequest,
    ListTaskEventsRequest,
    ListTasksRequest,
    PurgeTasksRequest,
    UndeleteTaskRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.access import ADMIN, READ, WRITE, StubOf
from tests.support.errors import fails

DENIED = grpc.StatusCode.PERMISSION_DENIED

Write = Callable[[TaskServiceStub, Task], Any]


def secret_task(**fields: Any) -> Task:
    """A task with something in every field that can be set."""
    due = Timestamp()
    due.FromDatetime(dt.datetime.now(dt.UTC) + dt.timedelta(days=1))
    return Task(
        title="a secret",
        description="more of it",
        priority=TASK_PRIORITY_HIGH,
        assigned_to="carl",
        due_date=due,
        tags=["secret"],
        **fields,
    )


def create(stub: TaskServiceStub, task: Task, **options: Any) -> Any:
    return stub.CreateTask(CreateTaskRequest(task=task, **options))


def update(stub: TaskServiceStub, task: Task, *mask: str, **options: Any) -> Any:
    changes = UpdateTaskRequest(task=task, update_mask=FieldMask(paths=mask), **options)
    return stub.UpdateTask(changes)


def delete(stub: TaskServiceStub, task: Task, **options: Any) -> Any:
    return stub.DeleteTask(DeleteTaskRequest(id=task.id, **options))


def undelete(stub: TaskServiceStub, task: Task) -> Any:
    return stub.UndeleteTask(UndeleteTaskRequest(id=task.id))


def twice(write: Callable[..., Any], *arguments: Any) -> Any:
    """The answer to a repetition."""
    request_id = str(uuid.uuid4())
    write(*arguments, request_id=request_id)
    return write(*arguments, request_id=request_id)


def deleted(write: Write) -> Write:
    def after_deletion(stub: TaskServiceStub, task: Task) -> Any:
        delete(stub, task)
        return write(stub, task)

    return after_deletion


WRITES: dict[str, Write] = {
    "create": lambda stub, _: create(stub, secret_task()),
    "create, validate_only": lambda stub, _: create(stub, secret_task(), validate_only=True),
    "create, repeated": lambda stub, _: twice(create, stub, secret_task()),
    "update": lambda stub, task: update(stub, Task(id=task.id, title="changed"), "title"),
    "update of nothing": lambda stub, task: update(stub, Task(id=task.id), "etag"),
    "update of all": lambda stub, task: update(stub, secret_task(id=task.id), "*"),
    "update, validate_only": lambda stub, task: update(
        stub, Task(id=task.id, title="changed"), "title", validate_only=True
    ),
    "update, repeated": lambda stub, task: twice(
        update, stub, Task(id=task.id, title="changed"), "title"
    ),
    "delete": delete,
    "delete what is deleted": deleted(lambda stub, task: delete(stub, task, allow_missing=True)),
    "undelete": deleted(undelete),
    "batch create": lambda stub, _: stub.BatchCreateTasks(
        BatchCreateTasksRequest(requests=[CreateTaskRequest(task=secret_task())])
    ),
    "batch update": lambda stub, task: stub.BatchUpdateTasks(
        BatchUpdateTasksRequest(
            requests=[
                UpdateTaskRequest(task=Task(id=task.id), update_mask=FieldMask(paths=["etag"]))
            ]
        )
    ),
    "batch delete": lambda stub, task: stub.BatchDeleteTasks(
        BatchDeleteTasksRequest(requests=[DeleteTaskRequest(id=task.id)])
    ),
    "batch delete what is deleted": deleted(
        lambda stub, task: stub.BatchDeleteTasks(
            BatchDeleteTasksRequest(requests=[DeleteTaskRequest(id=task.id, allow_missing=True)])
        )
    ),
}


@pytest.fixture
def task(stub_of: StubOf) -> Task:
    """A task of another principal."""
    return stub_of("bob", READ, WRITE).CreateTask(CreateTaskRequest(task=secret_task()))


def populated(answer: Any) -> set[str]:
    """Return the populated fields of the answer's one task."""
    (task,) = [answer] if isinstance(answer, Task) else answer.tasks
    return {field.name for field, _ in task.ListFields()}


@pytest.mark.parametrize("scopes", [(WRITE,), (WRITE, ADMIN)], ids="+".join)
@pytest.mark.parametrize("name", WRITES)
def test_a_principal_without_read_receives_only_id_and_etag(
    stub_of: StubOf, task: Task, name: str, scopes: tuple[str, ...]
) -> None:
    assert populated(WRITES[name](stub_of("ann", *scopes), task)) <= {"id", "etag"}


@pytest.mark.parametrize("name", WRITES)
def test_a_principal_with_read_receives_the_whole_task(
    stub_of: StubOf, task: Task, name: str
) -> None:
    assert {"title", "description", "assigned_to", "tags"} <= populated(
        WRITES[name](stub_of("ann", READ, WRITE), task)
    )


def test_an_id_and_an_etag_are_enough_to_go_on_writing(stub_of: StubOf) -> None:
    writer, reader = stub_of("ann", WRITE), stub_of("bob", READ)
    created = create(writer, secret_task())
    updated = update(writer, Task(id=created.id, title="changed", etag=created.etag), "title")
    assert updated.etag != created.etag
    with fails(grpc.StatusCode.ABORTED, "ETAG_MISMATCH"):
        delete(writer, created, etag=created.etag)
    delete(writer, created, etag=updated.etag)
    assert reader.GetTask(GetTaskRequest(id=created.id)).title == "changed"


def test_a_batch_answers_in_the_order_of_its_items(stub_of: StubOf) -> None:
    ids = [str(uuid.uuid4()) for _ in range(5)]
    answer = stub_of("ann", WRITE).BatchCreateTasks(
        BatchCreateTasksRequest(
            requests=[CreateTaskRequest(task=secret_task(), task_id=task_id) for task_id in ids]
        )
    )
    assert [task.id for task in answer.tasks] == ids
    assert all(populated(task) == {"id", "etag"} for task in answer.tasks)


def test_a_refused_transition_names_the_status(stub_of: StubOf, task: Task) -> None:
    """A writer without read must learn why the write fails; this is documented."""
    writer = stub_of("ann", WRITE)
    update(writer, Task(id=task.id, status=TASK_STATUS_COMPLETED), "status")
    with fails(grpc.StatusCode.FAILED_PRECONDITION, "STATUS_TRANSITION_NOT_ALLOWED") as failure:
        update(writer, Task(id=task.id, status=4), "status")  # type: ignore[arg-type]
    assert failure.message == "TASK_STATUS_COMPLETED does not lead to TASK_STATUS_CANCELLED"


# --- Purging --------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "filter_", ['description = "more of it"', "title:secret", "tags:secret", "deleted_at:*"]
)
def test_a_purge_without_read_discloses_nothing_of_deleted_tasks(
    stub_of: StubOf, task: Task, filter_: str, force: bool
) -> None:
    delete(stub_of("bob", WRITE), task)
    with fails(DENIED, "PERMISSION_DENIED") as failure:
        stub_of("ann", ADMIN, WRITE).PurgeTasks(PurgeTasksRequest(filter=filter_, force=force))
    assert failure.message == "the scope tasks:read is needed"


def test_an_administrator_that_may_read_purges(stub_of: StubOf, task: Task) -> None:
    delete(stub_of("bob", WRITE), task)
    purge = PurgeTasksRequest(filter='description = "more of it"', force=True)
    assert stub_of("ann", ADMIN, READ).PurgeTasks(purge).purge_count == 1


# --- One domain of trust --------------------------------------------------------------------------


def titles(tasks: Iterable[Task]) -> list[str]:
    return [task.title for task in tasks]


def test_a_principal_with_read_reads_the_tasks_of_all(stub_of: StubOf, task: Task) -> None:
    """There are no tenants; the README and the threat model say so."""
    reader = stub_of("ann", READ)
    assert reader.GetTask(GetTaskRequest(id=task.id)).title == "a secret"
    assert titles(reader.ListTasks(ListTasksRequest()).tasks) == ["a secret"]
    assert not reader.ListTaskEvents(ListTaskEventsRequest(task_id=task.id)).events
