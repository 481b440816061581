"""CreateTask: fields, defaults, ids and validate_only."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from google.rpc import error_details_pb2

from taskservice.v1.task_pb2 import (
    TASK_PRIORITY_MEDIUM,
    TASK_STATUS_COMPLETED,
    TASK_STATUS_PENDING,
    Task,
)
from taskservice.v1.task_service_pb2 import CreateTaskRequest, GetTaskRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import EXISTS, NOT_FOUND, fails
from tests.support.tasks import SOME_ID, moment

Create = Callable[..., Task]


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
        request = CreateTaskRequest(task=Task(title="mine"), task_id=SOME_ID.upper())
        assert stub.CreateTask(request).id == SOME_ID
        assert stub.GetTask(GetTaskRequest(id=SOME_ID)).title == "mine"

    def test_a_taken_id_is_refused(self, stub: TaskServiceStub) -> None:
        request = CreateTaskRequest(task=Task(title="mine"), task_id=SOME_ID)
        stub.CreateTask(request)
        with fails(EXISTS, "TASK_EXISTS") as failure:
            stub.CreateTask(request)
        assert failure.detail(error_details_pb2.ResourceInfo).resource_name == SOME_ID

    def test_fields_that_only_the_server_writes_are_ignored(self, create_task: Create) -> None:
        """AIP-203: output-only fields in a request are no error."""
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
