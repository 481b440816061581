"""Read how PostgreSQL runs the calls of the repository, among 100,000 tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sqlalchemy import Connection, text

from storage.database import Database
from storage.events import EventLog
from storage.query import Filter, Sort, cursor_at
from storage.repository import TaskRepository
from storage.tables import TaskRow
from tests.support.statements import each_statement

Node = dict[str, Any]

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

NEWEST = (Sort("created_at", descending=True),)


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
        sent: list[tuple[str, dict[str, Any]]] = []
        with each_statement(
            lambda statement, values: sent.append((statement.sql, values)), this_thread=True
        ):
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


def fill(connection: Connection) -> None:
    """Writes the rows, and then their indexes: the other way round takes five times as long."""
    indexes = connection.execute(text(INDEXES)).all()
    for name, _ in indexes:
        connection.execute(text(f"DROP INDEX {name}"))
    definitions = [definition for _, definition in indexes]
    for statement in (FILL, FILL_REQUESTS, FILL_EVENTS, *definitions, "VACUUM ANALYZE"):
        connection.execute(text(statement))
