"""Events on a real PostgreSQL: what a write leaves, in which order it is read, and what is kept."""

from __future__ import annotations

import datetime as dt
import random
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Executable, text

from storage import schema
from storage.database import Database
from storage.errors import EventsRemovedError, StorageError
from storage.events import Event, EventLog, Position
from storage.initial_pages import Snapshot
from storage.query import COMPARISONS, And, Comparison, Filter, HasTag, HasWords, Not, Or, Present
from storage.repository import Change, Creation, Origin, RequestRecord, Target, TaskRepository
from storage.tables import TaskRow
from storage.untyped import Parameters, Rows
from tests.support.service import wait_until

PENDING, IN_PROGRESS, COMPLETED, CANCELLED = 1, 2, 3, 4
NOON = dt.datetime(2030, 6, 1, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)

CONTENT = {
    "title": "a task",
    "description": "",
    "status": PENDING,
    "priority": 2,
    "assigned_to": "",
    "due_date": None,
    "tags": [],
}
SOME_ORIGIN = Origin("ann", "4bf92f3577b34da6a3ce929d0e0e4736")

Kind = Callable[[TaskRepository, Sequence[TaskRow]], list[TaskRow]]


def new_id() -> str:
    return str(uuid.uuid4())


def new_task(**fields: object) -> Creation:
    return Creation({"id": new_id(), "created_by": "ann", **CONTENT, **fields})


def change(row: TaskRow, **fields: object) -> Change:
    return Change(row, {name: getattr(row, name) for name in CONTENT} | fields)


def create(repository: TaskRepository, count: int = 1, **fields: object) -> list[TaskRow]:
    return repository.create([new_task(**fields) for _ in range(count)], SOME_ORIGIN)


def update(repository: TaskRepository, rows: Sequence[TaskRow]) -> list[TaskRow]:
    return repository.update([change(row, title=f"{row.title}!") for row in rows], SOME_ORIGIN)


def delete(repository: TaskRepository, rows: Sequence[TaskRow]) -> list[TaskRow]:
    return repository.delete([Target(row.id) for row in rows], SOME_ORIGIN)


def undelete(repository: TaskRepository, rows: Sequence[TaskRow]) -> list[TaskRow]:
    return repository.undelete([Target(row.id) for row in rows], SOME_ORIGIN)


class _Within(Database):
    """Writes in a transaction that is open already."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def write(
        self, statement: Executable, parameters: Parameters | None = None, *, commit: bool = True
    ) -> Rows:
        return self._connection.execute(statement, parameters or {}).all()


class Transaction(TaskRepository):
    """What is written by it is visible to others when it is committed."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(_Within(connection))
        self._connection = connection

    def take_xid(self) -> None:
        """As the first thing that it writes would."""
        self._connection.execute(text("SELECT pg_current_xact_id()"))

    def commit(self) -> None:
        self._connection.commit()


@pytest.fixture
def begin(database: Database) -> Iterator[Callable[[], Transaction]]:
    """Begins a transaction."""
    connections: list[Connection] = []

    def begin() -> Transaction:
        connections.append(connection := database.engine.connect())
        connection.execution_options(isolation_level="READ COMMITTED")
        return Transaction(connection)

    yield begin
    for connection in connections:
        connection.close()


@pytest.fixture
def log(database: Database) -> EventLog:
    return EventLog(database)


@pytest.fixture
def start(log: EventLog) -> Position:
    """Where the stream stands when the test begins."""
    return log.head()


def await_settled(database: Database) -> None:
    """Waits for all transactions of now, those of other databases too."""
    ends = int(database.read(text("SELECT pg_snapshot_xmax(pg_current_snapshot())::text"))[0][0])
    log = EventLog(database)
    wait_until(lambda: log.read(log.head(), limit=1).settled >= ends, "they have ended")


def read_all(database: Database, start: Position, **options: Any) -> list[Event]:
    """What was written before the call, as one batch."""
    await_settled(database)
    batch = EventLog(database).read(start, limit=10_000, **options)
    assert batch.at_head
    return batch.events


