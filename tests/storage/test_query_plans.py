"""Query plans among 100,000 tasks: each page is read by an index, wherever it begins."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import pytest

from storage.database import Database
from storage.errors import VersionMismatchError
from storage.events import Position
from storage.query import And, Comparison, Filter, HasTag, HasWords, Not, Or, Present, Sort
from storage.repository import Change, Origin, RequestRecord, Target
from storage.tables import TaskRow
from tests.support.databases import made_database
from tests.support.plans import Planner, fill

SOME_ORIGIN = Origin("ann")

CONTENT = ("title", "description", "status", "priority", "assigned_to", "due_date", "tags")

FIELDS = ["created_at", "updated_at", "due_date", "priority", "status", "assigned_to", "title"]

URGENT = (Sort("priority", descending=True), Sort("due_date"))
NEW_YEAR = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)

PENDING = Comparison("status", "=", 1)
HIGHEST = Comparison("priority", "=", 4)
ASSIGNED = Comparison("assigned_to", "=", "user7")
TAGGED = HasTag("tag7")
DUE = And(
    (
        Comparison("due_date", ">=", NEW_YEAR),
        Comparison("due_date", "<", NEW_YEAR + 2 * DAY),
    )
)
DELETED = Present("deleted_at")
LONG_DELETED = Comparison("deleted_at", "<", dt.datetime(2024, 2, 1, tzinfo=dt.UTC))
WORDS = HasWords("quarterly report")
FILTERS: dict[str, Filter | None] = {
    "none": None,
    "status": PENDING,
    "priority": HIGHEST,
    "status and priority": And((PENDING, HIGHEST)),
    "status or priority": Or((PENDING, HIGHEST)),
    "assigned_to": ASSIGNED,
    "tags": TAGGED,
    "due_date": DUE,
    "words": WORDS,
    "prefix": HasWords("quarterly rep", is_prefix=True),
    "words of the title": HasWords("quarterly report", "title"),
}
# Those so selective that PostgreSQL must use their index, whatever the rest of the filter.
TELLING = {
    "assigned_to": "idx_task_assigned_to",
    "due_date": "idx_task_due_date",
    "words": "idx_task_search",
    "prefix": "idx_task_search",
    "words of the title": "idx_task_search",
}


@pytest.fixture(scope="module")
def planner(postgres_url: str) -> Iterator[Planner]:
    with made_database(postgres_url) as url:
        database = Database(url, statement_timeout_seconds=120)
        try:
            with database.engine.connect() as connection:
                fill(connection)
            yield Planner(database)
        finally:
            database.close()


@pytest.fixture(scope="module", params=[True, False], ids=["due", "without a due date"])
def middle(request: pytest.FixtureRequest, planner: Planner) -> TaskRow:
    """A task from the middle of every order."""
    of_kind = Present("due_date") if request.param else Not(Present("due_date"))
    later = And((Comparison("created_at", ">", NEW_YEAR), Comparison("priority", "=", 2), of_kind))
    (row,) = planner.repository.page(limit=1, filter_=later, order=(Sort("created_at"),))
    return row


sorted_fields = pytest.mark.parametrize("field", FIELDS)
directions = pytest.mark.parametrize("descending", [False, True], ids=["asc", "desc"])
filters = pytest.mark.parametrize("filter_", FILTERS.values(), ids=FILTERS)
telling_filters = pytest.mark.parametrize(
    ("filter_", "index"),
    [(FILTERS[name], index) for name, index in TELLING.items()],
    ids=TELLING,
)


# Orders


def index_of(field: str, descending: bool) -> str:
    """Undated tasks come last in both directions: each has an index."""
    return f"idx_task_{field}" + ("_desc" if descending and field == "due_date" else "")


@sorted_fields
@directions
def test_a_list_is_read_from_the_index_of_its_order(
    field: str, descending: bool, planner: Planner
) -> None:
    plan = planner.page((Sort(field, descending),))
    assert (plan.indexes, plan.sorts) == ({index_of(field, descending)}, False)


@sorted_fields
@directions
def test_a_deep_page_is_read_from_the_index_of_its_order(
    field: str, descending: bool, planner: Planner, middle: TaskRow
) -> None:
    plan = planner.page((Sort(field, descending),), after=middle)
    assert (plan.indexes, plan.sorts) == ({index_of(field, descending)}, False)


@sorted_fields
@directions
def test_a_deep_page_begins_in_the_index_right_behind_the_last(
    field: str, descending: bool, planner: Planner, middle: TaskRow
) -> None:
    """The index is entered with the whole place, to its last tie-break: the id."""
    assert middle.id in planner.page((Sort(field, descending),), after=middle).begin


def test_the_most_urgent_are_read_from_an_index(planner: Planner) -> None:
    plan = planner.page(URGENT)
    assert (plan.indexes, plan.sorts) == ({"idx_task_urgency"}, False)


def test_a_deep_page_of_the_most_urgent_begins_right_behind_the_last(
    planner: Planner, middle: TaskRow
) -> None:
    """Though the order's two terms have different directions."""
    plan = planner.page(URGENT, after=middle)
    assert (plan.indexes, plan.sorts) == ({"idx_task_urgency"}, False)
    assert middle.id in plan.begin


