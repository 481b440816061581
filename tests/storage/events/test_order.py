"""The order in which events are read, and the positions between them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from storage.database import Database
from storage.errors import EventsRemovedError, StorageError
from storage.events import Event, EventLog, Position
from storage.repository import TaskRepository
from storage.tables import TaskRow
from tests.support.events import (
    Kind,
    Transaction,
    assert_in_the_order_of_writes,
    await_settled,
    create,
    delete,
    events_kept,
    read_all,
    undelete,
    update,
    walk,
)

# The order in which events are read


def test_a_slow_transaction_is_not_skipped(
    repository: TaskRepository,
    database: Database,
    log: EventLog,
    start: Position,
    begin: Callable[[], Transaction],
) -> None:
    """What was written after it, and committed before it, waits for it."""
    slow = begin()
    (first,) = create(slow)
    (second,) = create(repository)
    before = log.read(start, limit=10)
    assert (before.events, before.position, before.at_head) == ([], start, True)
    slow.commit()
    assert [event.task_id for event in read_all(database, start)] == [first.id, second.id]


def test_a_transaction_that_was_rolled_back_holds_nothing_up(
    repository: TaskRepository,
    database: Database,
    start: Position,
    begin: Callable[[], Transaction],
) -> None:
    slow = begin()
    create(slow)
    (row,) = create(repository)
    slow._connection.rollback()
    assert [event.task_id for event in read_all(database, start)] == [row.id]


def test_a_head_is_never_before_a_transaction_that_may_still_write(
    repository: TaskRepository, log: EventLog, start: Position, begin: Callable[[], Transaction]
) -> None:
    slow = begin()
    slow.take_xid()
    create(repository)
    assert log.head() == start


def test_a_reader_from_before_a_slow_commit_reads_each_event_once(
    repository: TaskRepository, database: Database, log: EventLog, begin: Callable[[], Transaction]
) -> None:
    create(repository)
    await_settled(database)
    slow = begin()
    (first,) = create(slow)
    (second,) = create(repository)
    head = log.head()
    slow.commit()
    assert [event.task_id for event in read_all(database, head)] == [first.id, second.id]


@pytest.mark.parametrize("kind", [update, delete])
@pytest.mark.parametrize("later_writes", [1, 2])
def test_the_events_of_a_task_are_in_the_order_of_its_versions(
    repository: TaskRepository,
    database: Database,
    *,
    start: Position,
    begin: Callable[[], Transaction],
    kind: Kind,
    later_writes: int,
) -> None:
    """A transaction that began to write first may come to a task last."""
    rows = create(repository)
    earliest, early = begin(), begin()
    earliest.take_xid()
    early.take_xid()
    for _ in range(later_writes):
        rows = update(repository, rows)
    rows = update(early, rows)
    early.commit()
    kind(earliest, rows)
    earliest.commit()
    events = read_all(database, start)
    assert_in_the_order_of_writes(events, later_writes + 3)
    by_xid = sorted(events, key=lambda event: event.written_by)
    assert by_xid != events, "the transactions were in the order of their writes"


@pytest.mark.parametrize("kind", [update, delete])
def test_a_write_never_happened_before_the_one_that_it_follows(
    repository: TaskRepository, begin: Callable[[], Transaction], kind: Kind
) -> None:
    """Also when its transaction had begun before that."""
    rows = create(repository)
    early = begin()
    early.take_xid()
    (before,) = update(repository, rows)
    (after,) = kind(early, [before])
    early.commit()
    assert after.updated_at >= before.updated_at
    assert after.deleted_at in {None, after.updated_at}


def test_a_write_after_that_of_an_early_transaction_is_read_after_it(
    repository: TaskRepository,
    database: Database,
    start: Position,
    begin: Callable[[], Transaction],
) -> None:
    rows = create(repository)
    early = begin()
    early.take_xid()
    rows = update(early, update(repository, rows))
    early.commit()
    update(repository, rows)
    assert_in_the_order_of_writes(read_all(database, start), 4)


def test_a_stream_read_during_writes_has_every_event_once_and_in_order(
    repository: TaskRepository, database: Database, log: EventLog, start: Position
) -> None:
    """Writers whose batches overlap, and a reader that follows them closely."""
    task_ids = [row.id for row in create(repository, 8)]

    def write(seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311
        for _ in range(40):
            rows = list(repository.find(chance.sample(task_ids, 4)).values())
            chance.shuffle(rows)
            with suppress(StorageError):
                chance.choice([update, update, delete, undelete])(repository, rows[:3])

    read: list[Event] = []
    with ThreadPoolExecutor(4) as pool:
        writers = [pool.submit(write, seed) for seed in range(4)]
        position = start
        while not all(writer.done() for writer in writers):
            batch = log.read(position, limit=5)
            read += batch.events
            position = batch.position
    for writer in writers:
        writer.result()
    read += read_all(database, position)
    assert len({event.position for event in read}) == len(read) == events_kept(database)
    assert chains(read) == {task_id: repository.get(task_id) for task_id in task_ids}


def chains(events: Sequence[Event]) -> dict[str, TaskRow | None]:
    """What the events make of each task; each goes on where the one before ended."""
    states: dict[str, TaskRow | None] = defaultdict(lambda: None)
    for event in events:
        assert event.before == states[event.task_id]
        states[event.task_id] = event.after
    return states


# Positions


def test_the_batches_of_any_limit_are_the_whole_stream(
    repository: TaskRepository, database: Database, log: EventLog, start: Position
) -> None:
    for size in (1, 3, 2):
        update(repository, create(repository, size))
    whole = read_all(database, start)
    assert len(whole) == 12
    for limit in range(1, len(whole) + 2):
        assert list(walk(log, start, limit)) == whole


def test_the_stream_goes_on_behind_any_of_its_events(
    repository: TaskRepository, database: Database, log: EventLog, start: Position
) -> None:
    update(repository, create(repository, 4))
    whole = read_all(database, start)
    for number, event in enumerate(whole, 1):
        assert log.read(event.position, limit=100).events == whole[number:]


def test_positions_grow(repository: TaskRepository, database: Database, start: Position) -> None:
    update(repository, create(repository, 3))
    positions = [start, *(event.position for event in read_all(database, start))]
    assert positions == sorted(set(positions))


@pytest.mark.parametrize(("limit", "at_head"), [(1, False), (2, False), (3, True)])
def test_a_batch_that_is_not_full_ends_at_the_head(
    repository: TaskRepository,
    database: Database,
    *,
    log: EventLog,
    start: Position,
    limit: int,
    at_head: bool,
) -> None:
    create(repository, 2)
    await_settled(database)
    assert log.read(start, limit=limit).at_head == at_head


def test_the_head_is_where_the_last_event_stands(
    repository: TaskRepository, database: Database, log: EventLog, start: Position
) -> None:
    create(repository, 3)
    events = read_all(database, start)
    assert log.head() == events[-1].position


def test_at_the_head_there_is_nothing_to_read(
    repository: TaskRepository, database: Database, log: EventLog
) -> None:
    create(repository)
    await_settled(database)
    head = log.head()
    assert log.read(head, limit=10)[:3] == ([], head, True)


@pytest.mark.parametrize("ahead", [10**6, 2**60])
def test_a_place_in_the_future_is_refused(log: EventLog, start: Position, ahead: int) -> None:
    """It is another database's, or of the time after the backup that this one was set back to."""
    future = Position(log.read(start, limit=1).settled + ahead, 0)
    with pytest.raises(EventsRemovedError):
        log.read(future, limit=1)
