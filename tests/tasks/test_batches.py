"""Batches: the answer in the order asked, all or nothing, and an error that names its item."""

from __future__ import annotations

import datetime as dt
import itertools
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import event, text

from server.tasks import writes
from server.tasks.validation import check_update
from storage.database import Database
from storage.repository import Origin, TaskRepository
from taskservice.v1.task_event_pb2 import TaskEvent
from taskservice.v1.task_pb2 import (
    TASK_STATUS_CANCELLED,
    TASK_STATUS_COMPLETED,
    TASK_STATUS_IN_PROGRESS,
    Task,
)
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    BatchDeleteTasksRequest,
    BatchGetTasksRequest,
    BatchUpdateTasksRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    GetTaskRequest,
    ListTaskEventsRequest,
    PurgeTasksRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import Failure, fails

Create = Callable[..., Task]
Item = str | CreateTaskRequest | UpdateTaskRequest | DeleteTaskRequest
Make = Callable[[Task], Item]

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
EXISTS, ABORTED = grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.ABORTED
PRECONDITION, EXHAUSTED = (
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)

SOMEBODY = str(uuid.UUID(int=0xABCDEF))
PAST = Timestamp(seconds=1)
WIDE = "\U00010348"


def new_id() -> str:
    return str(uuid.uuid4())


def send(stub: TaskServiceStub, items: Sequence[Any]) -> list[Task]:
    """The batch of these items; what they are says which."""
    match items[0]:
        case str():
            return list(stub.BatchGetTasks(BatchGetTasksRequest(ids=items)).tasks)
        case CreateTaskRequest():
            created = stub.BatchCreateTasks(BatchCreateTasksRequest(requests=items))
            return list(created.tasks)
        case UpdateTaskRequest():
            updated = stub.BatchUpdateTasks(BatchUpdateTasksRequest(requests=items))
            return list(updated.tasks)
        case _:
            deleted = stub.BatchDeleteTasks(BatchDeleteTasksRequest(requests=items))
            return list(deleted.tasks)


def create(title: str = "new", **options: Any) -> CreateTaskRequest:
    return CreateTaskRequest(task=Task(title=title), **options)


def update(task_id: str, *paths: str, etag: str = "", **fields: Any) -> UpdateTaskRequest:
    task = Task(id=task_id, etag=etag, **fields)
    return UpdateTaskRequest(task=task, update_mask=FieldMask(paths=paths) if paths else None)


def delete(task_id: str, **options: Any) -> DeleteTaskRequest:
    return DeleteTaskRequest(id=task_id, **options)


def made(stub: TaskServiceStub, count: int, **fields: Any) -> list[Task]:
    """This many new tasks."""
    tasks = [Task(**{"title": f"task {number}", **fields}) for number in range(count)]
    return send(stub, [CreateTaskRequest(task=task) for task in tasks])


# The four kinds of items, each made from a task that exists.
KINDS: list[Any] = [
    pytest.param(lambda task: task.id, id="get"),
    pytest.param(lambda task: create(f"another {task.title}"), id="create"),
    pytest.param(lambda task: update(task.id, title=f"new {task.title}"), id="update"),
    pytest.param(lambda task: delete(task.id), id="delete"),
]


def contents(database: Database) -> list[Any]:
    """Everything that a write could change."""
    names = ("tasks", "requests", "task_events")
    return [
        [row[0] for row in database.read(text(f"SELECT to_jsonb(t) FROM {name} t ORDER BY 1"))]  # noqa: S608
        for name in names
    ]


@contextmanager
def nothing_is_written(database: Database) -> Iterator[None]:
    before = contents(database)
    yield
    assert contents(database) == before


def event_types(stub: TaskServiceStub, task: Task) -> list[TaskEvent.Type.ValueType]:
    events = stub.ListTaskEvents(ListTaskEventsRequest(task_id=task.id)).events
    return [event.type for event in events]