@directions
def test_a_deep_page_of_mixed_directions_begins_at_the_first_term(
    descending: bool, planner: Planner, middle: TaskRow
) -> None:
    plan = planner.page((Sort("title", descending), Sort("status", not descending)), after=middle)
    assert (plan.indexes, plan.scanned) == ({"idx_task_title"}, set())
    assert middle.title in plan.begin


# Filters


@filters
def test_a_filtered_list_does_not_read_every_task(filter_: Filter | None, planner: Planner) -> None:
    plan = planner.page(filter_=filter_)
    assert plan.indexes
    assert not plan.scanned


@filters
def test_a_deep_page_of_a_filtered_list_does_not_read_every_task(
    filter_: Filter | None, planner: Planner, middle: TaskRow
) -> None:
    plan = planner.page(filter_=filter_, after=middle)
    assert plan.indexes
    assert not plan.scanned


@filters
def test_a_filtered_list_of_the_most_urgent_does_not_read_every_task(
    filter_: Filter | None, planner: Planner
) -> None:
    plan = planner.page(URGENT, filter_=filter_)
    assert plan.indexes
    assert not plan.scanned


@telling_filters
def test_a_list_is_found_by_the_index_of_a_telling_filter(
    filter_: Filter, index: str, planner: Planner
) -> None:
    assert planner.page(filter_=filter_).indexes == {index}


def test_the_default_list_is_read_newest_first(planner: Planner) -> None:
    assert planner.page().indexes == {"idx_task_created_at"}


# Counts


@filters
def test_counting_does_not_read_every_task(filter_: Filter | None, planner: Planner) -> None:
    plan = planner.explain(lambda: planner.repository.count(filter_))
    assert plan.indexes
    assert not plan.scanned


@filters
def test_stats_do_not_read_every_task(filter_: Filter | None, planner: Planner) -> None:
    plan = planner.explain(lambda: planner.repository.stats(filter_))
    assert plan.indexes
    assert "tasks" not in plan.scanned


@pytest.mark.parametrize(
    "name", ["status", "priority", "status and priority", "status or priority"]
)
def test_stats_by_status_and_priority_are_counted_from_the_index_alone(
    name: str, planner: Planner
) -> None:
    plan = planner.explain(lambda: planner.repository.stats(FILTERS[name]))
    assert (plan.indexes, plan.index_only) == ({"idx_task_status_priority"}, True)


@telling_filters
def test_stats_are_found_by_the_index_of_a_telling_filter(
    filter_: Filter, index: str, planner: Planner
) -> None:
    assert planner.explain(lambda: planner.repository.stats(filter_)).indexes == {index}


def test_stats_of_a_tag_are_found_by_the_index_of_tags(planner: Planner) -> None:
    plan = planner.explain(lambda: planner.repository.stats(TAGGED))
    assert plan.indexes == {"idx_task_tags"}


# Single tasks


def test_a_task_is_found_by_its_id(planner: Planner, middle: TaskRow) -> None:
    plan = planner.explain(lambda: planner.repository.get(middle.id))
    assert (plan.indexes, plan.scanned) == ({"pk_tasks"}, set())


def test_an_update_finds_its_task_by_the_id(planner: Planner, middle: TaskRow) -> None:
    values = {name: getattr(middle, name) for name in CONTENT} | {"title": "renamed"}
    request = RequestRecord("0190a1b2-0000-7000-8000-000000000000", b"\0")
    plan = planner.explain(
        lambda: planner.repository.update(
            [Change(middle, values, request)], SOME_ORIGIN, commit=False
        )
    )
    assert (plan.indexes, plan.scanned) == ({"pk_tasks"}, set())


def test_a_request_is_found_by_its_key(planner: Planner) -> None:
    (oldest,) = planner.repository.page(limit=1, order=(Sort("created_at"),))
    request = RequestRecord(oldest.id, b"\0")
    plan = planner.explain(lambda: planner.repository.find_replays([request], SOME_ORIGIN))
    assert (plan.indexes, plan.scanned) == ({"pk_requests", "pk_tasks"}, set())


