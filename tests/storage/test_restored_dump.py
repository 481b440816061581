"""A database restored from another server's dump has transaction ids above the current one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from storage import schema
from storage.database import Database
from storage.errors import EventsRemovedError
from storage.events import EventLog, Position
from storage.repository import Change, Creation, Origin, TaskRepository
from storage.tables import TaskRow
from tests.support.service import wait_until

CONTENT = {
    "title": "a task",
    "description": "",
    "status": 1,
    "priority": 2,
    "assigned_to": "",
    "due_date": None,
    "tags": [],
}
FUTURE = 10**12
SOME_ORIGIN = Origin("ann")


@pytest.fixture
def restored(own_database_url: str) -> Iterator[Database]:
    """Three writes of one task, as another server with far more transactions would have them."""
    database = Database(own_database_url)
    repository = TaskRepository(database)
    row = create(repository)
    for title in ("second", "third"):
        row = rename(repository, row, title)
    with database.engine.connect() as connection:
        for table in ("task_events", "tasks"):
            moved = f"UPDATE {table} SET xid = ((xid::text)::bigint + {FUTURE})::text::xid8"  # noqa: S608
            connection.execute(text(moved))
    yield database
    database.close()


def create(repository: TaskRepository) -> TaskRow:
    values = CONTENT | {"id": str(uuid.uuid4()), "created_by": "ann"}
    return repository.create([Creation(values)], SOME_ORIGIN)[0]


def rename(repository: TaskRepository, row: TaskRow, title: str) -> TaskRow:
    return repository.update([Change(row, CONTENT | {"title": title})], SOME_ORIGIN)[0]


def only_task(repository: TaskRepository) -> TaskRow:
    (row,) = repository.page(limit=10)
    return row


def test_migrating_makes_its_events_the_past(restored: Database, own_database_url: str) -> None:
    """The history stays and goes on; a stream begins behind it."""
    schema.upgrade(own_database_url)
    events, repository = EventLog(restored), TaskRepository(restored)
    head = events.head()
    row = rename(repository, only_task(repository), "fourth")
    (new,) = wait_until(lambda: events.read(head, limit=10).events, "the write is settled")
    assert new.after == row
    titles = [event.after.title for event in events.history(row.id, limit=10)]
    assert titles == ["fourth", "third", "second", "a task"]


def test_tokens_of_the_other_server_are_refused(restored: Database, own_database_url: str) -> None:
    events = EventLog(restored)
    (row,) = TaskRepository(restored).page(limit=1)
    old = [event.position for event in events.history(row.id, limit=10)]
    schema.upgrade(own_database_url)
    for position in [*old, Position(5, 1)]:
        with pytest.raises(EventsRemovedError):
            events.read(position, limit=10)


def test_migrating_again_changes_nothing(restored: Database, own_database_url: str) -> None:
    schema.upgrade(own_database_url)
    events, repository = EventLog(restored), TaskRepository(restored)
    head = events.head()
    rename(repository, only_task(repository), "fourth")
    schema.upgrade(own_database_url)
    new = wait_until(lambda: events.read(head, limit=10).events, "the write is settled")
    assert len(new) == 1
