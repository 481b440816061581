"""Tasks as they stand, with the snapshot that says which events come after."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from storage.database import Database
from storage.events import EventLog, Position, Snapshot
from storage.query import Comparison, Filter, HasTag, HasWords
from storage.repository import TaskRepository
from storage.tables import TaskRow
from tests.support.events import Transaction, create, delete, read_all


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
