"""The answer to a batch at position n is for its request n, whatever the ids are."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from storage.database import Database
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    BatchDeleteTasksRequest,
    BatchGetTasksRequest,
    BatchUpdateTasksRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub

Create = Callable[..., Task]


def creation(task_id: str = "", request_id: str = "", **fields: Any) -> CreateTaskRequest:
    task = Task(**{"title": "new", **fields})
    return CreateTaskRequest(task=task, task_id=task_id, request_id=request_id)


def change(task_id: str, request_id: str = "", **fields: Any) -> UpdateTaskRequest:
    return UpdateTaskRequest(task=Task(id=task_id, **fields), request_id=request_id)


def create_all(stub: TaskServiceStub, requests: list[CreateTaskRequest]) -> list[Task]:
    return list(stub.BatchCreateTasks(BatchCreateTasksRequest(requests=requests)).tasks)


def update_all(stub: TaskServiceStub, requests: list[UpdateTaskRequest]) -> list[Task]:
    return list(stub.BatchUpdateTasks(BatchUpdateTasksRequest(requests=requests)).tasks)


def titles(tasks: list[Task]) -> list[str]:
    return [task.title for task in tasks]


def test_updates_whose_request_ids_are_each_others_tasks(
    stub: TaskServiceStub, create_task: Create
) -> None:
    first, second = create_task().id, create_task().id
    requests = [change(first, second, title="first"), change(second, first, title="second")]
    for _ in range(2):  # Also when all of them are repeated.
        answer = update_all(stub, requests)
        assert [task.id for task in answer] == [first, second]
        assert titles(answer) == ["first", "second"]


def test_a_repeated_update_beside_a_task_with_its_request_id(
    stub: TaskServiceStub, create_task: Create
) -> None:
    first, second = create_task().id, create_task().id
    repeated = change(first, second, title="first")
    stub.UpdateTask(repeated)
    assert titles(update_all(stub, [change(second, title="second"), repeated])) == [
        "second",
        "first",
    ]


def test_creations_whose_request_ids_are_each_others_tasks(stub: TaskServiceStub) -> None:
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    requests = [creation(first, second, title="first"), creation(second, first, title="second")]
    for _ in range(2):
        assert titles(create_all(stub, requests)) == ["first", "second"]


def test_a_task_whose_id_is_the_request_id_that_made_it(stub: TaskServiceStub) -> None:
    one = str(uuid.uuid4())
    made = stub.CreateTask(creation(one, one, title="one"))
    assert create_all(stub, [creation(title="two"), creation(one, one, title="one")])[1] == made


_POOL = [str(uuid.UUID(int=n << 64 | n)) for n in range(1, 6)]
_ids = st.lists(st.sampled_from(_POOL), min_size=1, max_size=5, unique=True)


def test_every_answer_is_for_the_request_at_its_position(
    stub: TaskServiceStub, database: Database
) -> None:
    """Ids and request ids come from one small pool, and every batch is sent twice."""

    def requests_of(
        ids: list[str], request_ids: list[str], make: Callable[[str, str, str], Any]
    ) -> list[Any]:
        given_ids = [*request_ids, *[""] * len(ids)]
        return [make(id_, given_ids[n], f"title {n}") for n, id_ in enumerate(ids)]

    @given(_ids, _ids, _ids, st.permutations(_POOL))
    def hold(created: list[str], first: list[str], second: list[str], order: list[str]) -> None:
        with database.engine.connect() as connection:
            connection.exec_driver_sql("TRUNCATE tasks, requests, task_events")
        creations = requests_of(created, first, lambda i, r, t: creation(i, r, title=t))
        ids = [i for i in order if i in created]
        updates = requests_of(ids, second, lambda i, r, t: change(i, r, title=f"new {t}"))
        used = {request.request_id for request in creations} - {""}
        updates = [request for request in updates if request.request_id not in used]
        for batch, send in ((creations, create_all), (updates, update_all)):
            for _ in range(2 if all(request.request_id for request in batch) else 1):
                answer = send(stub, batch) if batch else []
                assert titles(answer) == [request.task.title for request in batch]
        got = stub.BatchGetTasks(BatchGetTasksRequest(ids=ids)).tasks
        assert [task.id for task in got] == ids
        deletions = [DeleteTaskRequest(id=i, allow_missing=True) for i in order]
        deleted = stub.BatchDeleteTasks(BatchDeleteTasksRequest(requests=deletions)).tasks
        assert [task.id for task in deleted] == order

    hold()
