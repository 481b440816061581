"""Which events are kept: those that are not old, and those of a restored database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from sqlalchemy import text

from storage import schema
from storage.database import Database
from storage.errors import EventsRemovedError
from storage.events import Event, EventLog, Position
from storage.repository import TaskRepository
from tests.support.events import (
    DAY,
    assert_in_the_order_of_writes,
    create,
    events_kept,
    execute,
    read_all,
    update,
)

# What is kept


@pytest.fixture
def aged(repository: TaskRepository, database: Database, start: Position) -> list[Event]:
    """Six events: the first four are old."""
    update(repository, update(repository, create(repository, 2)))
    events = read_all(database, start)
    age(database, events[:4])
    return events


def age(database: Database, events: Sequence[Event]) -> None:
    for event in events:
        execute(
            database,
            "UPDATE task_events SET occurred_at = now() - interval '2 days' "
            "WHERE (xid, id) = (CAST(:xid AS text)::xid8, :id)",
            xid=str(event.position.xid),
            id=event.position.id,
        )


def kept(database: Database) -> list[tuple[int, int]]:
    rows = database.read(text("SELECT xid, id FROM task_events"))
    return sorted((xid, id_) for xid, id_ in rows)


def places(events: Sequence[Event]) -> list[tuple[int, int]]:
    return [(event.position.xid, event.position.id) for event in events]


def test_trim_removes_what_is_old(log: EventLog, database: Database, aged: list[Event]) -> None:
    assert log.trim(older_than=DAY) == 4
    assert kept(database) == places(aged[4:])


def test_trim_removes_no_more_than_its_limit_and_the_first_first(
    log: EventLog, database: Database, aged: list[Event]
) -> None:
    assert [log.trim(older_than=DAY, limit=3) for _ in range(3)] == [3, 1, 0]
    assert kept(database) == places(aged[4:])


@pytest.mark.usefixtures("aged")
def test_trim_leaves_what_is_not_old(log: EventLog, database: Database) -> None:
    assert log.trim(older_than=3 * DAY) == 0
    assert events_kept(database) == 6


def test_trim_removes_nothing_behind_an_event_that_it_keeps(
    log: EventLog, database: Database, aged: list[Event]
) -> None:
    """A write that waited for another is older than that one, and stands behind it."""
    age(database, aged[5:])
    log.trim(older_than=DAY)
    assert kept(database) == places(aged[4:])


def test_the_horizon_never_goes_back(log: EventLog, database: Database, aged: list[Event]) -> None:
    """A reader behind an event that was removed early would miss the removal of another."""
    age(database, aged[5:])
    log.trim(older_than=DAY)
    age(database, aged[:5])
    log.trim(older_than=DAY, limit=1)
    with suppress(EventsRemovedError):
        assert places(log.read(aged[4].position, limit=10).events) == places(aged[5:])


def test_the_place_of_the_last_event_removed_still_reads(log: EventLog, aged: list[Event]) -> None:
    log.trim(older_than=DAY)
    assert log.read(aged[3].position, limit=10).events == aged[4:]


@pytest.mark.parametrize("number", [0, 2])
def test_a_place_before_that_is_refused(log: EventLog, aged: list[Event], number: int) -> None:
    log.trim(older_than=DAY)
    with pytest.raises(EventsRemovedError):
        log.read(aged[number].position, limit=10)


@pytest.mark.usefixtures("aged")
def test_the_beginning_of_the_stream_is_refused_when_some_of_it_is_gone(
    log: EventLog, start: Position
) -> None:
    log.trim(older_than=DAY, limit=1)
    with pytest.raises(EventsRemovedError):
        log.read(start, limit=10)


def test_when_all_is_removed_the_head_stays_where_it_was(log: EventLog, aged: list[Event]) -> None:
    log.trim(older_than=-DAY)
    assert log.head() == aged[-1].position
    assert log.read(log.head(), limit=10).events == []


@pytest.mark.usefixtures("aged")
def test_several_processes_trim_each_event_once(log: EventLog, database: Database) -> None:
    with ThreadPoolExecutor(4) as pool:
        trims = [pool.submit(log.trim, older_than=DAY, limit=2) for _ in range(8)]
    assert sum(trim.result() for trim in trims) == 4
    assert events_kept(database) == 2


# A database restored from another server's dump, whose transaction ids this one is yet to reach


@pytest.fixture
def restored(own_database_url: str) -> Iterator[Database]:
    """Two tasks that were written there by many transactions, the first by an early one too."""
    database = Database(own_database_url)
    rows = create(TaskRepository(database), 2)
    for _ in range(3):
        rows = update(TaskRepository(database), rows)
    for table in ("task_events", "tasks", "event_horizon"):
        execute(
            database,
            f"UPDATE {table} SET xid = (xid::text::bigint + 1000000)::text::xid8 "  # noqa: S608
            "WHERE xid::text::bigint > (SELECT min(xid::text::bigint) FROM task_events)",
        )
    yield database
    database.close()


def migrate(database: Database) -> None:
    schema.upgrade(database.engine.url.render_as_string(hide_password=False))


def test_a_restored_history_keeps_its_order(restored: Database) -> None:
    migrate(restored)
    (row, _) = TaskRepository(restored).page(limit=2)
    history = EventLog(restored).history(row.id, limit=10)
    assert_in_the_order_of_writes(history[::-1], 4)


def test_the_head_of_a_restored_stream_reads_at_once(restored: Database) -> None:
    migrate(restored)
    log = EventLog(restored)
    assert log.read(log.head(), limit=10).events == []


@pytest.mark.parametrize("trimmed", [False, True])
def test_a_restored_stream_goes_on_with_what_is_written(restored: Database, trimmed: bool) -> None:
    if trimmed:
        execute(restored, "DELETE FROM task_events")
    migrate(restored)
    head = EventLog(restored).head()
    repository = TaskRepository(restored)
    rows = update(repository, repository.page(limit=2))
    after = [event.after for event in read_all(restored, head)]
    assert sorted(after) == sorted(rows)


def test_a_history_goes_on_behind_what_was_restored(restored: Database) -> None:
    migrate(restored)
    repository = TaskRepository(restored)
    (row, _) = update(repository, repository.page(limit=2))
    history = EventLog(restored).history(row.id, limit=10)
    assert_in_the_order_of_writes(history[::-1], 5)


def test_a_restored_horizon_that_is_in_the_future_is_moved_back(restored: Database) -> None:
    execute(restored, "DELETE FROM task_events")
    execute(restored, "UPDATE tasks SET xid = '0'")
    execute(restored, "UPDATE event_horizon SET xid = '1000000'")
    migrate(restored)
    log = EventLog(restored)
    assert log.read(log.head(), limit=1).events == []


def test_a_database_that_was_not_restored_keeps_its_stream(own_database_url: str) -> None:
    database = Database(own_database_url)
    start = EventLog(database).head()
    update(TaskRepository(database), create(TaskRepository(database), 2))
    before = read_all(database, start)
    migrate(database)
    assert read_all(database, start) == before
    database.close()
