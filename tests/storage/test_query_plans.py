"""How PostgreSQL finds its answers among 100,000 tasks: by an index, wherever the caller stands."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from storage.database import Database
from storage.errors import VersionMismatchError
from storage.events import EventLog, Position
from storage.query import (
    And,
    Comparison,
    Filter,
    HasTag,
    HasWords,
    Not,
    Or,
    Present,
    Sort,
    cursor_at,
)
from storage.repository import Change, Origin, RequestRecord, Target, TaskRepository
from storage.tables import TaskRow
from tests.support.databases import made_database

Node = dict[str, Any]

SOME_ORIGIN = Origin("ann")

CONTENT = ("title", "description", "status", "priority", "assigned_to", "due_date", "tags")

# Two years of work, made anew each time but always the same: half with a due date, few urgent,
# most of them done, 2 % deleted. Its order on disk is that of creation, as it is in real life.
FILL = """
    INSERT INTO tasks (id, title, description, status, priority, assigned_to, due_date, tags,
                       created_by, created_at, updated_at, completed_at, deleted_at)
    SELECT md5(n::text)::uuid,
           'task ' || md5(n::text) || CASE WHEN n % 1000 = 0 THEN ' quarterly report' ELSE '' END,
           repeat('some words about it ', 5) || n,
           status,
           (ARRAY[1, 2, 2, 2, 2, 3, 3, 4])[1 + a % 8],
           CASE WHEN b % 21 = 0 THEN '' ELSE 'user' || b % 21 END,
           CASE WHEN n % 2 = 0 THEN created_at + (c % 90) * interval '1 day' END,
           ARRAY['tag' || d % 50, 'team' || d % 7],
           'ann',
           created_at,
           created_at + (c % 1000) * interval '1 hour',
           CASE WHEN status = 3 THEN created_at + interval '1 day' END,
           CASE WHEN n % 50 = 0 THEN created_at + interval '2 days' END
    FROM (SELECT n,
                 abs(hashint4(n)) AS a,
                 abs(hashint4(-n)) AS b,
                 abs(hashint4(n * 7)) AS c,
                 abs(hashint4(n * 11)) AS d,
                 (ARRAY[1, 1, 2, 3, 3, 3, 3, 3, 3, 4])[1 + abs(hashint4(n * 13)) % 10] AS status,
                 timestamptz '2024-01-01 00:00Z' + n * interval '10 minutes' AS created_at
          FROM generate_series(1, 100000) n) made
"""
FILL_REQUESTS = """
    INSERT INTO requests (principal, request_id, fingerprint, task_id, created_at)
    SELECT created_by, id, '\\x00', id, created_at FROM tasks LIMIT 20000
"""
# Settled long ago: their transactions are older than any that runs.
FILL_EVENTS = """
    INSERT INTO task_events (xid, aggregateid, type, payload, principal, occurred_at)
    SELECT (3 + (row_number() OVER (ORDER BY created_at)) / 200)::text::xid8, id, 'created',
           jsonb_build_object('after', to_jsonb(tasks) - 'xid'), created_by, created_at
    FROM tasks, generate_series(1, 2)
"""
INDEXES = """
    SELECT indexname, indexdef FROM pg_indexes
    WHERE tablename IN ('tasks', 'task_events') AND indexname NOT LIKE 'pk_%'
"""

FIELDS = ["created_at", "updated_at", "due_date", "priority", "status", "assigned_to", "title"]
NEWEST = (Sort("created_at", descending=True),)
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


class Plan:
    """What EXPLAIN says of one or several statements, flat."""

    def __init__(self, roots: Iterable[Node]) -> None:
        self._nodes = [node for root in roots for node in _flat(root)]

    @property
    def scanned(self) -> set[str]:
        """The tables that are read from end to end."""
        return {node["Relation Name"] for node in self._nodes if "Seq Scan" in node["Node Type"]}

    @property
    def sorts(self) -> bool:
        return any("Sort" in node["Node Type"] for node in self._nodes)

    @property
    def indexes(self) -> set[str]:
        return {node["Index Name"] for node in self._nodes if "Index Name" in node}

    @property
    def begin(self) -> str:
        """What the indexes are entered with; a Filter would read on from their beginning."""
        return " ".join(node["Index Cond"] for node in self._nodes if "Index Cond" in node)

    @property
    def index_only(self) -> bool:
        """Nothing is read from a table."""
        tables = [node for node in self._nodes if "Relation Name" in node]
        return all(node["Node Type"] == "Index Only Scan" for node in tables)


def _flat(node: Node) -> Iterator[Node]:
    yield node
    for child in node.get("Plans", ()):
        yield from _flat(child)


class Planner:
    """Runs calls of the repository, and asks PostgreSQL how it runs what they send."""

    def __init__(self, database: Database) -> None:
        self.repository = TaskRepository(database)
        self.events = EventLog(database)
        self._engine = database.engine

    def explain(self, call: Callable[[], object]) -> Plan:
        with self._recorded() as sent:
            call()
        with self._engine.connect() as connection:
            answers = [
                connection.exec_driver_sql("EXPLAIN (FORMAT JSON) " + statement, parameters)
                for statement, parameters in sent
            ]
            return Plan(answer.scalar_one()[0]["Plan"] for answer in answers)

    def page(
        self,
        order: tuple[Sort, ...] = NEWEST,
        *,
        after: TaskRow | None = None,
        filter_: Filter | None = None,
    ) -> Plan:
        cursor = cursor_at(after, order) if after else None
        return self.explain(
            lambda: self.repository.page(limit=51, order=order, cursor=cursor, filter_=filter_)
        )

    @contextmanager
    def _recorded(self) -> Iterator[list[tuple[str, Any]]]:
        sent: list[tuple[str, Any]] = []

        def note(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
            sent.append((statement, parameters))

        event.listen(self._engine, "before_cursor_execute", note)
        try:
            yield sent
        finally:
            event.remove(self._engine, "before_cursor_execute", note)


def fill(connection: Connection) -> None:
    """Writes the rows, and then their indexes: the other way round takes five times as long."""
    indexes = connection.execute(text(INDEXES)).all()
    for name, _ in indexes:
        connection.execute(text(f"DROP INDEX {name}"))
    definitions = [definition for _, definition in indexes]
    for statement in (FILL, FILL_REQUESTS, FILL_EVENTS, *definitions, "VACUUM ANALYZE"):
        connection.execute(text(statement))


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
    assert not plan.scanned


@pytest.mark.parametrize(
    "name", ["none", "status", "priority", "status and priority", "status or priority"]
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