def walk(log: EventLog, position: Position, limit: int) -> Iterator[Event]:
    """The events in batches, up to the head."""
    at_head = False
    while not at_head:
        batch = log.read(position, limit=limit)
        assert len(batch.events) <= limit
        assert batch.position > position or batch.at_head, "the walk does not end"
        yield from batch.events
        position, at_head = batch.position, batch.at_head


def events_kept(database: Database) -> int:
    return int(database.read(text("SELECT count(*) FROM task_events"))[0][0])


def execute(database: Database, statement: str, **parameters: object) -> None:
    with database.engine.connect() as connection:
        connection.execute(text(statement), parameters)


# What a write leaves


WRITES = pytest.mark.parametrize(
    ("kind", "type_", "made_by"),
    [(update, "updated", []), (delete, "deleted", []), (undelete, "undeleted", [delete])],
)
SIZES = pytest.mark.parametrize("count", [1, 3, 200])


@SIZES
def test_a_creation_leaves_one_event_for_each_task(
    repository: TaskRepository, database: Database, start: Position, count: int
) -> None:
    rows = create(repository, count, tags=["a", "it's"], due_date=NOON, title="Überweisung 💶")
    events = read_all(database, start)
    assert {event.type for event in events} == {"created"}
    assert sorted(event.after for event in events) == sorted(rows)
    assert {event.before for event in events} == {None}


@SIZES
@WRITES
def test_a_write_leaves_one_event_for_each_task_with_it_before_and_after(
    repository: TaskRepository,
    database: Database,
    *,
    start: Position,
    kind: Kind,
    type_: str,
    made_by: list[Kind],
    count: int,
) -> None:
    before = create(repository, count, title="Überweisung 💶", due_date=NOON)
    for make in made_by:
        before = make(repository, before)
    after = kind(repository, before)
    events = read_all(database, start)[-count:]
    assert {event.type for event in events} == {type_}
    states = [(event.before, event.after) for event in events]
    assert sorted(states) == sorted(zip(before, after, strict=True))


def test_every_write_leaves_its_own_event(
    repository: TaskRepository, database: Database, start: Position
) -> None:
    rows = create(repository)
    for kind in (update, delete, undelete, update):
        rows = kind(repository, rows)
    types = [event.type for event in read_all(database, start)]
    assert types == ["created", "updated", "deleted", "undeleted", "updated"]


def test_the_events_of_a_batch_are_written_by_the_transaction_that_wrote_its_tasks(
    repository: TaskRepository, database: Database, start: Position
) -> None:
    create(repository, 3)
    (written,) = {event.written_by for event in read_all(database, start)}
    wrote = database.read(text("SELECT DISTINCT xid::text AS id, xmin::text AS short FROM tasks"))
    assert [(int(row.id), int(row.short)) for row in wrote] == [(written, written % 2**32)]


@pytest.mark.parametrize(
    "due_date",
    [
        dt.datetime.min.replace(tzinfo=dt.UTC),
        dt.datetime.max.replace(tzinfo=dt.UTC),
        NOON.replace(microsecond=500_000),
        NOON.replace(microsecond=1),
    ],
    ids=["first", "last", "half a second", "a microsecond"],
)
def test_every_time_is_in_the_event_as_it_is_in_the_task(
    repository: TaskRepository, database: Database, start: Position, due_date: dt.datetime
) -> None:
    rows = create(repository, due_date=due_date)
    assert [event.after for event in read_all(database, start)] == rows


def test_an_event_says_who_wrote_in_which_trace_and_when(
    repository: TaskRepository, database: Database, start: Position
) -> None:
    (row,) = create(repository)
    (event,) = read_all(database, start)
    assert (event.principal, event.trace_id) == SOME_ORIGIN
    assert (event.task_id, event.occurred_at) == (row.id, row.updated_at)


def test_a_write_outside_of_a_trace_has_none(
    repository: TaskRepository, database: Database, start: Position
) -> None:
    repository.create([new_task()], Origin("ann"))
    assert [event.trace_id for event in read_all(database, start)] == [None]