class TestTheAnswer:
    @pytest.mark.parametrize("kind", KINDS)
    def test_it_has_the_tasks_in_the_order_asked(self, stub: TaskServiceStub, kind: Make) -> None:
        """Not in that of the ids, which is the order in which rows are locked."""
        tasks = made(stub, 20)
        shuffled = tasks[10:] + tasks[9::-1]
        answer = send(stub, [kind(task) for task in shuffled])
        assert [task.title.split()[-1] for task in answer] == [
            task.title.split()[-1] for task in shuffled
        ]

    @pytest.mark.parametrize("kind", KINDS)
    def test_it_has_the_tasks_as_they_are_then(self, stub: TaskServiceStub, kind: Make) -> None:
        answer = send(stub, [kind(task) for task in made(stub, 3)])
        assert send(stub, [task.id for task in answer]) == answer

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_batch_of_1000_works(self, stub: TaskServiceStub, kind: Make) -> None:
        assert len(send(stub, [kind(task) for task in made(stub, 1000)])) == 1000

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_batch_of_1_works(self, stub: TaskServiceStub, kind: Make) -> None:
        assert len(send(stub, [kind(task) for task in made(stub, 1)])) == 1

    def test_ids_in_upper_case_are_the_same_tasks(self, stub: TaskServiceStub) -> None:
        ids = [task.id for task in made(stub, 2)]
        for items in (
            [id_.upper() for id_ in ids],
            [update(id_.upper(), title="new") for id_ in ids],
            [delete(id_.upper()) for id_ in ids],
        ):
            assert [task.id for task in send(stub, items)] == ids
        created = send(stub, [create(task_id=SOMEBODY.upper())])
        assert created[0].id == SOMEBODY

    def test_deleted_tasks_can_be_got(self, stub: TaskServiceStub) -> None:
        tasks = made(stub, 2)
        deleted = send(stub, [delete(tasks[0].id)])
        assert send(stub, [task.id for task in tasks]) == [*deleted, tasks[1]]

    @pytest.mark.parametrize(
        ("kind", "type_"),
        [
            (KINDS[1].values[0], TaskEvent.TYPE_CREATED),
            (KINDS[2].values[0], TaskEvent.TYPE_UPDATED),
            (KINDS[3].values[0], TaskEvent.TYPE_DELETED),
        ],
        ids=["create", "update", "delete"],
    )
    def test_each_task_has_an_event_of_it(
        self, stub: TaskServiceStub, kind: Make, type_: TaskEvent.Type.ValueType
    ) -> None:
        answer = send(stub, [kind(task) for task in made(stub, 5)])
        assert [event_types(stub, task)[0] for task in answer] == [type_] * 5

    def test_an_update_changes_what_its_own_mask_names(self, stub: TaskServiceStub) -> None:
        one, two, three = made(stub, 3, description="old", assigned_to="ann")
        answer = send(
            stub,
            [
                update(one.id, "description", title="not meant", description="new"),
                update(two.id, "*", title="all"),
                update(three.id, assigned_to="ben"),
            ],
        )
        assert [(task.title, task.description, task.assigned_to) for task in answer] == [
            ("task 0", "new", "ann"),
            ("all", "", ""),
            ("task 2", "old", "ben"),
        ]

    def test_an_update_that_changes_nothing_leaves_its_task_as_it_is(
        self, stub: TaskServiceStub, database: Database
    ) -> None:
        tasks = made(stub, 3)
        with nothing_is_written(database):
            assert send(stub, [update(task.id, title=task.title) for task in tasks]) == tasks
        changed = send(stub, [update(task.id, title="task 1") for task in tasks])
        assert changed[1] == tasks[1]
        assert event_types(stub, tasks[0])[0] == TaskEvent.TYPE_UPDATED


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
        ("get", "missing", lambda *_: SOMEBODY, NOT_FOUND, "TASK_NOT_FOUND", ""),
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
            *("update", "missing", lambda *_: update(SOMEBODY.upper(), title="x")),
            *(NOT_FOUND, "TASK_NOT_FOUND", ""),
        ),
        ("update", "reused", _update_reused, EXISTS, "REQUEST_ID_REUSED", ""),
        ("update", "stale", _update_stale, ABORTED, "ETAG_MISMATCH", ""),
        ("update", "ended", _update_ended, PRECONDITION, "STATUS_TRANSITION_NOT_ALLOWED", ""),
        ("update", "deleted", _update_deleted, PRECONDITION, "TASK_DELETED", ""),
        ("delete", "violation", lambda *_: delete("x"), INVALID, "INVALID_REQUEST", "id"),
        ("delete", "missing", lambda *_: delete(SOMEBODY), NOT_FOUND, "TASK_NOT_FOUND", ""),
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

    def test_violations_of_all_items_are_told_at_once(self, stub: TaskServiceStub) -> None:
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

    def test_violations_of_all_updates_are_told_at_once(self, stub: TaskServiceStub) -> None:
        with fails(INVALID, "INVALID_REQUEST") as failure:
            send(
                stub,
                [
                    update("x", title=" "),
                    update(SOMEBODY, "colour"),
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
    def test_violations_of_all_ids_are_told_at_once(
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

    def test_past_due_dates_of_all_items_are_told_at_once(self, stub: TaskServiceStub) -> None:
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
        items = [make(SOMEBODY), make(new_id()), make(SOMEBODY.upper()), make(SOMEBODY)]
        with fails(INVALID, "INVALID_REQUEST") as failure:
            send(stub, items)
        assert failure.violations == {field.format(n): "DUPLICATE" for n in (2, 3)}

    def test_a_request_id_for_two_updates_is_refused(self, stub: TaskServiceStub) -> None:
        items = [update(task.id, title="x") for task in made(stub, 2)]
        items[0].request_id, items[1].request_id = SOMEBODY, SOMEBODY.upper()
        with fails(INVALID, "INVALID_REQUEST") as failure:
            send(stub, items)
        assert failure.violations == {"requests[1].request_id": "DUPLICATE"}

    def test_tasks_without_ids_are_no_duplicates(self, stub: TaskServiceStub) -> None:
        answer = send(stub, [create("same"), create("same")])
        assert len({task.id for task in answer}) == 2


class TestRequestIds:
    def test_a_repeated_batch_of_creations_returns_its_tasks(
        self, stub: TaskServiceStub, database: Database
    ) -> None:
        items = [create(f"{number}", request_id=new_id()) for number in range(20)]
        tasks = send(stub, items)
        with nothing_is_written(database):
            assert send(stub, items) == tasks

    def test_a_repeated_batch_of_updates_returns_its_tasks(
        self, stub: TaskServiceStub, database: Database
    ) -> None:
        """Their etags are outdated by their own first run."""
        items = [update(t.id, title=f"new {t.title}", etag=t.etag) for t in made(stub, 20)]
        for item in items:
            item.request_id = new_id()
        tasks = send(stub, items)
        with nothing_is_written(database):
            assert send(stub, items) == tasks

    def test_a_repeated_batch_returns_its_tasks_as_they_are_now(
        self, stub: TaskServiceStub
    ) -> None:
        items = [create(f"{number}", request_id=new_id()) for number in range(3)]
        tasks = send(stub, items)
        (tasks[1],) = send(stub, [update(tasks[1].id, title="later")])
        assert send(stub, items) == tasks

    def test_of_creations_done_before_only_the_rest_is_done(self, stub: TaskServiceStub) -> None:
        """Some alone, some in another batch, in another order."""
        items = [create(f"{number}", request_id=new_id()) for number in range(6)]
        done = {4: stub.CreateTask(items[4])}
        done[3], done[1] = send(stub, [items[3], items[1]])
        tasks = send(stub, items)
        assert [task.title for task in tasks] == ["0", "1", "2", "3", "4", "5"]
        assert {number: tasks[number] for number in done} == done
        assert all(event_types(stub, task) == [TaskEvent.TYPE_CREATED] for task in tasks)

    def test_of_updates_done_before_only_the_rest_is_done(self, stub: TaskServiceStub) -> None:
        tasks = made(stub, 4)
        items = [update(task.id, title="mine", etag=task.etag) for task in tasks]
        for item in items[:2]:
            item.request_id = new_id()
        stub.UpdateTask(items[1])
        stub.UpdateTask(update(tasks[1].id, title="later"))
        answer = send(stub, items)
        assert [task.title for task in answer] == ["mine", "later", "mine", "mine"]
        assert [len(event_types(stub, task)) for task in tasks] == [2, 3, 2, 2]

    def test_an_item_done_before_does_not_excuse_a_bad_one(
        self, stub: TaskServiceStub, database: Database
    ) -> None:
        (taken,) = made(stub, 1)
        done, fresh = (create(request_id=new_id()) for _ in range(2))
        stub.CreateTask(done)
        with nothing_is_written(database), fails(EXISTS, "TASK_EXISTS") as failure:
            send(stub, [fresh, done, create(task_id=taken.id)])
        assert failure.info.metadata["item"] == "requests[2]"

    def test_a_refused_batch_leaves_its_request_ids_unused(self, stub: TaskServiceStub) -> None:
        (taken,) = made(stub, 1)
        request_id = new_id()
        with fails(EXISTS, "TASK_EXISTS"):
            send(stub, [create(request_id=request_id), create(task_id=taken.id)])
        assert send(stub, [create("another body", request_id=request_id)])

    def test_a_batch_of_creations_can_be_repeated_after_its_due_dates(
        self, stub: TaskServiceStub
    ) -> None:
        soon = Timestamp()
        soon.FromDatetime(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1))
        task = Task(title="soon", due_date=soon)
        items = [CreateTaskRequest(task=task, request_id=new_id()) for _ in range(2)]
        answer = send(stub, items)
        while dt.datetime.now(dt.UTC) <= soon.ToDatetime(dt.UTC):
            stub.GetTask(GetTaskRequest(id=answer[0].id))
        assert send(stub, items) == answer

    def test_many_at_once_make_the_tasks_once(self, stub: TaskServiceStub) -> None:
        """In opposite orders, so that each has to wait for what the other has begun."""
        items = [create(request_id=new_id()) for _ in range(10)]

        def make(number: int) -> set[str]:
            return {task.id for task in send(stub, items if number % 2 else items[::-1])}

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(make, range(32)))
        assert all(answer == answers[0] for answer in answers)

    def test_an_item_whose_task_was_purged_is_named(self, stub: TaskServiceStub) -> None:
        """The caller does not know the id that the server chose; the item it knows."""
        items = [create(f"{number}", request_id=new_id()) for number in range(3)]
        tasks = send(stub, items)
        stub.DeleteTask(delete(tasks[1].id))
        stub.PurgeTasks(PurgeTasksRequest(filter="deleted_at:*", force=True))
        with fails(NOT_FOUND, "TASK_NOT_FOUND") as failure:
            send(stub, items)
        assert failure.info.metadata["item"] == "requests[1]"

    def test_a_request_id_is_not_mistaken_for_another_items_task_id(
        self, stub: TaskServiceStub
    ) -> None:
        (taken,) = made(stub, 1)
        with fails(EXISTS, "TASK_EXISTS") as failure:
            send(stub, [create(request_id=taken.id), create(task_id=taken.id)])
        assert failure.info.metadata["item"] == "requests[1]"


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


class TestDeletions:
    def test_missing_and_deleted_tasks_may_be_allowed(self, stub: TaskServiceStub) -> None:
        live, dead = made(stub, 2)
        deleted = stub.DeleteTask(delete(dead.id))
        ids = [SOMEBODY.upper(), dead.id, live.id]
        answer = send(stub, [delete(id_, allow_missing=True) for id_ in ids])
        assert answer[:2] == [Task(id=SOMEBODY), deleted]
        assert answer[2].HasField("deleted_at")

    def test_what_one_item_allows_another_does_not(
        self, stub: TaskServiceStub, database: Database
    ) -> None:
        (live,) = made(stub, 1)
        items = [delete(live.id), delete(new_id(), allow_missing=True), delete(SOMEBODY)]
        with nothing_is_written(database), fails(NOT_FOUND, "TASK_NOT_FOUND") as failure:
            send(stub, items)
        assert failure.info.metadata["item"] == "requests[2]"

    def test_where_nothing_is_left_to_delete_nothing_is_written(
        self, stub: TaskServiceStub, database: Database
    ) -> None:
        with nothing_is_written(database):
            assert send(stub, [delete(SOMEBODY, allow_missing=True)]) == [Task(id=SOMEBODY)]

    def test_the_current_etags_let_them_through(self, stub: TaskServiceStub) -> None:
        answer = send(stub, [delete(task.id, etag=task.etag) for task in made(stub, 3)])
        assert all(task.HasField("deleted_at") for task in answer)

    def test_of_many_at_once_each_task_is_deleted_by_one(self, stub: TaskServiceStub) -> None:
        tasks = made(stub, 10)
        items = [delete(task.id, allow_missing=True) for task in tasks]

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: send(stub, items[:: (-1) ** n]), range(16)))
        assert all(task.HasField("deleted_at") for answer in answers for task in answer)
        assert all(len(event_types(stub, task)) == 2 for task in tasks)


