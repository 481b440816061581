"""Watches that begin with the tasks that exist."""

from __future__ import annotations

import random
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import pytest

from storage.database import Database
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    ListTasksRequest,
    UndeleteTaskRequest,
    WatchTasksResponse,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.watching import (
    ADDED,
    DELETED,
    MODIFIED,
    OF_ANN,
    OpenWatch,
    create,
    create_by_hand,
    delete,
    one_transaction,
    up_to_bookmark,
    update,
    update_by_hand,
)


@pytest.mark.parametrize("count", [0, 1, 2, 4, 5])
def test_initial_tasks_are_the_existing_ones_and_then_a_bookmark(
    stub: TaskServiceStub, watch: OpenWatch, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """On one page, several, or some that are full to the last."""
    monkeypatch.setattr("server.tasks.watch_readers._BATCH", 2)
    standing = create(stub, *map(str, range(count))) if count else []
    (gone,) = create(stub, "gone")
    delete(stub, gone)
    watching = watch(send_initial_tasks=True)
    received = [watching.next() for _ in range(count)]
    watching.bookmark()
    assert {(r.type, r.resume_token) for r in received} <= {(ADDED, "")}
    assert [r.task for r in received] == sorted(standing, key=lambda task: task.id)


def test_initial_tasks_are_only_those_that_match(stub: TaskServiceStub, watch: OpenWatch) -> None:
    create(stub, "of ann", assigned_to="ann")
    create(stub, "of bob", assigned_to="bob")
    watching = watch(send_initial_tasks=True, filter=OF_ANN)
    assert watching.next().task.title == "of ann"
    watching.bookmark()


def test_changes_follow_the_initial_tasks(stub: TaskServiceStub, watch: OpenWatch) -> None:
    (task,) = create(stub, "before")
    watching = watch(send_initial_tasks=True)
    assert watching.next().task == task
    token = watching.bookmark()
    updated = update(stub, task, title="after")
    change = watching.change()
    assert (change.type, change.task) == (MODIFIED, updated)
    assert watch(resume_token=token).change().task == updated


@pytest.mark.parametrize("committed", [True, False], ids=["commit", "rollback"])
def test_the_first_bookmark_waits_for_writes_that_the_pages_could_not_see(
    stub: TaskServiceStub, watch: OpenWatch, database: Database, committed: bool
) -> None:
    """Open transactions are neither on the page that was read nor before the bookmark."""
    (task, other) = sorted(create(stub, "old", "other"), key=lambda task: task.id)
    with suppress(ZeroDivisionError), one_transaction(database) as held:
        update_by_hand(held, task.id, title="new")
        create_by_hand(held, str(uuid.uuid4()))
        watching = watch(send_initial_tasks=True)
        assert [watching.next().task for _ in range(2)] == [task, other]
        after = update(stub, other, title="beside")
        if not committed:
            raise ZeroDivisionError
    expected = {(MODIFIED, "new"), (ADDED, "by hand")} if committed else set()
    expected |= {(MODIFIED, "beside")}
    received = [watching.change() for _ in expected]
    assert {(r.type, r.task.title) for r in received} == expected
    assert [r.task for r in received if r.task.id == other.id] == [after]
    (last,) = create(stub, "last")
    assert watching.change().task == last


def test_no_bookmark_while_a_write_is_open_that_the_pages_could_not_see(
    stub: TaskServiceStub, watch: OpenWatch, database: Database
) -> None:
    """A watch that begins now reports what was committed before, then its bookmark."""
    (task,) = create(stub, "old")
    with one_transaction(database) as held:
        update_by_hand(held, task.id, title="new")
        (newer,) = create(stub, "newer")
        watching = watch(send_initial_tasks=True)
        assert [watching.next().task for _ in range(2)] == [task, newer]
    before_the_bookmark = watching.next()
    assert (before_the_bookmark.type, before_the_bookmark.resume_token) == (MODIFIED, "")
    watching.bookmark()


@pytest.mark.parametrize("case", [(seed, filter_) for seed in range(4) for filter_ in ("", OF_ANN)])
def test_the_responses_of_a_watch_add_up_to_the_list(
    stub: TaskServiceStub,
    watch: OpenWatch,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[int, str],
) -> None:
    """Writers go on while the initial tasks are read, page by page, and after that."""
    seed, filter_ = case
    monkeypatch.setattr("server.tasks.watch_readers._BATCH", 3)
    shared = [task.id for task in create(stub, *map(str, range(30)), assigned_to="ann")]
    stop = threading.Event()
    with ThreadPoolExecutor() as pool:
        writers = [
            pool.submit(_write_at_random, stub, database, f"{seed} {n}", shared, stop)
            for n in range(4)
        ]
        try:
            watching = [watch(send_initial_tasks=True, filter=filter_) for _ in range(3)]
            received = [up_to_bookmark(one) for one in watching]
        finally:
            stop.set()
        for writer in writers:
            writer.result()
    (last,) = create(stub, "last", assigned_to="ann")
    tasks = stub.ListTasks(ListTasksRequest(page_size=1000, filter=filter_)).tasks
    for one, responses in zip(watching, received, strict=True):
        while (response := one.change()).task.id != last.id:
            responses.append(response)
        states = [(r.task.id, r.task.etag) for r in [*responses, response]]
        assert len(states) == len(set(states))
        assert _added_up([*responses, response]) == {task.id: task for task in tasks}


def _added_up(responses: list[WatchTasksResponse]) -> dict[str, Task]:
    """Return the tasks of a client that applies every response."""
    tasks: dict[str, Task] = {}
    for response in responses:
        known = response.task.id in tasks
        assert known == (response.type != ADDED), response
        tasks[response.task.id] = response.task
        if response.type == DELETED:
            del tasks[response.task.id]
    return tasks


def _write_at_random(
    stub: TaskServiceStub,
    database: Database,
    seed: str,
    shared: list[str],
    stop: threading.Event,
) -> None:
    """Write, over the service and in longer transactions.

    Limited: watches of one caller read in turn, three events at a time here, and would not catch
    up with faster writers.
    """
    dice = random.Random(seed)  # noqa: S311
    for _ in range(150):
        if stop.is_set():
            return
        task = Task(id=dice.choice(shared))
        assignee = dice.choice(["ann", "bob"])
        with suppress(grpc.RpcError):  # Another was first.
            match dice.randrange(6):
                case 0:
                    delete(stub, task)
                case 1:
                    stub.UndeleteTask(UndeleteTaskRequest(id=task.id))
                case 2:
                    create(stub, "new", assigned_to=assignee)
                case 3:
                    with one_transaction(database) as held:
                        create_by_hand(held, str(uuid.uuid4()))
                        stop.wait(dice.uniform(0, 0.01))
                case _:
                    update(stub, task, assigned_to=assignee)