# Batches


@pytest.fixture(scope="module", params=[1, 10, 1000])
def batch(request: pytest.FixtureRequest, planner: Planner) -> list[TaskRow]:
    """Tasks that are not deleted."""
    return planner.repository.page(limit=request.param)


def test_a_batch_is_found_by_its_ids(planner: Planner, batch: list[TaskRow]) -> None:
    plan = planner.explain(lambda: planner.repository.find([row.id for row in batch]))
    assert (plan.indexes, plan.scanned) == ({"pk_tasks"}, set())


def test_a_batch_that_is_updated_is_found_by_its_ids(
    planner: Planner, batch: list[TaskRow]
) -> None:
    changes = [Change(row, {name: getattr(row, name) for name in CONTENT}) for row in batch]
    changes = [change._replace(values=change.values | {"title": "new"}) for change in changes]
    plan = planner.explain(lambda: planner.repository.update(changes, SOME_ORIGIN, commit=False))
    assert (plan.indexes, plan.scanned) == ({"pk_tasks"}, set())


def test_a_batch_that_is_deleted_is_found_by_its_ids(
    planner: Planner, batch: list[TaskRow]
) -> None:
    """None is of this version, so that none is deleted."""
    targets = [Target(row.id, 1_000_000) for row in batch]

    def delete() -> None:
        with pytest.raises(VersionMismatchError):
            planner.repository.delete(targets, SOME_ORIGIN)

    plan = planner.explain(delete)
    assert (plan.indexes, plan.scanned) == ({"pk_tasks"}, set())


@pytest.mark.parametrize("filter_", [DELETED, LONG_DELETED], ids=["all", "long deleted"])
def test_what_a_purge_would_remove_is_found_without_reading_every_task(
    filter_: Filter, planner: Planner
) -> None:
    plan = planner.explain(lambda: planner.repository.preview_purge(filter_, sample=100))
    assert (plan.indexes, plan.scanned) == ({"idx_task_deleted_at"}, set())


def test_tasks_that_were_deleted_long_ago_are_found_by_their_index(planner: Planner) -> None:
    plan = planner.explain(lambda: planner.repository.purge_old(older_than=100 * 365 * DAY))
    assert plan.indexes == {"idx_task_deleted_at", "pk_tasks"}


def test_tasks_as_they_stand_are_read_in_the_order_of_their_ids(
    planner: Planner, middle: TaskRow
) -> None:
    plan = planner.explain(
        lambda: planner.events.tasks_as_they_stand(None, after=middle.id, limit=100)
    )
    assert (plan.indexes, plan.scanned) == ({"pk_tasks"}, set())


def test_a_step_among_tasks_looks_at_its_ids_only(planner: Planner, middle: TaskRow) -> None:
    """Whatever the filter: one that another index serves might look at every task."""
    plan = planner.explain(lambda: planner.events.tasks_among(Not(WORDS), after=middle.id, ids=100))
    assert (plan.indexes, plan.scanned) == ({"pk_tasks"}, set())


# Events


@pytest.mark.parametrize("filters", [(), (None,), (WORDS, PENDING)], ids=["none", "all", "two"])
def test_the_stream_is_read_from_where_the_reader_stands(
    filters: tuple[Filter | None, ...], planner: Planner
) -> None:
    position = planner.events.read(Position(0, 0), limit=500).position
    plan = planner.explain(lambda: planner.events.read(position, limit=100, filters=filters))
    assert (plan.indexes, plan.scanned) == ({"pk_task_events"}, {"event_horizon"})
    assert str(position.xid) in plan.begin


def test_the_head_of_the_stream_is_found_at_its_end(planner: Planner) -> None:
    plan = planner.explain(planner.events.head)
    assert (plan.indexes, plan.scanned) == ({"pk_task_events"}, {"event_horizon"})


@pytest.mark.parametrize("before", [None, Position(500, 0)], ids=["first", "deep"])
@pytest.mark.parametrize("only_by", [None, "ann", "bob"])
def test_a_history_is_read_from_its_own_index(
    before: Position | None, only_by: str | None, planner: Planner, middle: TaskRow
) -> None:
    plan = planner.explain(
        lambda: planner.events.history(middle.id, limit=51, before=before, only_by=only_by)
    )
    assert (plan.indexes, plan.scanned, plan.sorts) == ({"idx_task_event_history"}, set(), False)


def test_trim_looks_at_the_first_events_only(planner: Planner) -> None:
    """None is that old."""
    plan = planner.explain(lambda: planner.events.trim(older_than=100 * 365 * DAY))
    assert plan.indexes == {"pk_task_events"}
    assert "task_events" not in plan.scanned
