"""Batches that are refused: nothing is written, and the error names the item."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2

from storage.database import Database
from taskservice.v1.task_pb2 import TASK_STATUS_CANCELLED, TASK_STATUS_COMPLETED, Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    BatchDeleteTasksRequest,
    BatchGetTasksRequest,
    BatchUpdateTasksRequest,
    CreateTaskRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.batches import (
    KINDS,
    PAST,
    SOME_ID,
    Item,
    Make,
    create,
    delete,
    made,
    new_id,
    nothing_is_written,
    send,
    update,
)
from tests.support.errors import ABORTED, EXISTS, INVALID, NOT_FOUND, PRECONDITION, Failure, fails

# What an item can be refused for. Each makes it from a task of its own, with a service to set the
# stage.
Bad = Callable[[TaskServiceStub, Task], Item]


def _create_taken(_: TaskServiceStub, task: Task) -> Item:
    return create(task_id=task.id.upper())


def _create_reused(stub: TaskServiceStub, _: Task) -> Item:
    request = create("one", request_id=new_id())
    stub.CreateTask(request)
    return create("two", request_id=request.request_id.upper())


def _create_past(*_: object) -> Item:
    return CreateTaskRequest(task=Task(title="late", due_date=PAST))


def _update_reused(stub: TaskServiceStub, task: Task) -> Item:
    request = update(task.id, title="one")
    request.request_id = new_id()
    stub.UpdateTask(request)
    request.task.title = "two"
    return request


def _update_stale(stub: TaskServiceStub, task: Task) -> Item:
    stub.UpdateTask(update(task.id, title="newer"))
    return update(task.id, title="mine", etag=task.etag)


def _update_ended(stub: TaskServiceStub, task: Task) -> Item:
    stub.UpdateTask(update(task.id, status=TASK_STATUS_CANCELLED))
    return update(task.id, status=TASK_STATUS_COMPLETED)


def _update_deleted(stub: TaskServiceStub, task: Task) -> Item:
    stub.DeleteTask(delete(task.id))
    return update(task.id, title="too late")


def _delete_stale(stub: TaskServiceStub, task: Task) -> Item:
    stub.UpdateTask(update(task.id, title="newer"))
    return delete(task.id, etag=task.etag, allow_missing=True)


def _delete_deleted(stub: TaskServiceStub, task: Task) -> Item:
    stub.DeleteTask(delete(task.id))
    return delete(task.id)


# Of one item: the status, its reason, and the field for those that break a rule.
REFUSED: list[Any] = [
    pytest.param(bad, code, reason, field, id=f"{kind}-{name}")
    for kind, name, bad, code, reason, field in [
        ("get", "violation", lambda *_: "x", INVALID, "INVALID_REQUEST", "ids[17]"),
        ("get", "missing", lambda *_: SOME_ID, NOT_FOUND, "TASK_NOT_FOUND", ""),
        ("create", "violation", lambda *_: create(" "), INVALID, "INVALID_REQUEST", "task.title"),
        ("create", "past", _create_past, INVALID, "INVALID_REQUEST", "task.due_date"),
        ("create", "taken", _create_taken, EXISTS, "TASK_EXISTS", ""),
        ("create", "reused", _create_reused, EXISTS, "REQUEST_ID_REUSED", ""),
        (
            *("update", "violation", lambda _, task: update(task.id, "title")),
            *(INVALID, "INVALID_REQUEST", "task.title"),
        ),
        (
            *("update", "past", lambda _, task: update(task.id, due_date=PAST)),
            *(INVALID, "INVALID_REQUEST", "task.due_date"),
        ),
        (
            *("update", "missing", lambda *_: update(SOME_ID.upper(), title="x")),
            *(NOT_FOUND, "TASK_NOT_FOUND", ""),
        ),
        ("update", "reused", _update_reused, EXISTS, "REQUEST_ID_REUSED", ""),
        ("update", "stale", _update_stale, ABORTED, "ETAG_MISMATCH", ""),
        ("update", "ended", _update_ended, PRECONDITION, "STATUS_TRANSITION_NOT_ALLOWED", ""),
        ("update", "deleted", _update_deleted, PRECONDITION, "TASK_DELETED", ""),
        ("delete", "violation", lambda *_: delete("x"), INVALID, "INVALID_REQUEST", "id"),
        ("delete", "missing", lambda *_: delete(SOME_ID), NOT_FOUND, "TASK_NOT_FOUND", ""),
        ("delete", "stale", _delete_stale, ABORTED, "ETAG_MISMATCH", ""),
        ("delete", "deleted", _delete_deleted, NOT_FOUND, "TASK_NOT_FOUND", ""),
    ]
]


def good(like: Item, task: Task) -> Item:
    """An item of the same kind that nothing is wrong with."""
    match like:
        case str():
            return task.id
        case CreateTaskRequest():
            return create(request_id=new_id())
        case UpdateTaskRequest():
            return update(task.id, title="good")
        case _:
            return delete(task.id)


class TestAllOrNothing:
    @pytest.fixture
    def refused(
        self,
        stub: TaskServiceStub,
        database: Database,
        bad: Bad,
        code: grpc.StatusCode,
        reason: str,
    ) -> Failure:
        """A batch of 20 good items but the 18th has failed, and nothing was written."""
        tasks = made(stub, 20)
        item = bad(stub, tasks[17])
        items = [good(item, task) for task in tasks]
        items[17] = item
        with nothing_is_written(database), fails(code, reason) as failure:
            send(stub, items)
        return failure

    @pytest.mark.parametrize(("bad", "code", "reason", "field"), REFUSED)
    def test_for_one_bad_item_nothing_is_written_and_the_error_names_it(
        self, refused: Failure, field: str
    ) -> None:
        if not field:
            item = refused.info.metadata["item"]
            assert item in {"ids[17]", "requests[17]"}
            assert refused.message.startswith(f"{item}: ")
        elif field.startswith("ids"):
            assert set(refused.violations) == {field}
        else:
            assert set(refused.violations) == {f"requests[17].{field}"}

    def test_the_error_has_the_details_of_its_cause(self, stub: TaskServiceStub) -> None:
        task, other = made(stub, 2)
        stub.DeleteTask(delete(other.id))
        with fails(PRECONDITION, "TASK_DELETED") as failure:
            send(stub, [update(task.id, title="x"), update(other.id, title="x")])
        resource = failure.detail(error_details_pb2.ResourceInfo)
        assert resource.resource_name == other.id
        violation = failure.detail(error_details_pb2.PreconditionFailure).violations[0]
        assert (violation.type, violation.subject) == ("TASK_DELETED", other.id)

    def test_of_several_bad_items_the_first_is_named(self, stub: TaskServiceStub) -> None:
        (task,) = made(stub, 1)
        with fails(NOT_FOUND, "TASK_NOT_FOUND") as failure:
            send(stub, [task.id, new_id(), new_id()])
        assert failure.info.metadata["item"] == "ids[1]"

    def test_violations_of_all_items_are_reported_at_once(self, stub: TaskServiceStub) -> None:
        with fails(INVALID, "INVALID_REQUEST") as failure:
            send(
                stub,
                [
                    create(" ", task_id="x"),
                    create(),
                    CreateTaskRequest(request_id="x"),
                    CreateTaskRequest(task=Task(title="t", tags=["ok", ""])),
                ],
            )
        assert failure.violations == {
            "requests[0].task.title": "TASK_TITLE_NOT_BLANK",
            "requests[0].task_id": "STRING_UUID",
            "requests[2].task": "REQUIRED",
            "requests[2].request_id": "STRING_UUID",
            "requests[3].task.tags[1]": "TASK_TAGS_NOT_BLANK",
        }

    def test_violations_of_all_updates_are_reported_at_once(self, stub: TaskServiceStub) -> None:
        with fails(INVALID, "INVALID_REQUEST") as failure:
            send(
                stub,
                [
                    update("x", title=" "),
                    update(SOME_ID, "colour"),
                    update(new_id(), due_date=Timestamp(seconds=1, nanos=-1)),
                ],
            )
        assert failure.violations == {
            "requests[0].task.id": "STRING_UUID",
            "requests[0].task.title": "TASK_TITLE_NOT_BLANK",
            "requests[1].update_mask": "UNKNOWN_FIELD",
            "requests[2].task.due_date": "TIMESTAMP_MALFORMED",
        }

    @pytest.mark.parametrize("count", [3, 1000])
    def test_violations_of_all_ids_are_reported_at_once(
        self, stub: TaskServiceStub, count: int
    ) -> None:
        """However many ids there are."""
        ids = [new_id() for _ in range(count)]
        ids[0], ids[-1] = "x", "y"
        with fails(INVALID, "INVALID_REQUEST") as failure:
            send(stub, ids)
        assert failure.violations == {
            "ids[0]": "STRING_UUID",
            f"ids[{count - 1}]": "STRING_UUID",
        }

    def test_past_due_dates_of_all_items_are_reported_at_once(self, stub: TaskServiceStub) -> None:
        tasks = made(stub, 3)
        late = Task(title="late", due_date=PAST)
        for items in (
            [CreateTaskRequest(task=late), create(), CreateTaskRequest(task=late)],
            [update(t.id, due_date=PAST if t != tasks[1] else None) for t in tasks],
        ):
            with fails(INVALID, "INVALID_REQUEST") as failure:
                send(stub, items)
            assert failure.violations == {
                "requests[0].task.due_date": "TIMESTAMP_IN_PAST",
                "requests[2].task.due_date": "TIMESTAMP_IN_PAST",
            }


METHODS: list[Any] = [
    pytest.param("BatchGetTasks", BatchGetTasksRequest, "ids", id="get"),
    pytest.param("BatchCreateTasks", BatchCreateTasksRequest, "requests", id="create"),
    pytest.param("BatchUpdateTasks", BatchUpdateTasksRequest, "requests", id="update"),
    pytest.param("BatchDeleteTasks", BatchDeleteTasksRequest, "requests", id="delete"),
]


class TestTheItems:
    @pytest.mark.parametrize(("method", "message", "field"), METHODS)
    def test_a_batch_of_none_is_refused(
        self, stub: TaskServiceStub, method: str, message: Any, field: str
    ) -> None:
        with fails(INVALID, "INVALID_REQUEST") as failure:
            getattr(stub, method)(message())
        assert failure.violations == {field: "REPEATED_MIN_ITEMS"}

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_batch_of_1001_is_refused(
        self, stub: TaskServiceStub, database: Database, kind: Make
    ) -> None:
        items = [kind(task) for task in [*made(stub, 1000), *made(stub, 1)]]
        with nothing_is_written(database), fails(INVALID, "INVALID_REQUEST") as failure:
            send(stub, items)
        field = "ids" if isinstance(items[0], str) else "requests"
        assert failure.violations == {field: "REPEATED_MAX_ITEMS"}

    @pytest.mark.parametrize(
        ("make", "field"),
        [
            (str, "ids[{}]"),
            (lambda id_: create(task_id=id_), "requests[{}].task_id"),
            (lambda id_: create(request_id=id_), "requests[{}].request_id"),
            (lambda id_: update(id_, title="x"), "requests[{}].task.id"),
            (delete, "requests[{}].id"),
        ],
        ids=["get", "create", "create by request", "update", "delete"],
    )
    def test_what_stands_twice_is_refused(
        self, stub: TaskServiceStub, make: Callable[[str], Item], field: str
    ) -> None:
        """In whatever case: an id is a UUID, not a text."""
        items = [make(SOME_ID), make(new_id()), make(SOME_ID.upper()), make(SOME_ID)]
        with fails(INVALID, "INVALID_REQUEST") as failure:
            send(stub, items)
        assert failure.violations == {field.format(n): "DUPLICATE" for n in (2, 3)}

    def test_a_request_id_for_two_updates_is_refused(self, stub: TaskServiceStub) -> None:
        items = [update(task.id, title="x") for task in made(stub, 2)]
        items[0].request_id, items[1].request_id = SOME_ID, SOME_ID.upper()
        with fails(INVALID, "INVALID_REQUEST") as failure:
            send(stub, items)
        assert failure.violations == {"requests[1].request_id": "DUPLICATE"}

    def test_tasks_without_ids_are_no_duplicates(self, stub: TaskServiceStub) -> None:
        answer = send(stub, [create("same"), create("same")])
        assert len({task.id for task in answer}) == 2


class TestValidateOnly:
    def test_creations_are_answered_and_not_done(
        self, stub: TaskServiceStub, database: Database
    ) -> None:
        items = [create(f"{n}", validate_only=True, request_id=new_id()) for n in range(3)]
        with nothing_is_written(database):
            answer = send(stub, items)
        assert [task.title for task in answer] == ["0", "1", "2"]

    def test_updates_are_answered_and_not_done(
        self, stub: TaskServiceStub, database: Database
    ) -> None:
        items = [update(task.id, title="new") for task in made(stub, 3)]
        for item in items:
            item.validate_only = True
        with nothing_is_written(database):
            answer = send(stub, items)
        assert [task.title for task in answer] == ["new"] * 3

    @pytest.mark.parametrize(("bad", "code", "reason", "_"), REFUSED[2:13])
    def test_what_would_fail_fails(
        self, stub: TaskServiceStub, bad: Bad, code: grpc.StatusCode, reason: str, _: str
    ) -> None:
        (task,) = made(stub, 1)
        item: Any = bad(stub, task)
        item.validate_only = True
        with fails(code, reason):
            send(stub, [item])

    def test_it_is_for_all_items_or_for_none(
        self, stub: TaskServiceStub, database: Database
    ) -> None:
        one, two = made(stub, 2)
        updates = [update(one.id, title="x"), update(two.id, title="x")]
        updates[1].validate_only = True
        for items in ([create(), create(validate_only=True)], updates):
            with nothing_is_written(database), fails(INVALID, "INVALID_REQUEST") as failure:
                send(stub, items)
            assert failure.violations == {"requests[1].validate_only": "VALIDATE_ONLY_DIFFERS"}
