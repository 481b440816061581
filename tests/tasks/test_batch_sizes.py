"""Batches by size: answers and requests at their limits."""

from __future__ import annotations

import grpc
import pytest

from storage.database import Database
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import BatchCreateTasksRequest, CreateTaskRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.batches import (
    WIDE,
    Make,
    create,
    delete,
    made,
    new_id,
    nothing_is_written,
    send,
    update,
)
from tests.support.errors import EXHAUSTED, fails


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


class TestSizes:
    """A client takes 4 MiB by default: a write with a larger answer must not be made."""

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

    def test_an_update_in_parts_can_make_tasks_smaller(
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
