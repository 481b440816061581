"""ListTaskEvents: the changes of a task, from which its state can be rebuilt."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from unicodedata import normalize

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from taskservice.v1.task_event_pb2 import TaskEvent
from taskservice.v1.task_pb2 import (
    TASK_PRIORITY_HIGH,
    TASK_STATUS_COMPLETED,
    TASK_STATUS_PENDING,
    Task,
)
from taskservice.v1.task_service_pb2 import (
    BatchDeleteTasksRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    GetTaskRequest,
    ListTaskEventsRequest,
    ListTaskEventsResponse,
    ListTasksRequest,
    PurgeTasksRequest,
    UndeleteTaskRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import fails
from tests.support.postgres import await_waiting, locked_task

Create = Callable[..., Task]

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
CREATED, UPDATED = TaskEvent.TYPE_CREATED, TaskEvent.TYPE_UPDATED
DELETED, UNDELETED = TaskEvent.TYPE_DELETED, TaskEvent.TYPE_UNDELETED

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def page(
    stub: TaskServiceStub, task_id: str, size: int = 0, token: str = ""
) -> ListTaskEventsResponse:
    return stub.ListTaskEvents(
        ListTaskEventsRequest(task_id=task_id, page_size=size, page_token=token)
    )


def history(stub: TaskServiceStub, task_id: str) -> list[TaskEvent]:
    """All events, the newest first."""
    answer = page(stub, task_id, 1000)
    assert not answer.next_page_token
    return list(answer.events)


def update(stub: TaskServiceStub, task: Task, *paths: str, request_id: str = "") -> Task:
    mask = FieldMask(paths=paths)
    request = UpdateTaskRequest(task=task, update_mask=mask, request_id=request_id)
    return stub.UpdateTask(request)


def changes(event: TaskEvent) -> dict[str, tuple[Any, Any]]:
    """The changes: field to before and after, as JSON; None for what is absent."""

    def json(value: Value) -> Any:
        return MessageToDict(value) if value.WhichOneof("kind") else None

    return {change.field: (json(change.before), json(change.after)) for change in event.changes}


def replay(task_id: str, oldest_first: Iterable[TaskEvent]) -> Task:
    """The task that the events give, by the contract's words; purge_at follows from deleted_at."""
    task = Task(id=task_id)
    for event in oldest_first:
        if event.type == TaskEvent.TYPE_CREATED:
            task = Task(id=task_id)
        for field, (_, after) in changes(event).items():
            task.ClearField(field)  # type: ignore[arg-type]
            if after is not None:
                ParseDict({field: after}, task)
        task.updated_at.CopyFrom(event.occurred_at)
        task.etag = event.etag
    return task


def rfc_3339(timestamp: Timestamp) -> str:
    return timestamp.ToJsonString()


