"""Batches: the order of the answer, deletions, concurrent writes, equality with single calls."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.database import Database
from taskservice.v1.task_event_pb2 import TaskEvent
from taskservice.v1.task_pb2 import TASK_STATUS_COMPLETED, TASK_STATUS_IN_PROGRESS, Task
from taskservice.v1.task_service_pb2 import UpdateTaskRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.batches import (
    KINDS,
    PAST,
    SOME_ID,
    Make,
    create,
    delete,
    event_types,
    made,
    new_id,
    nothing_is_written,
    send,
    update,
)
from tests.support.errors import NOT_FOUND, Failure, fails


class TestTheAnswer:
    @pytest.mark.parametrize("kind", KINDS)
    def test_it_has_the_tasks_in_the_order_of_the_request(
        self, stub: TaskServiceStub, kind: Make
    ) -> None:
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
        created = send(stub, [create(task_id=SOME_ID.upper())])
        assert created[0].id == SOME_ID

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


class TestDeletions:
    def test_missing_and_deleted_tasks_may_be_allowed(self, stub: TaskServiceStub) -> None:
        live, dead = made(stub, 2)
        deleted = stub.DeleteTask(delete(dead.id))
        ids = [SOME_ID.upper(), dead.id, live.id]
        answer = send(stub, [delete(id_, allow_missing=True) for id_ in ids])
        assert answer[:2] == [Task(id=SOME_ID), deleted]
        assert answer[2].HasField("deleted_at")

    def test_what_one_item_allows_another_does_not(
        self, stub: TaskServiceStub, database: Database
    ) -> None:
        (live,) = made(stub, 1)
        items = [delete(live.id), delete(new_id(), allow_missing=True), delete(SOME_ID)]
        with nothing_is_written(database), fails(NOT_FOUND, "TASK_NOT_FOUND") as failure:
            send(stub, items)
        assert failure.info.metadata["item"] == "requests[2]"

    def test_where_nothing_is_left_to_delete_nothing_is_written(
        self, stub: TaskServiceStub, database: Database
    ) -> None:
        with nothing_is_written(database):
            assert send(stub, [delete(SOME_ID, allow_missing=True)]) == [Task(id=SOME_ID)]

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

    def test_a_large_batch_succeeds_while_its_tasks_are_being_updated(
        self, stub: TaskServiceStub
    ) -> None:
        """One of so many tasks is always being written: repeating the whole batch would not end."""
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
