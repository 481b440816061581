"""Filters of events: which match a task before and after each write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from storage.database import Database
from storage.events import EventLog, Position
from storage.query import COMPARISONS, And, Comparison, Filter, HasTag, HasWords, Not, Or, Present
from storage.repository import TaskRepository
from tests.support.events import (
    CANCELLED,
    DAY,
    NOON,
    PENDING,
    SOME_ORIGIN,
    change,
    create,
    delete,
    new_task,
    read_all,
    undelete,
)

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
