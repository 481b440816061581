"""What a write leaves in the stream of events, and that it is announced."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import pytest
from sqlalchemy import text

from storage.database import Database
from storage.errors import StorageError
from storage.events import Position
from storage.repository import Origin, RequestRecord, Target, TaskRepository
from storage.tables import TaskRow
from tests.support.events import (
    NOON,
    SOME_ORIGIN,
    Kind,
    change,
    create,
    delete,
    new_id,
    new_task,
    read_all,
    undelete,
    update,
)

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


def test_the_events_of_a_batch_name_the_transaction_that_wrote_its_tasks(
    repository: TaskRepository, database: Database, start: Position
) -> None:
    create(repository, 3)
    (written,) = {event.written_by for event in read_all(database, start)}
    wrote = database.read(text("SELECT DISTINCT xid::text, xmin::text FROM tasks"))
    assert [(int(xid), int(xmin)) for xid, xmin in wrote] == [(written, written % 2**32)]


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


def test_an_event_has_the_principal_the_trace_and_the_time(
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


# Announcements of writes


@pytest.fixture
def announced(database: Database) -> list[TaskRepository]:
    """A repository, which adds itself to a list for each write that it announces."""
    announced: list[TaskRepository] = []
    announced.append(TaskRepository(database, lambda: announced.append(announced[0])))
    return announced


def test_each_write_is_announced_once(announced: list[TaskRepository]) -> None:
    rows = create(announced[0], 3)
    for kind in (update, delete, undelete):
        rows = kind(announced[0], rows)
    assert len(announced) == 1 + 4


def test_a_write_without_an_event_is_not_announced(announced: list[TaskRepository]) -> None:
    (row,) = create(announced[0])
    announced[1:] = []
    announced[0].create([new_task()], SOME_ORIGIN, commit=False)
    announced[0].update([change(row)._replace(request=RequestRecord(new_id(), b""))], SOME_ORIGIN)
    with pytest.raises(StorageError):
        undelete(announced[0], [row])
    assert len(announced) == 1
