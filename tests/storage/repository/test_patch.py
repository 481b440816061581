"""Updates of some columns in one statement, which merges and checks them."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from storage.database import Database
from storage.events import EventLog
from storage.repository import Patch, RequestRecord, TaskRepository
from storage.tables import TaskRow
from tests.support.events import (
    CANCELLED,
    COMPLETED,
    IN_PROGRESS,
    PENDING,
    SOME_ORIGIN,
    create,
    delete,
    new_id,
    read_all,
)
from tests.support.repository import new_request

HOUR = dt.timedelta(hours=1)
ALL = [PENDING, IN_PROGRESS, COMPLETED, CANCELLED]


@pytest.fixture
def repository(database: Database) -> TaskRepository:
    return TaskRepository(database)


@pytest.fixture
def row(repository: TaskRepository) -> TaskRow:
    return create(repository, title="old", assigned_to="ann")[0]


def patch(
    repository: TaskRepository,
    row: TaskRow,
    *,
    version: int | None = None,
    statuses: list[int] = ALL,
    request: RequestRecord | None = None,
    commit: bool = True,
    **values: Any,
) -> TaskRow | None:
    item = Patch(row.id, values, version, statuses, request)
    return repository.patch(item, SOME_ORIGIN, commit=commit)


def test_a_patch_changes_its_columns_only(repository: TaskRepository, row: TaskRow) -> None:
    written = patch(repository, row, title="new", priority=4)
    assert written is not None
    assert written == repository.get(row.id)
    assert written == row._replace(
        title="new", priority=4, version=written.version, updated_at=written.updated_at
    )
    assert written.version != row.version


def test_a_patch_may_empty_columns(repository: TaskRepository, row: TaskRow) -> None:
    dated = patch(repository, row, due_date=dt.datetime(2100, 1, 1, tzinfo=dt.UTC), tags=["a"])
    emptied = patch(repository, row, due_date=None, tags=[], assigned_to="")
    assert dated is not None
    assert emptied is not None
    assert (emptied.due_date, emptied.tags, emptied.assigned_to) == (None, [], "")


def test_completed_at_follows_a_patched_status(repository: TaskRepository, row: TaskRow) -> None:
    completed = patch(repository, row, status=COMPLETED)
    assert completed is not None
    assert completed.completed_at == completed.updated_at
    renamed = patch(repository, row, title="new")
    assert renamed is not None
    assert renamed.completed_at == completed.completed_at
    reopened = patch(repository, row, status=PENDING)
    assert reopened is not None
    assert reopened.completed_at is None


@pytest.mark.parametrize(
    "given",
    [
        {"version": 7, "title": "new"},
        {"statuses": [COMPLETED, CANCELLED], "status": COMPLETED},
        {"due_date": dt.datetime(2020, 1, 1, tzinfo=dt.UTC)},
        {"title": "old", "assigned_to": "ann"},
        {},
    ],
    ids=["another version", "another status", "a past due date", "no new value", "no columns"],
)
def test_a_patch_that_needs_a_decision_writes_nothing(
    given: dict[str, Any], repository: TaskRepository, row: TaskRow
) -> None:
    request = new_request()
    assert patch(repository, row, request=request, **given) is None
    assert repository.get(row.id) == row
    assert repository.find_replays([request], SOME_ORIGIN) == [None]


def test_a_patch_of_no_task_or_a_deleted_one_writes_nothing(
    repository: TaskRepository, row: TaskRow
) -> None:
    (deleted,) = delete(repository, [row])
    assert patch(repository, row, title="new") is None
    assert patch(repository, row._replace(id=new_id()), title="new") is None
    assert repository.get(row.id) == deleted


def test_a_patch_of_the_right_version_is_written(repository: TaskRepository, row: TaskRow) -> None:
    assert patch(repository, row, title="new", version=row.version) == repository.get(row.id)


def test_a_due_date_that_has_passed_may_remain(
    repository: TaskRepository, database: Database
) -> None:
    (overdue,) = create(repository, due_date=database.now() - HOUR)
    assert patch(repository, overdue, title="new", due_date=overdue.due_date)
    assert patch(repository, overdue, title="newer")


def test_a_patch_records_its_request_and_takes_place_once(
    repository: TaskRepository, row: TaskRow
) -> None:
    request = new_request()
    written = patch(repository, row, title="new", request=request)
    assert repository.find_replays([request], SOME_ORIGIN) == [written]
    assert patch(repository, row, title="newer", request=request) is None
    assert repository.get(row.id) == written


def test_a_patch_without_commit_writes_nothing(repository: TaskRepository, row: TaskRow) -> None:
    request = new_request()
    written = patch(repository, row, title="new", request=request, commit=False)
    assert written is not None
    assert written.title == "new"
    assert repository.get(row.id) == row
    assert repository.find_replays([request], SOME_ORIGIN) == [None]


def test_concurrent_patches_lose_nothing(
    repository: TaskRepository, database: Database, row: TaskRow
) -> None:
    start = EventLog(database).head()

    def write(column: str) -> list[Any]:
        values: list[dict[str, Any]] = [{column: f"{column} {n}"} for n in range(25)]
        return [getattr(patch(repository, row, **each), column) for each in values]

    columns = ["title", "description", "assigned_to"]
    with ThreadPoolExecutor(3) as threads:
        written = list(threads.map(write, columns))
    assert written == [[f"{column} {n}" for n in range(25)] for column in columns]
    last = repository.get(row.id)
    assert [getattr(last, column) for column in columns] == [f"{column} 24" for column in columns]
    events = [event for event in read_all(database, start) if event.type == "updated"]
    assert len(events) == 75
    assert [event.before for event in events[1:]] == [event.after for event in events[:-1]]


def test_of_concurrent_patches_of_one_status_one_wins(
    repository: TaskRepository, row: TaskRow
) -> None:
    def complete(_: int) -> TaskRow | None:
        return patch(repository, row, status=COMPLETED, statuses=[PENDING])

    with ThreadPoolExecutor(8) as threads:
        written = [each for each in threads.map(complete, range(8)) if each]
    assert written == [repository.get(row.id)]
