"""The contract's semantics, call by call, over a socket."""

from __future__ import annotations

import datetime as dt
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from sqlalchemy import text

from storage.database import Database
from taskservice.v1.task_pb2 import (
    TASK_PRIORITY_HIGH,
    TASK_PRIORITY_LOW,
    TASK_PRIORITY_MEDIUM,
    TASK_PRIORITY_URGENT,
    TASK_STATUS_CANCELLED,
    TASK_STATUS_COMPLETED,
    TASK_STATUS_IN_PROGRESS,
    TASK_STATUS_PENDING,
    Task,
    TaskStatus,
)
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    GetTaskRequest,
    GetTaskStatsRequest,
    ListTaskEventsRequest,
    ListTasksRequest,
    UndeleteTaskRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import fails

Create = Callable[..., Task]

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
EXISTS, ABORTED = grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.ABORTED
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION

SOMEBODY = str(uuid.UUID(int=1))


def moment(**from_now: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(dt.datetime.now(dt.UTC) + dt.timedelta(**from_now))
    return timestamp


def update(stub: TaskServiceStub, task: Task, *paths: str, **options: object) -> Task:
    mask = FieldMask(paths=paths) if paths else None
    return stub.UpdateTask(UpdateTaskRequest(task=task, update_mask=mask, **options))  # type: ignore[arg-type]


def make_overdue(database: Database, task_id: str) -> None:
    """Time cannot be waited for; the database is told instead."""
    with database.engine.connect() as connection:
        connection.execute(
            text("UPDATE tasks SET due_date = now() - interval '1 day' WHERE id = :id"),
            {"id": task_id},
        )


class TestCreateTask:
    def test_a_new_task_has_the_given_fields_and_the_defaults(self, create_task: Create) -> None:
        due = moment(days=1)
        task = create_task(title="write", description="it", assigned_to="ann", due_date=due)

        assert (task.title, task.description, task.assigned_to) == ("write", "it", "ann")
        assert (task.status, task.priority) == (TASK_STATUS_PENDING, TASK_PRIORITY_MEDIUM)
        assert task.due_date.ToMicroseconds() == due.ToMicroseconds()
        assert task.created_by == "anonymous"
        assert task.created_at == task.updated_at
        assert not task.HasField("completed_at")
        assert not task.HasField("deleted_at")
        assert task.etag

    def test_the_server_chooses_ids_that_grow(self, create_task: Create) -> None:
        ids = [create_task().id for _ in range(5)]
        assert [uuid.UUID(id_).version for id_ in ids] == [7] * 5
        assert ids == sorted(ids)

    def test_a_client_may_choose_the_id(self, stub: TaskServiceStub) -> None:
        request = CreateTaskRequest(task=Task(title="mine"), task_id=SOMEBODY.upper())
        assert stub.CreateTask(request).id == SOMEBODY
        assert stub.GetTask(GetTaskRequest(id=SOMEBODY)).title == "mine"

    def test_a_taken_id_is_refused(self, stub: TaskServiceStub) -> None:
        request = CreateTaskRequest(task=Task(title="mine"), task_id=SOMEBODY)
        stub.CreateTask(request)
        with fails(EXISTS, "TASK_EXISTS") as failure:
            stub.CreateTask(request)
        assert failure.detail(error_details_pb2.ResourceInfo).resource_name == SOMEBODY

    def test_fields_that_only_the_server_writes_are_ignored(self, create_task: Create) -> None:
        """AIP-203: output-only fields in a request are no mistake."""
        task = create_task(
            id="nonsense", created_by="me", created_at=moment(days=-9), completed_at=moment()
        )
        assert uuid.UUID(task.id)
        assert task.created_by == "anonymous"
        assert task.created_at.seconds > moment(minutes=-5).seconds
        assert not task.HasField("completed_at")

    def test_of_tags_that_differ_in_case_the_first_stays(self, create_task: Create) -> None:
        assert create_task(tags=["Bill", "bill", "STRASSE", "strasse", "x"]).tags == [
            "Bill",
            "STRASSE",
            "x",
        ]

    def test_a_task_can_be_created_completed(self, create_task: Create) -> None:
        task = create_task(status=TASK_STATUS_COMPLETED)
        assert task.completed_at == task.created_at

    def test_validate_only_answers_and_stores_nothing(self, stub: TaskServiceStub) -> None:
        task_id = str(uuid.uuid4())
        request = CreateTaskRequest(task=Task(title="try"), task_id=task_id, validate_only=True)
        assert stub.CreateTask(request).title == "try"
        with fails(NOT_FOUND, "TASK_NOT_FOUND"):
            stub.GetTask(GetTaskRequest(id=task_id))

    def test_validate_only_fails_as_the_real_call_would(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        taken = create_task().id
        with fails(EXISTS, "TASK_EXISTS"):
            stub.CreateTask(
                CreateTaskRequest(task=Task(title="try"), task_id=taken, validate_only=True)
            )

    def test_longest_values_fit(self, create_task: Create) -> None:
        wide = "𐍈"
        task = create_task(
            title=wide * 200, description=wide * 2000, assigned_to=wide * 200, tags=[wide * 50]
        )
        assert len(task.description) == 2000


class TestRequestId:
    """AIP-155: a write can be repeated until its answer arrives."""

    def test_a_repeated_create_returns_the_task_and_makes_no_second(
        self, stub: TaskServiceStub
    ) -> None:
        request = CreateTaskRequest(task=Task(title="once"), request_id=str(uuid.uuid4()))
        assert stub.CreateTask(request) == stub.CreateTask(request)
        assert len(stub.ListTasks(ListTasksRequest()).tasks) == 1

    def test_the_id_with_another_request_is_refused(self, stub: TaskServiceStub) -> None:
        request_id = str(uuid.uuid4())
        stub.CreateTask(CreateTaskRequest(task=Task(title="one"), request_id=request_id))
        with fails(EXISTS, "REQUEST_ID_REUSED"):
            stub.CreateTask(CreateTaskRequest(task=Task(title="two"), request_id=request_id))

    def test_the_id_of_a_create_is_refused_for_an_update(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        request_id = str(uuid.uuid4())
        task = stub.CreateTask(CreateTaskRequest(task=Task(title="one"), request_id=request_id))
        with fails(EXISTS, "REQUEST_ID_REUSED"):
            update(stub, task, request_id=request_id)

    def test_a_repeated_update_does_not_undo_a_later_one(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        """The repeat carries an etag that its own first run has outdated."""
        task = create_task(title="first")
        request_id = str(uuid.uuid4())
        mine = Task(id=task.id, title="mine", etag=task.etag)
        update(stub, mine, "title", request_id=request_id)
        update(stub, Task(id=task.id, title="later"), "title")

        assert update(stub, mine, "title", request_id=request_id).title == "later"

    def test_an_update_that_changed_nothing_is_remembered_too(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task = create_task(title="same")
        request_id = str(uuid.uuid4())
        same = Task(id=task.id, title="same")
        update(stub, same, "title", request_id=request_id)
        update(stub, Task(id=task.id, title="later"), "title")

        assert update(stub, same, "title", request_id=request_id).title == "later"

    def test_a_failed_write_leaves_the_id_unused(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        taken, request_id = create_task().id, str(uuid.uuid4())
        request = CreateTaskRequest(task=Task(title="x"), task_id=taken, request_id=request_id)
        with fails(EXISTS, "TASK_EXISTS"):
            stub.CreateTask(request)
        request.task_id = ""
        assert stub.CreateTask(request).title == "x"

    def test_a_create_can_be_repeated_after_its_due_date(self, stub: TaskServiceStub) -> None:
        due = moment(seconds=0.5)
        task = Task(title="soon", due_date=due)
        request = CreateTaskRequest(task=task, request_id=str(uuid.uuid4()))
        made = stub.CreateTask(request)
        while moment().ToNanoseconds() <= due.ToNanoseconds():
            stub.GetTask(GetTaskRequest(id=made.id))
        assert stub.CreateTask(request) == made

    def test_many_at_once_make_one_task(self, stub: TaskServiceStub) -> None:
        request = CreateTaskRequest(task=Task(title="once"), request_id=str(uuid.uuid4()))
        with ThreadPoolExecutor(16) as pool:
            made = list(pool.map(lambda _: stub.CreateTask(request).id, range(64)))
        assert len(set(made)) == 1
        assert len(stub.ListTasks(ListTasksRequest()).tasks) == 1


class TestUpdateTask:
    def test_the_mask_says_what_changes(self, stub: TaskServiceStub, create_task: Create) -> None:
        task = create_task(title="old", description="kept")
        changed = update(stub, Task(id=task.id, title="new", description="not meant"), "title")
        assert (changed.title, changed.description) == ("new", "kept")

    def test_without_a_mask_the_populated_fields_change(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task = create_task(title="old", description="kept", tags=["kept"])
        changed = update(stub, Task(id=task.id, title="new"))
        assert (changed.title, changed.description, list(changed.tags)) == ("new", "kept", ["kept"])

    def test_an_empty_mask_is_no_mask(self, stub: TaskServiceStub, create_task: Create) -> None:
        task = Task(id=create_task(title="old").id, title="new")
        assert stub.UpdateTask(UpdateTaskRequest(task=task, update_mask=FieldMask())).title == "new"

    def test_a_star_replaces_all(self, stub: TaskServiceStub, create_task: Create) -> None:
        task = create_task(title="old", description="gone", tags=["gone"], due_date=moment(days=1))
        changed = update(stub, Task(id=task.id, title="new"), "*")
        assert (changed.title, changed.description, list(changed.tags)) == ("new", "", [])
        assert not changed.HasField("due_date")
        assert changed.created_at == task.created_at

    def test_a_field_named_without_a_value_gets_its_default(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task = create_task(priority=TASK_PRIORITY_URGENT, due_date=moment(days=1), assigned_to="a")
        changed = update(stub, Task(id=task.id), "priority", "due_date", "assigned_to")
        assert changed.priority == TASK_PRIORITY_MEDIUM
        assert not changed.HasField("due_date")
        assert changed.assigned_to == ""

    def test_output_only_paths_are_ignored(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        """AIP-161."""
        task = create_task(title="old")
        changed = update(
            stub,
            Task(id=task.id, title="new", created_by="me"),
            *("title", "id", "created_by", "created_at", "completed_at", "etag"),
        )
        assert (changed.title, changed.created_by) == ("new", "anonymous")

    @pytest.mark.parametrize("path", ["colour", "due_date.seconds", "", "Title", "tags[0]", "x.*"])
    def test_unknown_paths_are_refused(
        self, stub: TaskServiceStub, create_task: Create, path: str
    ) -> None:
        with fails(INVALID, "INVALID_REQUEST") as failure:
            update(stub, Task(id=create_task().id, title="new"), "title", path)
        assert failure.violations == {"update_mask": "UNKNOWN_FIELD"}

    def test_the_time_of_the_last_write_and_the_etag_move_on(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task = create_task()
        changed = update(stub, Task(id=task.id, title="new"))
        assert changed.updated_at.ToMicroseconds() > task.updated_at.ToMicroseconds()
        assert changed.etag != task.etag

    def test_an_update_that_changes_nothing_leaves_the_task_as_it_is(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task = create_task(title="same", tags=["a"])
        assert update(stub, task, "*") == task

    def test_the_current_etag_lets_an_update_through(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task = create_task()
        assert update(stub, Task(id=task.id, title="new", etag=task.etag)).title == "new"

    @pytest.mark.parametrize("etag", [None, '"ffffffffffffffffffffffff"', "nonsense", '"0"'])
    def test_another_etag_is_aborted(
        self, stub: TaskServiceStub, create_task: Create, etag: str | None
    ) -> None:
        """A writer that holds an old etag must not overwrite a newer title."""
        task = create_task()
        update(stub, Task(id=task.id, title="newer"))
        with fails(ABORTED, "ETAG_MISMATCH") as failure:
            update(stub, Task(id=task.id, title="mine", etag=etag or task.etag))
        assert failure.detail(error_details_pb2.ResourceInfo).resource_name == task.id
        assert stub.GetTask(GetTaskRequest(id=task.id)).title == "newer"

    def test_of_100_writers_with_one_etag_exactly_one_wins(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task = create_task()
        ready = threading.Barrier(20)

        def write(number: int) -> bool:
            if number < 20:
                ready.wait()
            try:
                update(stub, Task(id=task.id, title=f"writer {number}", etag=task.etag))
            except grpc.RpcError as error:
                assert error.code() == ABORTED  # noqa: PT017
                return False
            return True

        with ThreadPoolExecutor(20) as pool:
            assert sum(pool.map(write, range(100))) == 1

    def test_writers_without_an_etag_all_succeed(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        """Each is made anew from what the others left: no field of theirs is lost."""
        task = create_task()

        def write(number: int) -> None:
            if number % 2:
                update(stub, Task(id=task.id, title=f"title {number}"), "title")
            else:
                update(stub, Task(id=task.id, description=f"text {number}"), "description")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(40)))
        after = stub.GetTask(GetTaskRequest(id=task.id))
        events = stub.ListTaskEvents(ListTaskEventsRequest(task_id=task.id, page_size=100)).events
        assert len(events) == 1 + 40
        assert after.title.startswith("title")
        assert after.description.startswith("text")

    def test_a_missing_task_is_not_found(self, stub: TaskServiceStub) -> None:
        with fails(NOT_FOUND, "TASK_NOT_FOUND"):
            update(stub, Task(id=SOMEBODY, title="x"))

    def test_a_deleted_task_cannot_be_updated(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task = create_task()
        stub.DeleteTask(DeleteTaskRequest(id=task.id))
        with fails(PRECONDITION, "TASK_DELETED") as failure:
            update(stub, Task(id=task.id, title="x", etag=task.etag))
        violation = failure.detail(error_details_pb2.PreconditionFailure).violations[0]
        assert (violation.type, violation.subject) == ("TASK_DELETED", task.id)

    def test_validate_only_answers_and_changes_nothing(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task = create_task(title="old")
        tried = update(stub, Task(id=task.id, title="new"), "title", validate_only=True)
        assert tried.title == "new"
        assert stub.GetTask(GetTaskRequest(id=task.id)) == task

    def test_validate_only_does_not_use_up_a_request_id(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task, request_id = create_task(title="old"), str(uuid.uuid4())
        new = Task(id=task.id, title="new")
        update(stub, new, validate_only=True, request_id=request_id)
        assert update(stub, new, request_id=request_id).title == "new"
        assert stub.GetTask(GetTaskRequest(id=task.id)).title == "new"

    def test_absent_fields_break_no_rule(self, stub: TaskServiceStub, create_task: Create) -> None:
        """The title is required, and an update that does not mean it need not send it."""
        task = create_task(title="kept")
        assert update(stub, Task(id=task.id, description="new")).title == "kept"

    def test_all_violations_are_told_at_once(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        bad = Task(id="x", title=" ", description="d" * 2001, tags=["", "t" * 51])
        with fails(INVALID, "INVALID_REQUEST") as failure:
            update(stub, bad, "*", "nope", "title", "description", "tags", request_id="r")
        assert failure.violations == {
            "task.id": "STRING_UUID",
            "task.title": "TASK_TITLE_NOT_BLANK",
            "task.description": "STRING_MAX_LEN",
            "task.tags[0]": "TASK_TAGS_NOT_BLANK",
            "task.tags[1]": "STRING_MAX_LEN",
            "request_id": "STRING_UUID",
            "update_mask": "UNKNOWN_FIELD",
        }

    def test_what_the_mask_does_not_mean_may_be_anything(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        """A timestamp that is none is not even read."""
        task = Task(id=create_task().id, title="new", description="d" * 3000, tags=[""])
        task.due_date.seconds = 2**63 - 1
        task.due_date.nanos = -1
        assert update(stub, task, "title").title == "new"

    def test_clearing_the_title_is_refused(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        with fails(INVALID, "INVALID_REQUEST") as failure:
            update(stub, Task(id=create_task().id), "title")
        assert failure.violations == {"task.title": "TASK_TITLE_NOT_BLANK"}


class TestDueDate:
    def test_it_must_be_in_the_future_when_set(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task = create_task()
        for past in (moment(seconds=-1), Timestamp(seconds=0)):
            with fails(INVALID, "INVALID_REQUEST") as failure:
                create_task(due_date=past)
            assert failure.violations == {"task.due_date": "TIMESTAMP_IN_PAST"}
            with fails(INVALID, "INVALID_REQUEST") as failure:
                update(stub, Task(id=task.id, due_date=past))
            assert failure.violations == {"task.due_date": "TIMESTAMP_IN_PAST"}

    def test_one_that_has_passed_may_stay(
        self, stub: TaskServiceStub, create_task: Create, database: Database
    ) -> None:
        """A client that sends the whole task back must be able to change its title."""
        task = create_task(due_date=moment(days=1))
        make_overdue(database, task.id)
        task = stub.GetTask(GetTaskRequest(id=task.id))
        task.title = "late"
        changed = update(stub, task, "*")
        assert (changed.title, changed.due_date) == ("late", task.due_date)

    @pytest.mark.parametrize(
        "timestamp",
        [
            Timestamp(seconds=4102444800, nanos=-1),
            Timestamp(seconds=4102444800, nanos=2_000_000_000),
            Timestamp(seconds=253402300800),
            Timestamp(seconds=-62135596801),
            Timestamp(seconds=2**63 - 1, nanos=2**31 - 1),
            Timestamp(seconds=-(2**63)),
        ],
        ids=str,
    )
    def test_a_timestamp_that_is_none_is_refused(
        self, stub: TaskServiceStub, create_task: Create, timestamp: Timestamp
    ) -> None:
        with fails(INVALID, "INVALID_REQUEST") as failure:
            create_task(due_date=timestamp)
        assert set(failure.violations) == {"task.due_date"}
        with fails(INVALID, "INVALID_REQUEST") as failure:
            update(stub, Task(id=SOMEBODY, due_date=timestamp))
        assert set(failure.violations) == {"task.due_date"}

    def test_the_last_moment_of_all_is_one(self, create_task: Create) -> None:
        last = Timestamp(seconds=253402300799, nanos=999_999_999)
        assert create_task(due_date=last).due_date.seconds == last.seconds


class TestStatus:
    ALLOWED = {
        (before, after)
        for before in (TASK_STATUS_PENDING, TASK_STATUS_IN_PROGRESS)
        for after in TaskStatus.values()[1:]
    } | {
        (before, after)
        for before in (TASK_STATUS_COMPLETED, TASK_STATUS_CANCELLED)
        for after in (TASK_STATUS_PENDING, TASK_STATUS_IN_PROGRESS, before)
    }

    @pytest.mark.parametrize("before", TaskStatus.values()[1:], ids=TaskStatus.Name)
    @pytest.mark.parametrize("after", TaskStatus.values()[1:], ids=TaskStatus.Name)
    def test_transitions(
        self,
        stub: TaskServiceStub,
        create_task: Create,
        before: TaskStatus.ValueType,
        after: TaskStatus.ValueType,
    ) -> None:
        task = create_task(status=before)
        if (before, after) in self.ALLOWED:
            assert update(stub, Task(id=task.id, status=after)).status == after
            return
        with fails(PRECONDITION, "STATUS_TRANSITION_NOT_ALLOWED") as failure:
            update(stub, Task(id=task.id, status=after))
        violation = failure.detail(error_details_pb2.PreconditionFailure).violations[0]
        assert (violation.type, violation.subject) == ("STATUS_TRANSITION", task.id)
        assert TaskStatus.Name(before) in violation.description

    def test_completed_at_follows_the_status(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task = create_task()
        completed = update(stub, Task(id=task.id, status=TASK_STATUS_COMPLETED))
        assert completed.completed_at == completed.updated_at
        retitled = update(stub, Task(id=task.id, title="still done"))
        assert retitled.completed_at == completed.completed_at
        reopened = update(stub, Task(id=task.id, status=TASK_STATUS_PENDING))
        assert not reopened.HasField("completed_at")


class TestDeleteTask:
    def test_a_deleted_task_can_be_read_and_is_not_listed(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task = create_task()
        deleted = stub.DeleteTask(DeleteTaskRequest(id=task.id))
        assert deleted.HasField("deleted_at")
        assert stub.GetTask(GetTaskRequest(id=task.id)) == deleted
        assert not stub.ListTasks(ListTasksRequest()).tasks
        assert stub.ListTasks(ListTasksRequest(show_deleted=True)).tasks == [deleted]

    def test_deleting_what_is_not_there_is_not_found(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task = create_task()
        stub.DeleteTask(DeleteTaskRequest(id=task.id))
        for id_ in (SOMEBODY, task.id):
            with fails(NOT_FOUND, "TASK_NOT_FOUND") as failure:
                stub.DeleteTask(DeleteTaskRequest(id=id_))
            assert failure.detail(error_details_pb2.ResourceInfo).resource_name == id_

    def test_allow_missing_succeeds_all_the_same(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task = create_task()
        deleted = stub.DeleteTask(DeleteTaskRequest(id=task.id, allow_missing=True))
        assert stub.DeleteTask(DeleteTaskRequest(id=task.id, allow_missing=True)) == deleted
        never = stub.DeleteTask(DeleteTaskRequest(id=SOMEBODY, allow_missing=True))
        assert never == Task(id=SOMEBODY)

    def test_another_etag_is_aborted(self, stub: TaskServiceStub, create_task: Create) -> None:
        task = create_task()
        update(stub, Task(id=task.id, title="newer"))
        with fails(ABORTED, "ETAG_MISMATCH"):
            stub.DeleteTask(DeleteTaskRequest(id=task.id, etag=task.etag, allow_missing=True))
        assert not stub.GetTask(GetTaskRequest(id=task.id)).HasField("deleted_at")


class TestUndeleteTask:
    def test_it_brings_the_task_back(self, stub: TaskServiceStub, create_task: Create) -> None:
        task = create_task(title="back")
        deleted = stub.DeleteTask(DeleteTaskRequest(id=task.id))
        back = stub.UndeleteTask(UndeleteTaskRequest(id=task.id, etag=deleted.etag))
        assert (back.title, back.HasField("deleted_at")) == ("back", False)
        assert stub.ListTasks(ListTasksRequest()).tasks == [back]

    def test_a_task_that_is_not_deleted_exists(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        """AIP-164."""
        with fails(EXISTS, "TASK_NOT_DELETED"):
            stub.UndeleteTask(UndeleteTaskRequest(id=create_task().id))

    def test_a_missing_task_is_not_found(self, stub: TaskServiceStub) -> None:
        with fails(NOT_FOUND, "TASK_NOT_FOUND"):
            stub.UndeleteTask(UndeleteTaskRequest(id=SOMEBODY))

    def test_another_etag_is_aborted(self, stub: TaskServiceStub, create_task: Create) -> None:
        task = create_task()
        stub.DeleteTask(DeleteTaskRequest(id=task.id))
        with fails(ABORTED, "ETAG_MISMATCH"):
            stub.UndeleteTask(UndeleteTaskRequest(id=task.id, etag=task.etag))


class TestGetTaskStats:
    def test_an_empty_service_counts_nothing_of_everything(self, stub: TaskServiceStub) -> None:
        stats = stub.GetTaskStats(GetTaskStatsRequest())
        assert (stats.total, stats.overdue) == (0, 0)
        assert [(c.status, c.count) for c in stats.by_status] == [(s, 0) for s in range(1, 5)]
        assert [(c.priority, c.count) for c in stats.by_priority] == [(p, 0) for p in range(1, 5)]

    def test_it_counts_by_status_and_priority_and_what_is_overdue(
        self, stub: TaskServiceStub, create_task: Create, database: Database
    ) -> None:
        create_task(status=TASK_STATUS_COMPLETED, priority=TASK_PRIORITY_LOW)
        create_task(priority=TASK_PRIORITY_HIGH, due_date=moment(days=1))
        late = create_task(status=TASK_STATUS_IN_PROGRESS, due_date=moment(days=1))
        done = create_task(status=TASK_STATUS_CANCELLED, due_date=moment(days=1))
        gone = create_task(due_date=moment(days=1))
        for task in (late, done, gone):
            make_overdue(database, task.id)
        stub.DeleteTask(DeleteTaskRequest(id=gone.id))

        before = time.time()
        stats = stub.GetTaskStats(GetTaskStatsRequest())

        assert stats.total == 4
        assert [c.count for c in stats.by_status] == [1, 1, 1, 1]
        assert [c.count for c in stats.by_priority] == [1, 2, 1, 0]
        assert stats.overdue == 1
        assert before <= stats.as_of.ToNanoseconds() / 1e9 <= time.time()

    def test_a_filter_narrows_it(self, stub: TaskServiceStub, create_task: Create) -> None:
        create_task(assigned_to="ann")
        create_task(assigned_to="ben")
        stats = stub.GetTaskStats(GetTaskStatsRequest(filter='assigned_to = "ann"'))
        assert stats.total == 1

    def test_a_bad_filter_is_refused(self, stub: TaskServiceStub) -> None:
        with fails(INVALID, "INVALID_REQUEST") as failure:
            stub.GetTaskStats(GetTaskStatsRequest(filter="colour = red"))
        assert failure.violations == {"filter": "FILTER_INVALID"}