@pytest.mark.parametrize("kind", ["create", "update"])
def test_an_event_names_the_request_of_its_own_task(
    repository: TaskRepository, database: Database, start: Position, kind: str
) -> None:
    asked = [RequestRecord(new_id(), b"1"), None, RequestRecord(new_id(), b"2")]
    items = [new_task() for _ in asked]
    if kind == "create":
        items = [item._replace(request=request) for item, request in zip(items, asked, strict=True)]
    rows = repository.create(items, SOME_ORIGIN)
    if kind == "update":
        changes = [
            change(row, title="renamed")._replace(request=request)
            for row, request in zip(rows, asked, strict=True)
        ]
        repository.update(changes, SOME_ORIGIN)
    named = {event.task_id: event.request_id for event in read_all(database, start)[-3:]}
    assert named == {
        row.id: request.request_id if request else None
        for row, request in zip(rows, asked, strict=True)
    }


def test_a_write_without_commit_leaves_no_event(
    repository: TaskRepository, database: Database, start: Position
) -> None:
    (row,) = create(repository)
    repository.create([new_task()], SOME_ORIGIN, commit=False)
    repository.update([change(row, title="renamed")], SOME_ORIGIN, commit=False)
    assert [event.type for event in read_all(database, start)] == ["created"]


@pytest.mark.parametrize("with_request", [False, True])
def test_an_update_that_changes_nothing_leaves_no_event(
    repository: TaskRepository, database: Database, start: Position, with_request: bool
) -> None:
    (row,) = create(repository)
    request = RequestRecord(new_id(), b"") if with_request else None
    repository.update([change(row)._replace(request=request)], SOME_ORIGIN)
    assert [event.type for event in read_all(database, start)] == ["created"]


def test_in_a_batch_only_what_changes_leaves_an_event(
    repository: TaskRepository, database: Database, start: Position
) -> None:
    same, other = create(repository, 2)
    repository.update([change(same), change(other, priority=4)], SOME_ORIGIN)
    assert [event.task_id for event in read_all(database, start)[2:]] == [other.id]


def test_a_repeated_creation_leaves_no_second_event(
    repository: TaskRepository, database: Database, start: Position
) -> None:
    item = new_task()._replace(request=RequestRecord(new_id(), b""))
    for _ in range(2):
        repository.create([item], SOME_ORIGIN)
    assert len(read_all(database, start)) == 1


def refused_writes() -> dict[str, Kind]:
    """Batches of which one item cannot be written; the rows are a living and a deleted task."""

    def stale(repository: TaskRepository, rows: Sequence[TaskRow]) -> list[TaskRow]:
        (again,) = create(repository)
        update(repository, [again])
        return update(repository, [rows[0], again])

    return {
        "create a taken id": lambda repository, rows: repository.create(
            [new_task(), new_task(id=rows[0].id)], SOME_ORIGIN
        ),
        "create what breaks a rule": lambda repository, _: repository.create(
            [new_task(), new_task(title="")], SOME_ORIGIN
        ),
        "update a stale row": stale,
        "update a deleted task": update,
        "delete a deleted task": delete,
        "delete another version": lambda repository, rows: repository.delete(
            [Target(rows[0].id, 7)], SOME_ORIGIN
        ),
        "delete an unknown task": lambda repository, rows: repository.delete(
            [Target(rows[0].id), Target(new_id())], SOME_ORIGIN
        ),
        "undelete a living task": undelete,
    }


@pytest.mark.parametrize("kind", refused_writes().values(), ids=refused_writes())
def test_a_refused_batch_leaves_no_event_of_any_of_its_tasks(
    repository: TaskRepository, database: Database, start: Position, kind: Kind
) -> None:
    living, deleted = create(repository, 2)
    (deleted,) = delete(repository, [deleted])
    with pytest.raises(StorageError):
        kind(repository, [living, deleted])
    events = [event for event in read_all(database, start) if event.task_id == living.id]
    assert [event.type for event in events] == ["created"]
    assert repository.get(living.id) == living