class TestAnEvent:
    def test_every_kind_of_write_leaves_one_of_its_kind(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task = create_task()
        update(stub, Task(id=task.id, title="new"), "title")
        stub.DeleteTask(DeleteTaskRequest(id=task.id))
        back = stub.UndeleteTask(UndeleteTaskRequest(id=task.id))
        events = history(stub, task.id)
        assert [event.type for event in events] == [UNDELETED, DELETED, UPDATED, CREATED]
        assert {event.task_id for event in events} == {task.id}
        assert (events[0].occurred_at, events[0].etag) == (back.updated_at, back.etag)
        assert (events[-1].occurred_at, events[-1].etag) == (task.updated_at, task.etag)

    def test_it_has_the_principal_the_request_id_and_the_trace(self, stub: TaskServiceStub) -> None:
        ids = [str(uuid.uuid4()) for _ in range(2)]
        trace = (("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"),)
        create = CreateTaskRequest(task=Task(title="new"), request_id=ids[0].upper())
        task = stub.CreateTask(create, metadata=trace)
        update(stub, Task(id=task.id, title="newer"), "title", request_id=ids[1])
        stub.DeleteTask(DeleteTaskRequest(id=task.id), metadata=trace)
        assert [(e.principal, e.request_id, e.trace_id) for e in history(stub, task.id)] == [
            ("anonymous", "", TRACE),
            ("anonymous", ids[1], ""),
            ("anonymous", ids[0], TRACE),
        ]

    def test_of_a_creation_it_has_every_field_with_a_value(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        due = Timestamp(seconds=4102444800, nanos=120_000_000)
        task = create_task(title="new", due_date=due, tags=["a", "b"], priority=TASK_PRIORITY_HIGH)
        (event,) = history(stub, task.id)
        assert changes(event) == {
            "title": (None, "new"),
            "status": (None, "TASK_STATUS_PENDING"),
            "priority": (None, "TASK_PRIORITY_HIGH"),
            "due_date": (None, "2100-01-01T00:00:00.120Z"),
            "tags": (None, ["a", "b"]),
            "created_by": (None, "anonymous"),
            "created_at": (None, rfc_3339(task.created_at)),
        }

    def test_of_an_update_it_has_each_change_before_and_after(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task = create_task(title="old", description="gone", assigned_to="same", tags=["a", "b"])
        new = Task(id=task.id, title="new", assigned_to="same", tags=["b"])
        new.status = TASK_STATUS_COMPLETED
        new.due_date.FromJsonString("2100-01-01T00:00:00Z")
        done = update(stub, new, "*")
        assert changes(history(stub, task.id)[0]) == {
            "title": ("old", "new"),
            "description": ("gone", None),
            "status": ("TASK_STATUS_PENDING", "TASK_STATUS_COMPLETED"),
            "due_date": (None, "2100-01-01T00:00:00Z"),
            "tags": (["a", "b"], ["b"]),
            "completed_at": (None, rfc_3339(done.completed_at)),
        }

    def test_a_value_that_a_field_has_not_is_absent(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        """Absent, not null: JSON's null is no value of a field of Task."""
        task = create_task(description="gone")
        update(stub, Task(id=task.id, assigned_to="new"), "description", "assigned_to")
        description, assigned_to = history(stub, task.id)[0].changes
        assert (description.HasField("before"), description.HasField("after")) == (True, False)
        assert (assigned_to.HasField("before"), assigned_to.HasField("after")) == (False, True)

    def test_its_changes_stand_in_the_order_of_the_fields(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task = create_task(tags=["a"], description="b", status=TASK_STATUS_COMPLETED)
        numbers = [
            Task.DESCRIPTOR.fields_by_name[change.field].number
            for change in history(stub, task.id)[0].changes
        ]
        assert numbers == sorted(numbers)

    def test_deletion_and_undeletion_change_the_time_of_deletion(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task = create_task()
        deleted = rfc_3339(stub.DeleteTask(DeleteTaskRequest(id=task.id)).deleted_at)
        stub.UndeleteTask(UndeleteTaskRequest(id=task.id))
        undeletion, deletion, _ = history(stub, task.id)
        assert changes(deletion) == {"deleted_at": (None, deleted)}
        assert changes(undeletion) == {"deleted_at": (deleted, None)}

    def test_what_writes_nothing_leaves_none(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task = create_task(title="same")
        update(stub, Task(id=task.id, title="same"), "title", request_id=str(uuid.uuid4()))
        tried = UpdateTaskRequest(task=Task(id=task.id, title="tried"), validate_only=True)
        stub.UpdateTask(tried)
        with fails(grpc.StatusCode.ABORTED, "ETAG_MISMATCH"):
            update(stub, Task(id=task.id, title="failed", etag='"0"'), "title")
        assert len(history(stub, task.id)) == 1

    def test_a_repeated_request_leaves_one(self, stub: TaskServiceStub) -> None:
        request = CreateTaskRequest(task=Task(title="once"), request_id=str(uuid.uuid4()))
        ids = {stub.CreateTask(request).id for _ in range(3)}
        assert len(history(stub, ids.pop())) == 1

    def test_ids_sort_in_the_order_of_the_writes_of_all_tasks(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        tasks = [create_task() for _ in range(3)]
        for number in range(6):
            update(stub, Task(id=tasks[number % 3].id, title=f"{number}"), "title")
        events = [event for task in tasks for event in history(stub, task.id)]
        by_id = sorted(events, key=lambda event: event.id)
        assert len({event.id for event in events}) == len(events)
        assert [e.occurred_at.ToNanoseconds() for e in by_id] == sorted(
            e.occurred_at.ToNanoseconds() for e in events
        )
        for task in tasks:
            ids = [event.id for event in history(stub, task.id)]
            assert ids == sorted(ids, reverse=True)

    def test_events_are_in_the_order_of_the_writes(
        self, stub: TaskServiceStub, create_task: Create, database_url: str
    ) -> None:
        """A transaction takes its id when it locks its first task, and may come to its last one
        after a younger transaction has written that."""
        first, held, last = sorted((create_task() for _ in range(3)), key=lambda task: task.id)
        deletions = [DeleteTaskRequest(id=task.id) for task in (first, held, last)]
        with ThreadPoolExecutor(1) as pool:
            with locked_task(database_url, held.id):
                batch = BatchDeleteTasksRequest(requests=deletions)
                deletion = pool.submit(lambda: stub.BatchDeleteTasks(batch))
                await_waiting(database_url)
                update(stub, Task(id=last.id, title="meanwhile"), "title")
            deleted = deletion.result().tasks[2]
            deleted.ClearField("purge_at")
        events = history(stub, last.id)
        assert [event.type for event in events] == [DELETED, UPDATED, CREATED]
        assert replay(last.id, sorted(events, key=lambda event: event.id)) == deleted
        assert deleted.title == "meanwhile"


class TestPages:
    @pytest.fixture
    def written(self, stub: TaskServiceStub, create_task: Create) -> Task:
        """A task with seven events."""
        task = create_task()
        for number in range(6):
            update(stub, Task(id=task.id, title=f"{number}"), "title")
        return task

    @pytest.mark.parametrize("size", range(1, 9))
    def test_none_is_missed_or_repeated_while_new_ones_arrive(
        self, stub: TaskServiceStub, create_task: Create, written: Task, size: int
    ) -> None:
        expected = history(stub, written.id)
        received: list[TaskEvent] = []
        token, pages = "", 0
        while pages == 0 or token:
            answer = page(stub, written.id, size, token)
            assert len(answer.events) <= size
            received += answer.events
            token, pages = answer.next_page_token, pages + 1
            update(stub, Task(id=written.id, title=f"meanwhile {pages}"), "title")
            create_task()
        assert received == expected
        assert pages == -(-len(expected) // size)

    def test_a_page_has_50_events_by_default(self, stub: TaskServiceStub, written: Task) -> None:
        for number in range(50):
            update(stub, Task(id=written.id, title=f"more {number}"), "title")
        assert len(page(stub, written.id).events) == 50

    def test_the_size_may_change_between_pages(self, stub: TaskServiceStub, written: Task) -> None:
        first = page(stub, written.id, 2)
        rest = page(stub, written.id, 1000, first.next_page_token)
        assert [*first.events, *rest.events] == history(stub, written.id)

    def test_an_id_in_upper_case_is_the_same_task(
        self, stub: TaskServiceStub, written: Task
    ) -> None:
        first = page(stub, written.id.upper(), 2)
        rest = page(stub, written.id, 1000, first.next_page_token)
        assert [*first.events, *rest.events] == history(stub, written.id)

    def test_a_token_is_of_one_task(
        self, stub: TaskServiceStub, create_task: Create, written: Task
    ) -> None:
        self.refuses(stub, create_task().id, page(stub, written.id, 1).next_page_token)

    def test_a_token_of_a_list_of_tasks_is_none(
        self, stub: TaskServiceStub, create_task: Create, written: Task
    ) -> None:
        create_task()
        tasks = stub.ListTasks(ListTasksRequest(page_size=1))
        assert tasks.next_page_token
        self.refuses(stub, written.id, tasks.next_page_token)

    def test_a_token_of_a_history_is_none_of_a_list(
        self, stub: TaskServiceStub, written: Task
    ) -> None:
        token = page(stub, written.id, 1).next_page_token
        with fails(INVALID, "INVALID_REQUEST") as failure:
            stub.ListTasks(ListTasksRequest(page_token=token))
        assert failure.violations == {"page_token": "PAGE_TOKEN_INVALID"}

    def test_a_token_with_another_character_is_none(
        self, stub: TaskServiceStub, written: Task
    ) -> None:
        token = page(stub, written.id, 1).next_page_token
        for place in range(0, len(token), 7):
            other = "A" if token[place] != "A" else "B"
            self.refuses(stub, written.id, token[:place] + other + token[place + 1 :])

    def test_all_violations_are_reported_at_once(self, stub: TaskServiceStub) -> None:
        with fails(INVALID, "INVALID_REQUEST") as failure:
            page(stub, "x", -1, "x")
        assert failure.violations == {
            "task_id": "STRING_UUID",
            "page_size": "INT32_GTE",
            "page_token": "PAGE_TOKEN_INVALID",
        }

    def refuses(self, stub: TaskServiceStub, task_id: str, token: str) -> None:
        with fails(INVALID, "INVALID_REQUEST") as failure:
            page(stub, task_id, 1, token)
        assert failure.violations == {"page_token": "PAGE_TOKEN_INVALID"}


class TestTheTask:
    def test_one_that_never_was_is_not_found(self, stub: TaskServiceStub) -> None:
        with fails(NOT_FOUND, "TASK_NOT_FOUND"):
            page(stub, str(uuid.uuid4()))

    def test_one_that_was_only_tried_is_not_found(self, stub: TaskServiceStub) -> None:
        task_id = str(uuid.uuid4())
        request = CreateTaskRequest(task=Task(title="tried"), task_id=task_id, validate_only=True)
        stub.CreateTask(request)
        with fails(NOT_FOUND, "TASK_NOT_FOUND"):
            page(stub, task_id)

    def test_its_events_outlive_it(self, stub: TaskServiceStub, create_task: Create) -> None:
        task = create_task()
        stub.DeleteTask(DeleteTaskRequest(id=task.id))
        before = history(stub, task.id)
        stub.PurgeTasks(PurgeTasksRequest(filter="deleted_at:*", force=True))
        assert history(stub, task.id) == before


# Without control characters, which are refused, and in the form in which texts are stored.
_words = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], codec="utf-8"), max_size=12
).map(partial(normalize, "NFC"))
_names = st.text("ab\u00df\u0130 \U00010348'\"\\{}", min_size=1, max_size=8).filter(str.strip)
_dues = st.datetimes(dt.datetime(2100, 1, 1), dt.datetime(9999, 12, 31))  # noqa: DTZ001


def _task(**fields: Any) -> Task:
    due = fields.pop("due_date")
    task = Task(**fields)
    if due is not None:
        task.due_date.FromDatetime(due)
    return task


_tasks = st.builds(
    _task,
    title=_names,
    description=_words,
    status=st.integers(0, 4),
    priority=st.integers(0, 4),
    assigned_to=_words,
    due_date=st.none() | _dues,
    tags=st.lists(_names, max_size=3),
)
_WRITABLE = ["title", "description", "status", "priority", "assigned_to", "due_date", "tags"]

# What to do, and with which fields of which values. Some of it the service refuses: updates of a
# deleted task, changes of status that are not allowed, wrong etags.
_operations = st.tuples(
    st.sampled_from(["update", "update", "update", "reopen", "delete", "undelete", "stale"]),
    _tasks,
    st.just(["*"]) | st.lists(st.sampled_from(_WRITABLE), min_size=1, max_size=4),
)


def carry_out(stub: TaskServiceStub, task_id: str, operation: tuple[str, Task, list[str]]) -> None:
    kind, values, paths = operation
    task = Task(id=task_id)
    task.MergeFrom(values)
    try:
        match kind:
            case "update":
                update(stub, task, *paths)
            case "reopen":
                update(stub, Task(id=task_id, status=TASK_STATUS_PENDING), "status")
            case "delete":
                stub.DeleteTask(DeleteTaskRequest(id=task_id))
            case "undelete":
                stub.UndeleteTask(UndeleteTaskRequest(id=task_id))
            case "stale":
                task.etag = '"0"'
                update(stub, task, *paths)
    except grpc.RpcError as error:
        refusals = {"FAILED_PRECONDITION", "NOT_FOUND", "ALREADY_EXISTS", "ABORTED"}
        assert error.code().name in refusals, error  # noqa: PT017


def test_the_events_give_the_task(stub: TaskServiceStub) -> None:
    """The contract of TaskEvent: the history contains all that GetTask returns."""

    @given(_tasks, st.lists(_operations, max_size=8))
    def hold(values: Task, operations: list[tuple[str, Task, list[str]]]) -> None:
        task_id = stub.CreateTask(CreateTaskRequest(task=values)).id
        for operation in operations:
            carry_out(stub, task_id, operation)
            task = stub.GetTask(GetTaskRequest(id=task_id))
            task.ClearField("purge_at")
            assert replay(task_id, reversed(history(stub, task_id))) == task

    hold()


def test_before_is_what_the_events_before_gave(stub: TaskServiceStub) -> None:
    """So that a reader of the history can also go back."""

    @given(_tasks, st.lists(_operations, max_size=6))
    def hold(values: Task, operations: list[tuple[str, Task, list[str]]]) -> None:
        task_id = stub.CreateTask(CreateTaskRequest(task=values)).id
        for operation in operations:
            carry_out(stub, task_id, operation)
        events = history(stub, task_id)[::-1]
        for number, event in enumerate(events):
            was = replay(task_id, events[:number])
            stood = MessageToDict(was, preserving_proto_field_name=True)
            for field, (before, after) in changes(event).items():
                assert before == stood.get(field)
                assert before != after

    hold()


def test_the_events_of_an_id_used_twice_give_the_second_task(stub: TaskServiceStub) -> None:
    """Nothing of the task that was purged may stay in the one that has its id now."""
    task_id = str(uuid.uuid4())
    first = Task(title="first", description="only in the first", tags=["a"])
    stub.CreateTask(CreateTaskRequest(task=first, task_id=task_id))
    stub.DeleteTask(DeleteTaskRequest(id=task_id))
    stub.PurgeTasks(PurgeTasksRequest(filter="deleted_at:*", force=True))
    second = stub.CreateTask(CreateTaskRequest(task=Task(title="second"), task_id=task_id))
    assert replay(task_id, reversed(history(stub, task_id))) == second
