"""Events that cannot be read: histories and watches skip them, and log it."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text, update

from storage.database import Database
from storage.tables import task_events
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    ListTaskEventsRequest,
    UpdateTaskRequest,
    WatchTasksRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.service import PATIENCE_SECONDS

Create = Callable[..., Task]

# Payloads that were changed by hand or written by another version.
BROKEN = {
    "a time that is none": """jsonb_set(payload, '{after,due_date}', '"rubbish"')""",
    "a time without end": """jsonb_set(payload, '{after,due_date}', '"infinity"')""",
    "no task": "'{}'",
    "no object": "'[]'",
    "a task without a field": "payload #- '{after,title}'",
}
FAR = """jsonb_set(payload, '{after,due_date}', '"2030-01-01T08:59:59+09:00"')"""


def rewrite_events(database: Database, payload: str, task_id: str) -> None:
    """Changes the payload of the task's events so far."""
    with database.engine.connect() as connection:
        connection.execute(
            update(task_events)
            .where(task_events.c.aggregateid == task_id)
            .values(payload=text(payload))
        )


def retitle(stub: TaskServiceStub, task: Task, title: str) -> Task:
    return stub.UpdateTask(UpdateTaskRequest(task=Task(id=task.id, title=title)))


def counted() -> float:
    return REGISTRY.get_sample_value("taskservice_events_unreadable_total") or 0


@pytest.mark.parametrize("payload", BROKEN.values(), ids=list(BROKEN))
def test_a_history_leaves_out_an_event_that_cannot_be_read(
    stub: TaskServiceStub, create_task: Create, database: Database, payload: str
) -> None:
    task = create_task()
    rewrite_events(database, payload, task.id)
    retitle(stub, task, "readable")
    (event,) = stub.ListTaskEvents(ListTaskEventsRequest(task_id=task.id)).events
    assert event.changes[0].field == "title"


def test_a_page_of_a_history_is_full_in_spite_of_unreadable_events(
    stub: TaskServiceStub, create_task: Create, database: Database
) -> None:
    """A short page would be taken for the last one."""
    task = create_task()
    retitle(stub, task, "old 1")
    retitle(stub, task, "old 2")
    with database.engine.connect() as connection:
        connection.execute(text("UPDATE task_events SET payload = '{}' WHERE type = 'updated'"))
    retitle(stub, task, "new")
    first = stub.ListTaskEvents(ListTaskEventsRequest(task_id=task.id, page_size=1))
    second = stub.ListTaskEvents(
        ListTaskEventsRequest(task_id=task.id, page_size=1, page_token=first.next_page_token)
    )
    assert len(first.events) == len(second.events) == 1
    assert not second.next_page_token


@pytest.mark.parametrize("filter_", ["", "priority = MEDIUM", 'due_date < "2999-01-01T00:00:00Z"'])
@pytest.mark.parametrize("payload", BROKEN.values(), ids=list(BROKEN))
def test_a_watch_goes_on_after_an_event_that_cannot_be_read(
    stub: TaskServiceStub, create_task: Create, database: Database, payload: str, filter_: str
) -> None:
    """With a filter it is PostgreSQL that cannot read it."""
    resume_token = next(
        iter(stub.WatchTasks(WatchTasksRequest(filter=filter_), timeout=PATIENCE_SECONDS))
    ).resume_token
    rewrite_events(database, payload, create_task().id)
    due = {"due_date": {"seconds": 2**32}}
    last = create_task(title="readable", **due)
    watch = stub.WatchTasks(
        WatchTasksRequest(filter=filter_, resume_token=resume_token), timeout=PATIENCE_SECONDS
    )
    response = next(response for response in watch if response.task.id)
    watch.cancel()
    assert response.task.id == last.id


def test_an_event_of_another_time_zone_is_read(
    stub: TaskServiceStub, create_task: Create, database: Database
) -> None:
    """A session in Tokyo wrote the end of the year 2029 like this."""
    task = create_task()
    rewrite_events(database, FAR, task.id)
    (event,) = stub.ListTaskEvents(ListTaskEventsRequest(task_id=task.id)).events
    assert "2029-12-31T23:59:59Z" in str(event.changes)


def test_an_event_that_cannot_be_read_is_logged_without_its_content(
    stub: TaskServiceStub,
    create_task: Create,
    database: Database,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = counted()
    task = create_task(title="confidential")
    rewrite_events(database, BROKEN["a time that is none"], task.id)
    with caplog.at_level(logging.ERROR, "storage.events"):
        assert not stub.ListTaskEvents(ListTaskEventsRequest(task_id=task.id)).events
    assert "an event cannot be read: xid" in caplog.text
    assert "rubbish" not in caplog.text
    assert "confidential" not in caplog.text
    assert counted() > before
