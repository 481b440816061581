"""Repeated batches: what was done before is answered, the rest is done."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor

from google.protobuf.timestamp_pb2 import Timestamp

from storage.database import Database
from taskservice.v1.task_event_pb2 import TaskEvent
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest, GetTaskRequest, PurgeTasksRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.batches import (
    create,
    delete,
    event_types,
    made,
    new_id,
    nothing_is_written,
    send,
    update,
)
from tests.support.errors import EXISTS, NOT_FOUND, fails


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


def test_a_repeat_may_spell_its_ids_in_another_case(stub: TaskServiceStub) -> None:
    first = CreateTaskRequest(task=Task(title="t"), task_id=new_id(), request_id=new_id())
    again = CreateTaskRequest(
        task=first.task, task_id=first.task_id.upper(), request_id=first.request_id.upper()
    )
    assert stub.CreateTask(again) == stub.CreateTask(first)