def test_a_repeat_may_spell_its_ids_in_another_case(stub: TaskServiceStub) -> None:
    first = CreateTaskRequest(task=Task(title="t"), task_id=new_id(), request_id=new_id())
    again = CreateTaskRequest(
        task=first.task, task_id=first.task_id.upper(), request_id=first.request_id.upper()
    )
    assert stub.CreateTask(again) == stub.CreateTask(first)


def test_new_tasks_that_do_not_fit_beside_repeated_ones_are_not_created(
    stub: TaskServiceStub, database: Database
) -> None:
    """Each part would fit into an answer, both together would not."""
    old = [create(f"{number}", request_id=new_id()) for number in range(350)]
    ids = [task.id for task in send(stub, old)]
    send(stub, [update(id_, description=WIDE * 2000) for id_ in ids])
    new = [CreateTaskRequest(task=Task(title="t", description=WIDE * 2000)) for _ in range(200)]
    with nothing_is_written(database), fails(EXHAUSTED, "ANSWER_TOO_LARGE"):
        send(stub, [*old, *new])


class TestConcurrentWrites:
    def test_batches_and_single_updates_without_etags_all_succeed(
        self, stub: TaskServiceStub
    ) -> None:
        """Each is made anew from what the others left: no field of theirs is lost."""
        tasks = made(stub, 10)

        def write(number: int) -> None:
            if number % 4:
                stub.UpdateTask(update(tasks[number % 10].id, description=f"text {number}"))
            else:
                order = tasks if number % 8 else tasks[::-1]
                send(stub, [update(task.id, "title", title=f"{number}") for task in order])

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(write, range(40)))
        after = send(stub, [task.id for task in tasks])
        assert len({task.title for task in after}) == 1
        assert all(task.description for task in after)

    def test_a_large_batch_gets_through_while_another_keeps_writing_its_tasks(
        self, stub: TaskServiceStub
    ) -> None:
        """Somebody is always writing one of so many: to begin anew until nobody is never ends."""
        tasks = made(stub, 1000)
        done = threading.Event()

        def keep_writing() -> None:
            for number in itertools.count():
                stub.UpdateTask(update(tasks[number % 1000].id, description=f"{number}"))
                if done.is_set():
                    return

        with ThreadPoolExecutor(1) as pool:
            writer = pool.submit(keep_writing)
            try:
                answer = send(stub, [update(task.id, "title", title="new") for task in tasks])
            finally:
                done.set()
            writer.result()
        assert {task.title for task in answer} == {"new"}


