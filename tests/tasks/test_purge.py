"""PurgeTasks removes deleted tasks permanently, and no others."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import grpc
import pytest

from server.tasks import servicer
from taskservice.v1.task_event_pb2 import TaskEvent
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    BatchDeleteTasksRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    GetTaskRequest,
    ListTaskEventsRequest,
    ListTasksRequest,
    PurgeTasksRequest,
    UndeleteTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import fails

Create = Callable[..., Task]

NOT_FOUND, INVALID = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT

ALL_DELETED = "deleted_at:*"


@pytest.fixture
def deleted_task(stub: TaskServiceStub, create_task: Create) -> Create:
    """Creates a task with these fields and deletes it."""

    def create(**fields: object) -> Task:
        return stub.DeleteTask(DeleteTaskRequest(id=create_task(**fields).id))

    return create


def purge(stub: TaskServiceStub, filter_: str, *, force: bool = True) -> int:
    return stub.PurgeTasks(PurgeTasksRequest(filter=filter_, force=force)).purge_count


def titles(stub: TaskServiceStub) -> set[str]:
    return {task.title for task in stub.ListTasks(ListTasksRequest(show_deleted=True)).tasks}


def test_without_force_it_counts_and_removes_nothing(
    stub: TaskServiceStub, create_task: Create, deleted_task: Create
) -> None:
    """AIP-165: without force the call only counts."""
    create_task(title="live", assigned_to="ann")
    deleted_task(title="of ann", assigned_to="ann")
    deleted_task(title="of ben", assigned_to="ben")
    assert purge(stub, 'assigned_to = "ann"', force=False) == 1
    assert titles(stub) == {"live", "of ann", "of ben"}


def test_with_force_the_deleted_tasks_that_match_are_removed(
    stub: TaskServiceStub, create_task: Create, deleted_task: Create
) -> None:
    create_task(title="live", assigned_to="ann")
    deleted_task(title="of ann", assigned_to="ann")
    deleted_task(title="of ben", assigned_to="ben")
    assert purge(stub, 'assigned_to = "ann"') == 1
    assert titles(stub) == {"live", "of ben"}


@pytest.mark.parametrize("filter_", [ALL_DELETED, 'title = "live"', "NOT deleted_at:*", "live"])
def test_live_tasks_never_go(stub: TaskServiceStub, create_task: Create, filter_: str) -> None:
    create_task(title="live")
    assert purge(stub, filter_) == 0
    assert titles(stub) == {"live"}


def test_a_task_that_was_brought_back_stays(stub: TaskServiceStub, deleted_task: Create) -> None:
    stub.UndeleteTask(UndeleteTaskRequest(id=deleted_task(title="back").id))
    assert purge(stub, ALL_DELETED) == 0
    assert titles(stub) == {"back"}


@pytest.mark.parametrize("filter_", ["", " ", "\t\n "])
@pytest.mark.parametrize("force", [False, True])
def test_a_blank_filter_is_refused(
    stub: TaskServiceStub, deleted_task: Create, filter_: str, force: bool
) -> None:
    """An omitted filter must not remove everything."""
    deleted_task(title="kept")
    with fails(INVALID, "INVALID_REQUEST") as failure:
        purge(stub, filter_, force=force)
    assert failure.violations == {"filter": "FILTER_NOT_BLANK"}
    assert titles(stub) == {"kept"}


def test_a_bad_filter_is_refused(stub: TaskServiceStub) -> None:
    with fails(INVALID, "INVALID_REQUEST") as failure:
        purge(stub, "colour = red")
    assert failure.violations == {"filter": "FILTER_INVALID"}


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 6])
def test_any_number_of_tasks_goes_in_small_groups(
    stub: TaskServiceStub,
    create_task: Create,
    deleted_task: Create,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
) -> None:
    monkeypatch.setattr(servicer, "_PURGE_BATCH", batch)
    create_task(title="live")
    for _ in range(5):
        deleted_task()
    assert purge(stub, ALL_DELETED) == 5
    assert titles(stub) == {"live"}


def test_a_purged_task_is_not_found(stub: TaskServiceStub, deleted_task: Create) -> None:
    task = deleted_task()
    purge(stub, ALL_DELETED)
    with fails(NOT_FOUND, "TASK_NOT_FOUND"):
        stub.GetTask(GetTaskRequest(id=task.id))
    with fails(NOT_FOUND, "TASK_NOT_FOUND"):
        stub.UndeleteTask(UndeleteTaskRequest(id=task.id))


def test_an_id_can_be_used_again_and_its_history_has_both_lives(stub: TaskServiceStub) -> None:
    task_id = str(uuid.uuid4())
    for title in ("first", "second"):
        stub.CreateTask(CreateTaskRequest(task=Task(title=title), task_id=task_id))
        stub.DeleteTask(DeleteTaskRequest(id=task_id))
        assert purge(stub, ALL_DELETED) == 1
    stub.CreateTask(CreateTaskRequest(task=Task(title="third"), task_id=task_id))

    assert stub.GetTask(GetTaskRequest(id=task_id)).title == "third"
    events = stub.ListTaskEvents(ListTaskEventsRequest(task_id=task_id)).events
    created, deleted = TaskEvent.TYPE_CREATED, TaskEvent.TYPE_DELETED
    assert [event.type for event in events] == [created, deleted, created, deleted, created]
    changed_titles = [
        change.after.string_value
        for event in events
        for change in event.changes
        if change.field == "title"
    ]
    assert changed_titles == ["third", "second", "first"]


def test_without_force_it_names_what_was_deleted_first(
    stub: TaskServiceStub, create_task: Create, deleted_task: Create
) -> None:
    create_task(title="live")
    deleted = [deleted_task(title=f"{number}").id for number in range(3)]
    answer = stub.PurgeTasks(PurgeTasksRequest(filter=ALL_DELETED))
    assert (answer.purge_count, list(answer.purge_sample)) == (3, deleted)


def test_the_sample_has_no_more_than_a_hundred_tasks(stub: TaskServiceStub) -> None:
    creations = [CreateTaskRequest(task=Task(title=f"{n}")) for n in range(120)]
    tasks = stub.BatchCreateTasks(BatchCreateTasksRequest(requests=creations)).tasks
    deletions = [DeleteTaskRequest(id=task.id) for task in tasks]
    stub.BatchDeleteTasks(BatchDeleteTasksRequest(requests=deletions))
    answer = stub.PurgeTasks(PurgeTasksRequest(filter=ALL_DELETED))
    assert (answer.purge_count, len(set(answer.purge_sample))) == (120, 100)


def test_with_force_it_names_none(stub: TaskServiceStub, deleted_task: Create) -> None:
    deleted_task()
    answer = stub.PurgeTasks(PurgeTasksRequest(filter=ALL_DELETED, force=True))
    assert (answer.purge_count, list(answer.purge_sample)) == (1, [])
