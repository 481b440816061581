"""Request ids: a write can be repeated until its answer arrives (AIP-155)."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest, GetTaskRequest, ListTasksRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import EXISTS, fails
from tests.support.tasks import moment, update

Create = Callable[..., Task]


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
