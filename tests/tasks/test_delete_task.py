"""DeleteTask and UndeleteTask."""

from __future__ import annotations

from collections.abc import Callable

from google.rpc import error_details_pb2

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    DeleteTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    UndeleteTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import ABORTED, EXISTS, NOT_FOUND, fails
from tests.support.tasks import SOME_ID, update

Create = Callable[..., Task]


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
        for id_ in (SOME_ID, task.id):
            with fails(NOT_FOUND, "TASK_NOT_FOUND") as failure:
                stub.DeleteTask(DeleteTaskRequest(id=id_))
            assert failure.detail(error_details_pb2.ResourceInfo).resource_name == id_

    def test_allow_missing_succeeds_all_the_same(
        self, stub: TaskServiceStub, create_task: Create
    ) -> None:
        task = create_task()
        deleted = stub.DeleteTask(DeleteTaskRequest(id=task.id, allow_missing=True))
        assert stub.DeleteTask(DeleteTaskRequest(id=task.id, allow_missing=True)) == deleted
        never = stub.DeleteTask(DeleteTaskRequest(id=SOME_ID, allow_missing=True))
        assert never == Task(id=SOME_ID)

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
            stub.UndeleteTask(UndeleteTaskRequest(id=SOME_ID))

    def test_another_etag_is_aborted(self, stub: TaskServiceStub, create_task: Create) -> None:
        task = create_task()
        stub.DeleteTask(DeleteTaskRequest(id=task.id))
        with fails(ABORTED, "ETAG_MISMATCH"):
            stub.UndeleteTask(UndeleteTaskRequest(id=task.id, etag=task.etag))
