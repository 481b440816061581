"""Watches: each change exactly once, in order, for every filter."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from storage.database import Database
from storage.events import Batch, EventLog, Position
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest, UndeleteTaskRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.service import wait_until
from tests.support.watching import (
    ADDED,
    DELETED,
    MODIFIED,
    OF_ANN,
    OF_BOB,
    Gate,
    OpenWatch,
    Serve,
    create,
    delete,
    ended_watches,
    joined,
    titles,
    update,
)

Create = Callable[..., Task]


def test_a_watch_begins_with_a_bookmark(
    watch: OpenWatch, create_task: Create, database: Database
) -> None:
    before = EventLog(database).head()
    create_task()
    wait_until(lambda: EventLog(database).head() > before, "the creation is settled")
    watch().bookmark()


def test_each_write_is_reported_as_it_was_answered(stub: TaskServiceStub, watch: OpenWatch) -> None:
    watching = joined(watch)
    (created,) = create(stub, "one", assigned_to="ann", tags=["a", "b"])
    updated = update(stub, created, title="two")
    deleted = delete(stub, updated)
    undeleted = stub.UndeleteTask(UndeleteTaskRequest(id=created.id))
    received = watching.changes(4)
    assert [(response.type, response.task) for response in received] == [
        (ADDED, created),
        (MODIFIED, updated),
        (DELETED, deleted),
        (ADDED, undeleted),
    ]


def test_each_change_has_its_own_token(stub: TaskServiceStub, watch: OpenWatch) -> None:
    watching = joined(watch)
    create(stub, "one", "two", "three")
    assert len({response.resume_token for response in watching.changes(3)} - {""}) == 3


def test_a_write_that_changes_nothing_is_not_reported(
    stub: TaskServiceStub, watch: OpenWatch
) -> None:
    watching = joined(watch)
    (task,) = create(stub, "one")
    update(stub, task, title="one")
    stub.CreateTask(CreateTaskRequest(task=Task(title="not meant"), validate_only=True))
    create(stub, "two")
    assert titles(watching.changes(2)) == ["one", "two"]


def test_a_change_is_reported_although_its_announcement_was_lost(
    serve: Serve, watch: OpenWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.wakeups.Announcer.announce", lambda _: None)
    stub = serve()
    watching = joined(watch, stub)
    create(stub, "unannounced")
    assert titles(watching.changes(1)) == ["unannounced"]


def test_a_change_is_reported_by_another_process(
    stub: TaskServiceStub, serve: Serve, watch: OpenWatch
) -> None:
    watching = joined(watch, serve())
    create(stub, "elsewhere")
    assert titles(watching.changes(1)) == ["elsewhere"]


def test_a_task_is_added_and_deleted_as_it_enters_and_leaves_a_filter(
    stub: TaskServiceStub, watch: OpenWatch
) -> None:
    watching = joined(watch, filter=OF_ANN)
    (task,) = create(stub, "0", assigned_to="bob")
    update(stub, task, title="1")
    into = update(stub, task, assigned_to="ann")
    inside = update(stub, task, title="3")
    out = update(stub, task, assigned_to="bob")
    update(stub, task, title="5")
    delete(stub, task)
    stub.UndeleteTask(UndeleteTaskRequest(id=task.id))
    again = update(stub, task, assigned_to="ann")
    gone = delete(stub, task)
    back = stub.UndeleteTask(UndeleteTaskRequest(id=task.id))
    assert [(r.type, r.task) for r in watching.changes(6)] == [
        (ADDED, into),
        (MODIFIED, inside),
        (DELETED, out),
        (ADDED, again),
        (DELETED, gone),
        (ADDED, back),
    ]


def test_each_watch_receives_what_its_own_filter_matches(
    stub: TaskServiceStub, watch: OpenWatch
) -> None:
    filters = [OF_ANN, OF_BOB, "", OF_ANN, "title:task", "priority >= HIGH"]
    watches = [joined(watch, filter=filter_) for filter_ in filters]
    (task,) = create(stub, "task 1", assigned_to="ann")
    update(stub, task, assigned_to="bob")
    create(stub, "end", assigned_to="ann")
    create(stub, "end", assigned_to="bob", priority="TASK_PRIORITY_HIGH")
    expected = [
        [(ADDED, "task 1"), (DELETED, "task 1"), (ADDED, "end")],
        [(ADDED, "task 1"), (ADDED, "end")],
        [(ADDED, "task 1"), (MODIFIED, "task 1"), (ADDED, "end"), (ADDED, "end")],
        [(ADDED, "task 1"), (DELETED, "task 1"), (ADDED, "end")],
        [(ADDED, "task 1"), (MODIFIED, "task 1")],
        [(ADDED, "end")],
    ]
    received = [
        [(r.type, r.task.title) for r in one.changes(len(changes))]
        for one, changes in zip(watches, expected, strict=True)
    ]
    assert received == expected


def test_watches_that_join_and_leave_do_not_disturb_the_others(
    stub: TaskServiceStub, watch: OpenWatch
) -> None:
    watching = joined(watch)
    for number in range(20):
        create(stub, f"{number} before", assigned_to="ann")
        guest = joined(watch, filter=f'{OF_ANN} AND title = "{number} after"')
        create(stub, f"{number} after", assigned_to="ann")
        assert guest.change().task.title == f"{number} after"
        guest.cancel()
    expected = [f"{number} {when}" for number in range(20) for when in ("before", "after")]
    assert titles(watching.changes(40)) == expected


def test_a_watch_that_joins_as_the_last_one_leaves_misses_nothing(
    stub: TaskServiceStub, watch: OpenWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has read less than the others had received when they left, during a read."""
    gates = {"stream": Gate(), "watches": Gate()}
    read = EventLog.read

    def held(self: EventLog, position: Position, **options: Any) -> Batch:
        batch = read(self, position, **options)
        gates[threading.current_thread().name.partition("_")[0]].pass_through()
        return batch

    monkeypatch.setattr("storage.events.EventLog.read", held)
    first = joined(watch)
    with gates["stream"].closed(), capture_logs() as logs:
        second = watch()
        gates["stream"].await_arrival()
        create(stub, "one")
        assert titles(first.changes(1)) == ["one"]
        with gates["watches"].closed():
            create(stub, "two")
            gates["watches"].await_arrival()
            first.cancel()
            wait_until(lambda: ended_watches(logs), "the first has left")
            gates["stream"].open()
            second.bookmark()
    assert titles(second.changes(1)) == ["one"]


def test_a_watch_that_ends_leaves_one_line_in_the_log(
    stub: TaskServiceStub, watch: OpenWatch
) -> None:
    with capture_logs() as logs:
        watching = joined(watch)
        assert not ended_watches(logs)
        watching.cancel()
        (line,) = wait_until(lambda: ended_watches(logs), "the watch has ended")
    assert (line["event"], line["code"]) == ("call", "CANCELLED")
    assert line.keys() >= {"duration_ms", "peer", "request_id"}
