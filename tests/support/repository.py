"""Write tasks by the repository: one at a time, many at once, and generated ones."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import insert, text

from storage.database import Database
from storage.errors import StorageError
from storage.repository import Change, Creation, Origin, RequestRecord, Target, TaskRepository
from storage.tables import TaskRow, tasks

PENDING, IN_PROGRESS, COMPLETED, CANCELLED = 1, 2, 3, 4
LOW, MEDIUM, HIGH, URGENT = 1, 2, 3, 4
NOON = dt.datetime(2030, 6, 1, 12, tzinfo=dt.UTC)
MOMENT = dt.timedelta(microseconds=1)
FIRST = dt.datetime.min.replace(tzinfo=dt.UTC)
LAST = dt.datetime.max.replace(tzinfo=dt.UTC)

CONTENT = {
    "title": "a task",
    "description": "",
    "status": PENDING,
    "priority": MEDIUM,
    "assigned_to": "",
    "due_date": None,
    "tags": [],
}

SOME_ORIGIN = Origin("ann")

T = TypeVar("T")


def new_id() -> str:
    return str(uuid.uuid4())


def new_task(**fields: object) -> dict[str, Any]:
    """The values of a task to create."""
    return {"id": new_id(), "created_by": "ann", **CONTENT, **fields}


def changed(row: TaskRow, **fields: object) -> dict[str, Any]:
    """The values of a task to update: its own but for these."""
    return {name: getattr(row, name) for name in CONTENT} | fields


def new_request(fingerprint: bytes = b"one body") -> RequestRecord:
    return RequestRecord(new_id(), fingerprint)


class OneByOne:
    """Write one task at a time, as SOME_ORIGIN; `many` is the repository itself."""

    def __init__(self, database: Database, origin: Origin = SOME_ORIGIN) -> None:
        self.many = many = TaskRepository(database)
        self._origin = origin
        self.get, self.page, self.count, self.stats = many.get, many.page, many.count, many.stats
        self.forget_requests = many.forget_requests

    def create(
        self, values: dict[str, Any], request: RequestRecord | None = None, *, commit: bool = True
    ) -> TaskRow:
        (row,) = self.many.create([Creation(values, request)], self._origin, commit=commit)
        return row

    def update(
        self,
        row: TaskRow,
        values: dict[str, Any],
        request: RequestRecord | None = None,
        *,
        commit: bool = True,
    ) -> TaskRow:
        (row,) = self.many.update([Change(row, values, request)], self._origin, commit=commit)
        return row

    def delete(self, task_id: str, version: int | None = None) -> TaskRow:
        (row,) = self.many.delete([Target(task_id, version)], self._origin)
        return row

    def undelete(self, task_id: str, version: int | None = None) -> TaskRow:
        (row,) = self.many.undelete([Target(task_id, version)], self._origin)
        return row

    def find_replay(self, request: RequestRecord) -> TaskRow | None:
        return self.many.find_replays([request], self._origin)[0]


def scalar(database: Database, statement: str) -> Any:
    return database.read(text(statement))[0][0]


def all_at_once(calls: Sequence[Callable[[], T]]) -> list[T | StorageError]:
    """The calls' results, or what they raised on purpose; they begin together."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], T]) -> T | StorageError:
        barrier.wait()
        try:
            return call()
        except StorageError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


times = st.sampled_from([NOON - MOMENT, NOON, NOON + MOMENT])
task_lists = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.uuids().map(str),
            "created_by": st.just("ann"),
            "title": st.sampled_from("ab"),
            "description": st.just(""),
            "status": st.integers(PENDING, CANCELLED),
            "priority": st.integers(LOW, URGENT),
            "assigned_to": st.sampled_from(["", "a", "b"]),
            "due_date": st.none() | times,
            "tags": st.just([]),
            "created_at": times,
            "updated_at": times,
            "deleted_at": st.none() | st.just(NOON),
        }
    ).map(lambda task: task | {"completed_at": NOON if task["status"] == COMPLETED else None}),
    unique_by=lambda task: str(task["id"]),
    max_size=12,
)

# Each example empties the tables itself; the fixture stands for all of them.
on_the_database = hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def replace_tasks(database: Database, rows: Sequence[dict[str, Any]]) -> None:
    with database.engine.connect() as connection:
        connection.execute(text("TRUNCATE tasks, task_events"))
        if rows:
            connection.execute(insert(tasks), rows)
