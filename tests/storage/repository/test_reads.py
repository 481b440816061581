"""Reads on a real PostgreSQL: single tasks, pages in any order, counts and stats."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.database import Database
from storage.errors import TaskNotFoundError
from storage.query import Comparison, Filter, HasTag, Sort, cursor_at
from storage.repository import StatusPriorityCount
from tests.support.repository import (
    CANCELLED,
    COMPLETED,
    HIGH,
    IN_PROGRESS,
    LAST,
    LOW,
    MEDIUM,
    MOMENT,
    NOON,
    PENDING,
    OneByOne,
    new_id,
    new_task,
    on_the_database,
    replace_tasks,
    task_lists,
)

# get


def test_get_of_an_unknown_task_is_not_found(repository: OneByOne) -> None:
    unknown = new_id()
    with pytest.raises(TaskNotFoundError, match=unknown):
        repository.get(unknown)


def test_get_returns_deleted_tasks_too(repository: OneByOne) -> None:
    row = repository.create(new_task())
    deleted = repository.delete(row.id)
    assert repository.get(row.id) == deleted


# page and count


def test_a_page_has_no_more_than_its_limit(repository: OneByOne) -> None:
    for _ in range(3):
        repository.create(new_task())
    assert len(repository.page(limit=2)) == 2


def test_a_page_begins_with_the_newest(repository: OneByOne) -> None:
    rows = [repository.create(new_task()) for _ in range(3)]
    assert repository.page(limit=3) == rows[::-1]


def test_a_page_goes_on_after_its_cursor(repository: OneByOne) -> None:
    first, second, third = (repository.create(new_task()) for _ in range(3))
    order = (Sort("created_at"),)
    assert repository.page(limit=3, order=order, cursor=cursor_at(first, order)) == [second, third]


@pytest.mark.parametrize("show_deleted", [False, True])
def test_deleted_tasks_are_listed_and_counted_only_when_asked_for(
    show_deleted: bool, repository: OneByOne
) -> None:
    repository.delete(repository.create(new_task()).id)
    listed = len(repository.page(limit=10, show_deleted=show_deleted))
    counted = repository.count(show_deleted=show_deleted)
    assert (listed, counted) == (show_deleted, show_deleted)


@pytest.mark.parametrize(
    ("filter_", "titles"),
    [
        (None, {"one", "two"}),
        (HasTag("billing"), {"one"}),
        (Comparison("priority", ">", LOW), {"two"}),
        (Comparison("title", "=", "three"), set()),
    ],
)
def test_page_and_count_agree_on_what_matches(
    filter_: Filter | None, titles: set[str], repository: OneByOne
) -> None:
    repository.create(new_task(title="one", priority=LOW, tags=["billing"]))
    repository.create(new_task(title="two", priority=HIGH))
    assert {row.title for row in repository.page(limit=10, filter_=filter_)} == titles
    assert repository.count(filter_) == len(titles)


orders = st.lists(
    st.builds(
        Sort,
        st.sampled_from(
            ["created_at", "updated_at", "due_date", "priority", "status", "assigned_to", "title"]
        ),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda sort: sort.field,
).map(tuple)


def sorted_ids(rows: Sequence[dict[str, Any]], order: Sequence[Sort]) -> list[str]:
    """The order as a caller understands it: ties by creation and id, no due date is the last."""
    last = order[-1].descending
    result = sorted(rows, key=lambda row: (row["created_at"], row["id"]), reverse=last)
    for field, descending in ((sort.field, sort.descending) for sort in reversed(order)):
        result.sort(key=partial(sort_key, field, descending), reverse=descending)
    return [row["id"] for row in result]


def sort_key(field: str, descending: bool, row: dict[str, Any]) -> Any:
    """What is absent is the last in both directions."""
    return ((row[field] is None) != descending, LAST if row[field] is None else row[field])


@on_the_database
@given(rows=task_lists, order=orders, size=st.integers(1, 5), show_deleted=st.booleans())
def test_the_pages_of_any_order_are_the_whole_list(
    repository: OneByOne,
    *,
    database: Database,
    rows: list[dict[str, Any]],
    order: tuple[Sort, ...],
    size: int,
    show_deleted: bool,
) -> None:
    """No task is skipped or repeated, whatever ties, absent dates and directions there are."""
    replace_tasks(database, rows)
    page_of = partial(repository.page, limit=size, order=order, show_deleted=show_deleted)
    page, seen = page_of(), list[str]()
    while page and len(seen) <= len(rows):
        seen += [row.id for row in page]
        page = page_of(cursor=cursor_at(page[-1], order))
    visible = [row for row in rows if show_deleted or row["deleted_at"] is None]
    assert seen == sorted_ids(visible, order)


# stats


@on_the_database
@given(rows=task_lists, pending_only=st.booleans())
def test_stats_are_what_counting_one_by_one_gives(
    database: Database,
    repository: OneByOne,
    rows: list[dict[str, Any]],
    pending_only: bool,
) -> None:
    replace_tasks(database, rows)
    stats = repository.stats(Comparison("status", "=", PENDING) if pending_only else None)
    totals, overdue = Counter[tuple[int, int]](), 0
    for row in rows:
        group, due = (row["status"], row["priority"]), row["due_date"]
        if row["deleted_at"] is None and (row["status"] == PENDING or not pending_only):
            totals[group] += 1
            overdue += due is not None and due < stats.as_of and row["status"] <= IN_PROGRESS
    assert sorted(stats.counts) == sorted(
        StatusPriorityCount(*group, total) for group, total in totals.items()
    )
    assert stats.overdue == overdue


@pytest.mark.parametrize(("ahead", "overdue"), [(-MOMENT, 1), (dt.timedelta(minutes=1), 0)])
def test_a_task_is_overdue_once_its_due_date_has_passed(
    ahead: dt.timedelta, overdue: int, repository: OneByOne, database: Database
) -> None:
    repository.create(new_task(due_date=database.now() + ahead))
    assert repository.stats().overdue == overdue


@pytest.mark.parametrize("status", [COMPLETED, CANCELLED])
def test_a_closed_task_is_never_overdue(status: int, repository: OneByOne) -> None:
    repository.create(new_task(due_date=NOON, status=status))
    stats = repository.stats()
    assert (stats.counts, stats.overdue) == ([StatusPriorityCount(status, MEDIUM, 1)], 0)
