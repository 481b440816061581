"""The history of one task."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from storage.events import Event, EventLog
from storage.repository import TaskRepository
from tests.support.events import (
    Transaction,
    assert_in_the_order_of_writes,
    create,
    delete,
    new_id,
    undelete,
    update,
)


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


def test_a_history_does_not_wait_for_open_transactions(
    repository: TaskRepository, log: EventLog, begin: Callable[[], Transaction]
) -> None:
    """Other than the stream: it does not wait for a slow transaction on another task."""
    begin().take_xid()
    (row,) = create(repository)
    assert [event.after for event in log.history(row.id, limit=10)] == [row]


def test_an_unknown_task_has_no_history(log: EventLog) -> None:
    assert log.history(new_id(), limit=10) == []
