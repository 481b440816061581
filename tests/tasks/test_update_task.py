"""UpdateTask: masks, etags, concurrent writers, and rules of due dates and states."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2

from storage.database import Database
from taskservice.v1.task_pb2 import (
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
    DeleteTaskRequest,
    GetTaskRequest,
    ListTaskEventsRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import ABORTED, INVALID, NOT_FOUND, PRECONDITION, fails
from tests.support.tasks import SOME_ID, make_overdue, moment, update

Create = Callable[..., Task]


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
            update(stub, Task(id=SOME_ID, title="x"))

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

    def test_all_violations_are_reported_at_once(
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
            update(stub, Task(id=SOME_ID, due_date=timestamp))
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