class TestSizes:
    """A client takes 4 MiB by default. What it cannot be told must not be done."""

    @pytest.fixture
    def heavy(self, stub: TaskServiceStub) -> list[Task]:
        """520 tasks of 8 KB: more than an answer holds."""
        halves = [made(stub, 260, description=WIDE * 2000) for _ in range(2)]
        return [task for half in halves for task in half]

    @pytest.mark.parametrize(
        "kind",
        [
            pytest.param(lambda task: task.id, id="get"),
            pytest.param(lambda task: update(task.id, title="new"), id="update"),
            pytest.param(lambda task: delete(task.id), id="delete"),
            pytest.param(lambda task: delete(task.id, allow_missing=True), id="delete if there"),
        ],
    )
    def test_more_than_an_answer_holds_is_refused(
        self, stub: TaskServiceStub, database: Database, heavy: list[Task], kind: Make
    ) -> None:
        items = [kind(task) for task in heavy]
        with nothing_is_written(database), fails(EXHAUSTED, "ANSWER_TOO_LARGE"):
            send(stub, items)
        assert len(send(stub, items[:400])) == 400

    def test_an_update_to_more_than_an_answer_holds_is_refused(
        self, stub: TaskServiceStub, database: Database, heavy: list[Task]
    ) -> None:
        """As they are the tasks would fit, and the request does; as they would be they do not."""
        items = [update(task.id, assigned_to=WIDE * 200, title=WIDE * 200) for task in heavy[:480]]
        with nothing_is_written(database), fails(EXHAUSTED, "ANSWER_TOO_LARGE"):
            send(stub, items)

    def test_an_update_to_less_is_no_less_possible(
        self, stub: TaskServiceStub, heavy: list[Task]
    ) -> None:
        """In parts: each answer has the tasks as they are after it."""
        for part in (heavy[:260], heavy[260:]):
            answer = send(stub, [update(task.id, "description") for task in part])
            assert not any(task.description for task in answer)
        assert len(send(stub, [task.id for task in heavy])) == len(heavy)

    def test_a_repeat_whose_tasks_have_grown_is_refused(self, stub: TaskServiceStub) -> None:
        """An answer too large for the client's channel would fail there, without a reason."""
        items = [create(f"{number}", request_id=new_id()) for number in range(520)]
        ids = [task.id for task in send(stub, items)]
        for part in (ids[:260], ids[260:]):
            send(stub, [update(id_, description=WIDE * 2000) for id_ in part])
        with fails(EXHAUSTED, "ANSWER_TOO_LARGE"):
            send(stub, items)

    @pytest.mark.parametrize("count", [1000, 370])
    def test_a_batch_of_creations_near_the_limit_is_answered(
        self, stub: TaskServiceStub, count: int
    ) -> None:
        """To a client whose channel has no options."""
        limit = 3 * 1024 * 1024
        text_ = "x" * 1900 if count == 1000 else WIDE * 2000
        items = [CreateTaskRequest(task=Task(title="t", description=text_)) for _ in range(count)]
        pad = (limit - BatchCreateTasksRequest(requests=items).ByteSize()) // count - 20
        for item in items:
            item.task.assigned_to = WIDE * min(200, max(0, pad) // 4)
            item.task.title = "t" + WIDE * min(199, max(0, pad - 800) // 4)
        size = BatchCreateTasksRequest(requests=items).ByteSize()
        assert limit * 0.95 < size <= limit
        assert len(send(stub, items)) == count

    def test_a_request_beyond_the_limit_is_refused(
        self, stub: TaskServiceStub, database: Database
    ) -> None:
        items = [
            CreateTaskRequest(task=Task(title="t", description=WIDE * 2000)) for _ in range(400)
        ]
        with nothing_is_written(database), pytest.raises(grpc.RpcError) as raised:
            send(stub, items)
        assert raised.value.code() == EXHAUSTED


@contextmanager
def counted_statements(database: Database) -> Iterator[list[str]]:
    """The statements that reach the database while this holds."""
    statements: list[str] = []

    def count(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(database.engine, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        event.remove(database.engine, "before_cursor_execute", count)


class TestRoundTrips:
    """The time of a batch is that of its rows, not that of so many trips to the database."""

    ORIGIN = Origin("me")

    def creations(self, count: int) -> list[CreateTaskRequest]:
        return [create(request_id=new_id()) for _ in range(count)]

    def ids(self, repository: TaskRepository, count: int) -> list[str]:
        rows = writes.create(repository, self.creations(count), self.ORIGIN)
        return [row.id for row in rows]

    def trips(self, database: Database, write: Callable[[], object]) -> int:
        with counted_statements(database) as statements:
            write()
        return len(statements)

    @pytest.mark.parametrize(("count", "trips"), [(1, 1), (2, 2), (100, 2)])
    def test_of_creations(
        self, database: Database, repository: TaskRepository, count: int, trips: int
    ) -> None:
        items = self.creations(count)
        assert self.trips(database, lambda: writes.create(repository, items, self.ORIGIN)) == trips

    @pytest.mark.parametrize(("count", "trips"), [(1, 2), (2, 1), (100, 1)])
    def test_of_repeated_creations(
        self, database: Database, repository: TaskRepository, count: int, trips: int
    ) -> None:
        items = self.creations(count)
        writes.create(repository, items, self.ORIGIN)
        assert self.trips(database, lambda: writes.create(repository, items, self.ORIGIN)) == trips

    @pytest.mark.parametrize(("count", "done"), [(2, 1), (100, 50)])
    def test_of_creations_of_which_some_are_repeated(
        self, database: Database, repository: TaskRepository, count: int, done: int
    ) -> None:
        items = self.creations(count)
        writes.create(repository, items[:done], self.ORIGIN)
        assert self.trips(database, lambda: writes.create(repository, items, self.ORIGIN)) == 2

    @pytest.mark.parametrize("count", [1, 100])
    @pytest.mark.parametrize("with_ids", [False, True])
    def test_of_updates(
        self, database: Database, repository: TaskRepository, count: int, with_ids: bool
    ) -> None:
        items = [update(id_, title="newer") for id_ in self.ids(repository, count)]
        for item in items if with_ids else []:
            item.request_id = new_id()
        fields = [check_update(item) for item in items]
        trips = self.trips(database, lambda: writes.update(repository, items, fields, self.ORIGIN))
        assert trips == 2 + with_ids

    @pytest.mark.parametrize("count", [1, 100])
    def test_of_deletions(self, database: Database, repository: TaskRepository, count: int) -> None:
        items = [delete(id_) for id_ in self.ids(repository, count)]
        assert self.trips(database, lambda: writes.delete(repository, items, self.ORIGIN)) == 2


CURRENT = "the etag that the task has"

_updates = st.fixed_dictionaries(
    {},
    optional={
        "title": st.text("ab\u00df ", min_size=1, max_size=4).map(lambda text: "t" + text),
        "description": st.text("ab", max_size=4),
        "status": st.sampled_from([1, TASK_STATUS_IN_PROGRESS, TASK_STATUS_COMPLETED, 4]),
        "priority": st.integers(0, 4),
        "assigned_to": st.sampled_from(["", "ann"]),
        "tags": st.lists(st.sampled_from(["a", "A", "b"]), max_size=3),
        "etag": st.sampled_from(["", "", CURRENT, CURRENT, '"1"']),
    },
)
_masks = st.sampled_from(
    [(), (), ("tags", "assigned_to"), ("description",), ("status", "priority")]
)
_batches = st.lists(
    st.tuples(st.integers(0, 4), _updates, _masks), min_size=1, max_size=5, unique_by=lambda u: u[0]
)


def without_times(task: Task) -> Task:
    """The task but for what two that are alike differ in."""
    alike = Task()
    alike.CopyFrom(task)
    for name in ("id", "created_at", "updated_at", "etag"):
        alike.ClearField(name)
    if task.HasField("completed_at"):
        alike.completed_at.CopyFrom(PAST)
    return alike


def test_a_batch_of_updates_does_what_its_updates_do(stub: TaskServiceStub) -> None:
    """One by one; and where some of them fail, it does nothing and fails as the first of them."""

    def reason(error: grpc.RpcError) -> tuple[Any, str]:
        failure = Failure()
        failure.error = error
        return error.code(), failure.info.reason

    def alone(request: UpdateTaskRequest) -> tuple[Any, str] | None:
        try:
            stub.UpdateTask(request)
        except grpc.RpcError as error:
            return reason(error)
        return None

    def item(task: Task, fields: dict[str, Any], paths: tuple[str, ...]) -> UpdateTaskRequest:
        etag = fields.get("etag", "")
        return update(task.id, *paths, **{**fields, "etag": task.etag if etag == CURRENT else etag})

    @hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(_batches, min_size=1, max_size=3))
    def hold(batches: list[list[tuple[int, dict[str, Any], tuple[str, ...]]]]) -> None:
        one_by_one, in_batches = ([task.id for task in made(stub, 5)] for _ in range(2))
        for batch in batches:
            before = send(stub, in_batches)
            singles, items = (
                [item(tasks[index], fields, paths) for index, fields, paths in batch]
                for tasks in (send(stub, one_by_one), before)
            )
            failures = [
                (number, failure)
                for number, request in enumerate(singles)
                if (failure := alone(request))
            ]
            if not failures:
                answer = send(stub, items)
                singly = send(stub, [one_by_one[index] for index, _, _ in batch])
                assert list(map(without_times, answer)) == list(map(without_times, singly))
                continue
            number, first = failures[0]
            with fails(*first) as refused:
                send(stub, items)
            assert refused.info.metadata["item"] == f"requests[{number}]"
            assert send(stub, in_batches) == before
            return

    hold()
