"""Write batches of tasks, in transactions that stay open too, and read the stream of events."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, text

from storage.database import Database
from storage.events import Event, EventLog, Position
from storage.repository import Change, Creation, Origin, Target, TaskRepository
from storage.statement import Parameters, Query, Rows, Statement
from storage.tables import TaskRow
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
        self, query: Query, parameters: Parameters | None = None, *, commit: bool = True
    ) -> Rows:
        assert isinstance(query, Statement)
        rows = self._connection.exec_driver_sql(query.sql, query.values(parameters))
        return [tuple(row) for row in rows]


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


def assert_in_the_order_of_writes(events: Sequence[Event], count: int) -> None:
    """Each event of a task begins with what the one before it left."""
    assert len(events) == count
    assert events[0].before is None
    assert [event.before for event in events[1:]] == [event.after for event in events[:-1]]