# Who is told of writes


@pytest.fixture
def told(database: Database) -> list[TaskRepository]:
    """A repository, which adds itself for each write that it tells of."""
    told: list[TaskRepository] = []
    told.append(TaskRepository(database, lambda: told.append(told[0])))
    return told


def test_each_write_is_told_of_once(told: list[TaskRepository]) -> None:
    rows = create(told[0], 3)
    for kind in (update, delete, undelete):
        rows = kind(told[0], rows)
    assert len(told) == 1 + 4


def test_what_left_no_event_is_not_told_of(told: list[TaskRepository]) -> None:
    (row,) = create(told[0])
    told[1:] = []
    told[0].create([new_task()], SOME_ORIGIN, commit=False)
    told[0].update([change(row)._replace(request=RequestRecord(new_id(), b""))], SOME_ORIGIN)
    with pytest.raises(StorageError):
        undelete(told[0], [row])
    assert len(told) == 1


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


def test_a_reader_that_began_while_a_transaction_was_slow_meets_each_event_once(
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


def assert_in_the_order_of_writes(events: Sequence[Event], count: int) -> None:
    """Each event of a task begins with what the one before it left."""
    assert len(events) == count
    assert events[0].before is None
    assert [event.before for event in events[1:]] == [event.after for event in events[:-1]]


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


def test_the_next_write_of_a_task_that_an_early_transaction_wrote_comes_behind_it(
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


def test_a_stream_that_is_read_while_it_is_written_has_every_event_once_and_in_order(
    repository: TaskRepository, database: Database, log: EventLog, start: Position
) -> None:
    """Writers whose batches overlap, and a reader that keeps to their heels."""
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
    rows = database.read(text("SELECT xid::text AS xid, id FROM task_events"))
    return sorted((int(row.xid), row.id) for row in rows)


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
    """Else a reader behind an event that went early would not be told that another is gone."""
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


# History


def test_a_history_is_of_one_task_and_begins_with_the_newest(
    repository: TaskRepository, log: EventLog
) -> None:
    rows = create(repository, 3)
    for kind in (update, delete, undelete):
        rows = kind(repository, rows)
    history = log.history(rows[1].id, limit=10)
    assert [event.type for event in history] == ["undeleted", "deleted", "updated", "created"]
    assert {event.task_id for event in history} == {rows[1].id}


@pytest.mark.parametrize("limit", range(1, 7))
def test_the_pages_of_a_history_are_all_of_it(
    repository: TaskRepository, log: EventLog, limit: int
) -> None:
    rows = create(repository, 2)
    for _ in range(4):
        rows = update(repository, rows)
    page, seen = log.history(rows[0].id, limit=limit), list[Event]()
    while page:
        assert len(page) <= limit
        seen += page
        page = log.history(rows[0].id, limit=limit, before=page[-1].position)
    assert_in_the_order_of_writes(seen[::-1], 5)


def test_a_history_waits_for_nobody(
    repository: TaskRepository, log: EventLog, begin: Callable[[], Transaction]
) -> None:
    """Other than the stream: a slow transaction on another task is none of its business."""
    begin().take_xid()
    (row,) = create(repository)
    assert [event.after for event in log.history(row.id, limit=10)] == [row]


def test_an_unknown_task_has_no_history(log: EventLog) -> None:
    assert log.history(new_id(), limit=10) == []


# Filters

WORDS = ["bill", "Pay the bill", "rent <b>bill</b>", "x"]
MOMENTS = [NOON, NOON + DAY]
contents = st.fixed_dictionaries(
    {
        "title": st.sampled_from(WORDS),
        "description": st.sampled_from(["", *WORDS]),
        "status": st.integers(PENDING, CANCELLED),
        "priority": st.integers(1, 4),
        "assigned_to": st.sampled_from(["", "ana", "bob"]),
        "due_date": st.none() | st.sampled_from(MOMENTS),
        "tags": st.lists(st.sampled_from(["a", "b", "it's"]), unique=True, max_size=3),
    }
)


def comparisons(values: st.SearchStrategy[Any], *fields: str) -> st.SearchStrategy[Filter]:
    operators = st.sampled_from(sorted(COMPARISONS))
    return st.builds(Comparison, st.sampled_from(fields), operators, values)


TIMES = ("due_date", "completed_at", "deleted_at", "created_at", "updated_at")
terms = st.one_of(
    comparisons(st.integers(1, 4), "status", "priority"),
    comparisons(st.sampled_from([*WORDS, "", "ana"]), "title", "description", "assigned_to"),
    comparisons(st.sampled_from(MOMENTS), *TIMES),
    st.builds(Present, st.sampled_from([*TIMES, "assigned_to", "description", "tags"])),
    st.builds(HasTag, st.sampled_from(["a", "b", "it's", "none"])),
    st.builds(
        HasWords, st.sampled_from(["bill", "the bill", "b"]), st.sampled_from([None, "title"])
    ),
)
filters = st.recursive(
    terms,
    lambda inner: (
        inner.map(Not)
        | st.builds(And, st.tuples(inner, inner))
        | st.builds(Or, st.tuples(inner, inner))
    ),
    max_leaves=4,
)
on_the_database = hypothesis_settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@on_the_database
@given(
    tasks=st.lists(contents, min_size=1, max_size=4),
    changes=st.lists(contents, min_size=4, max_size=4),
    kinds=st.lists(st.sampled_from(["update", "delete", "undelete"]), min_size=1, max_size=3),
    asked=st.lists(st.none() | filters, min_size=1, max_size=3).map(tuple),
)
def test_an_event_matches_what_a_list_at_that_moment_would_show(
    repository: TaskRepository,
    database: Database,
    *,
    tasks: list[dict[str, Any]],
    changes: list[dict[str, Any]],
    kinds: list[str],
    asked: tuple[Filter | None, ...],
) -> None:
    """Before and after each write, whatever the filters and whatever was written."""
    start = EventLog(database).head()
    rows = repository.create([new_task(**fields) for fields in tasks], SOME_ORIGIN)
    task_ids = {row.id for row in rows}
    lists = [set[str]() for _ in asked], listed(repository, asked, task_ids)
    expected = [(lists, row) for row in rows]
    for kind in kinds:
        rows = [row for row in rows if (row.deleted_at is None) == (kind != "undelete")]
        pairs = zip(rows, changes, strict=False)
        match kind:
            case "update":
                renewed = [change(row, **values) for row, values in pairs]
                rows = [row for row in repository.update(renewed, SOME_ORIGIN) if row not in rows]
            case "delete":
                rows = delete(repository, rows)
            case _:
                rows = undelete(repository, rows)
        lists = lists[1], listed(repository, asked, task_ids)
        expected += [(lists, row) for row in rows]
        rows = list(repository.find(sorted(task_ids)).values())
    events = read_all(database, start, filters=asked)
    answers = {(event.task_id, event.after.version): event[-2:] for event in events}
    assert answers == {
        (row.id, row.version): tuple(tuple(row.id in ids for ids in side) for side in sides)
        for sides, row in expected
    }


def listed(
    repository: TaskRepository, asked: Sequence[Filter | None], task_ids: set[str]
) -> list[set[str]]:
    """What a list with each of the filters shows, of these tasks."""
    lists = [repository.page(limit=10_000, filter_=filter_) for filter_ in asked]
    return [{row.id for row in rows} & task_ids for rows in lists]


def test_without_filters_nothing_is_answered(
    repository: TaskRepository, database: Database, start: Position
) -> None:
    create(repository)
    (event,) = read_all(database, start)
    assert (event.matched, event.matches) == ((), ())


# Tasks as they stand


def as_they_stand(log: EventLog, filter_: Filter | None = None, limit: int = 10) -> list[TaskRow]:
    page = log.tasks_as_they_stand(filter_, after=None, limit=limit)
    found = page.tasks
    while page.last_id:
        assert len(page.tasks) == limit
        page = log.tasks_as_they_stand(filter_, after=page.last_id, limit=limit)
        found += page.tasks
    return found


def in_steps(log: EventLog, filter_: Filter | None, ids: int) -> list[list[TaskRow]]:
    """The same, so many ids at a time."""
    page = log.tasks_among(filter_, after=None, ids=ids)
    steps = [page.tasks]
    while page.last_id:
        page = log.tasks_among(filter_, after=page.last_id, ids=ids)
        steps.append(page.tasks)
    return steps


@pytest.mark.parametrize("limit", range(1, 7))
def test_the_pages_of_the_tasks_as_they_stand_are_all_of_them_in_order(
    repository: TaskRepository, log: EventLog, limit: int
) -> None:
    rows = create(repository, 5)
    assert as_they_stand(log, limit=limit) == sorted(rows, key=lambda row: row.id)


def test_deleted_tasks_do_not_stand(repository: TaskRepository, log: EventLog) -> None:
    living, deleted = create(repository, 2)
    delete(repository, [deleted])
    assert as_they_stand(log) == [living]


@pytest.mark.parametrize("ids", range(1, 9))
def test_steps_by_ids_find_what_pages_find_and_none_looks_at_more(
    repository: TaskRepository, log: EventLog, ids: int
) -> None:
    """Also when a step, or all of them, has nothing that matches, or only deleted tasks."""
    rows = [create(repository, title=f"t {n}", assigned_to="ann" * (n > 3))[0] for n in range(7)]
    delete(repository, rows[5:6])
    for filter_ in (None, Comparison("assigned_to", "=", "ann"), HasTag("none")):
        steps = in_steps(log, filter_, ids)
        assert [row for step in steps for row in step] == as_they_stand(log, filter_)
        assert len(steps) == len(rows) // ids + 1


def test_only_tasks_that_match_stand(repository: TaskRepository, log: EventLog) -> None:
    create(repository, title="rent")
    rows = create(repository, title="bill")
    assert as_they_stand(log, HasWords("bill")) == rows


@pytest.mark.parametrize("exists", [False, True])
def test_a_page_without_tasks_says_what_it_saw(
    repository: TaskRepository, log: EventLog, start: Position, exists: bool
) -> None:
    if exists:
        create(repository)
    page = log.tasks_as_they_stand(HasTag("none"), after=None, limit=10)
    assert page.tasks == []
    assert page.snapshot.sees(start.xid)
    assert log.tasks_among(HasTag("none"), after=None, ids=10).snapshot.sees(start.xid)


def test_a_page_sees_exactly_what_was_committed_before_it(
    repository: TaskRepository, database: Database, log: EventLog, begin: Callable[[], Transaction]
) -> None:
    """What it does not see comes in the stream, and what it does see is on the page."""
    start = log.head()
    slow = begin()
    (open_,) = create(slow)
    (committed,) = create(repository)
    page = log.tasks_as_they_stand(None, after=None, limit=10)
    (later,) = create(repository)
    slow.commit()
    seen = {
        event.task_id: page.snapshot.sees(event.written_by) for event in read_all(database, start)
    }
    assert seen == {open_.id: False, committed.id: True, later.id: False}
    assert page.tasks == [committed]


@pytest.mark.parametrize(
    ("snapshot", "seen", "end"),
    [
        ("10:10:", {9: True, 10: False, 11: False}, 10),
        ("10:14:10", {9: True, 10: False, 11: True, 13: True, 14: False}, 14),
        ("10:14:10,12", {9: True, 10: False, 11: True, 12: False, 13: True, 14: False}, 14),
        (
            "8589934592:8589934594:8589934592",
            {3: True, 2**33: False, 2**33 + 1: True, 2**33 + 2: False},
            2**33 + 2,
        ),
    ],
)
def test_a_snapshot_sees_what_had_ended(snapshot: str, seen: dict[int, bool], end: int) -> None:
    """Below the first number none was running; from the second on none had begun."""
    parsed = Snapshot(snapshot)
    assert {xid: parsed.sees(xid) for xid in seen} == seen
    assert parsed.end == end
