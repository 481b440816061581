"""Tasks in the database: a method is one statement wherever one will do.

Writes take any number of tasks and are all or nothing. Each leaves an event (`storage.events`).
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Executable,
    Row,
    Select,
    Uuid,
    bindparam,
    delete,
    func,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY

from storage import statements
from storage.database import Database, Transaction
from storage.errors import (
    ConstraintError,
    RequestIdReusedError,
    TaskExistsError,
    TaskNotDeletedError,
    TaskNotFoundError,
    TransactionConflictError,
    VersionMismatchError,
)
from storage.measures import named
from storage.query import NEWEST_FIRST, Cursor, Filter, Sort, after, condition, ordering
from storage.tables import (
    IN_PROGRESS,
    PENDING,
    TASK_COLUMNS,
    TaskRow,
    absent_last,
    long_ago,
    requests,
    tasks,
)
from storage.untyped import Parameters

_ATTEMPTS = 10


class Origin(NamedTuple):
    """Who writes, and in which trace; it stands in the events."""

    principal: str
    trace_id: str | None = None


class RequestRecord(NamedTuple):
    """A write that was asked for with a request id."""

    request_id: str
    fingerprint: bytes


class Creation(NamedTuple):
    """A task to create."""

    values: Parameters
    request: RequestRecord | None = None


class Change(NamedTuple):
    """New values, for every column of its content, of a task that is still what `row` says."""

    row: TaskRow
    values: Parameters
    request: RequestRecord | None = None

    @property
    def is_one(self) -> bool:
        return any(getattr(self.row, name) != value for name, value in self.values.items())

    @property
    def sets_due_date(self) -> bool:
        return bool(self.values["due_date"] != self.row.due_date)

    @property
    def result(self) -> TaskRow:
        """The row as it would be, but for what the database says of the write."""
        return self.row._replace(**self.values)


class Target(NamedTuple):
    """A task to delete or undelete, of any version or of this one."""

    task_id: str
    version: int | None = None


class StatusPriorityCount(NamedTuple):
    """How many tasks have a status and a priority, and how many of them are overdue."""

    status: int
    priority: int
    total: int
    overdue: int


class Stats(NamedTuple):
    """Counts of tasks, and the moment for which they hold by PostgreSQL's clock."""

    as_of: dt.datetime
    counts: list[StatusPriorityCount]


class PurgePreview(NamedTuple):
    """How many tasks a purge would remove, and the ids of some of them."""

    total: int
    ids: list[str]


class TaskRepository:
    """The tasks of one database, whose ids it knows in lower case.

    `on_write` is told of each write that left events.
    """

    def __init__(
        self, database: Database | Transaction, on_write: Callable[[], None] = lambda: None
    ) -> None:
        self._database = database
        self._on_write = on_write

    def create(
        self, items: Sequence[Creation], origin: Origin, *, commit: bool = True
    ) -> list[TaskRow]:
        """Stores tasks and, in the same statement, the requests that asked for them.

        What a request created before is returned as it is now.
        Raises: TaskExistsError, RequestIdReusedError.
        """
        if not items:
            return []
        rows = [item.values for item in items]
        asked = [(item.values["id"], item.request) for item in items if item.request]
        try:
            written = self._write(
                statements.CREATE[bool(asked)], rows, asked, origin, commit=commit
            )
        except ConstraintError as error:
            replays = self.find_replays([item.request for item in items], origin)
            if not any(replays):
                if error.constraint != tasks.primary_key.name:
                    raise
                raise TaskExistsError(self._taken([row["id"] for row in rows])) from error
            left = [item for item, row in zip(items, replays, strict=True) if row is None]
            created = iter(self.create(left, origin, commit=commit))
            return [row or next(created) for row in replays]
        return [written[item.values["id"]] for item in items]

    def get(self, task_id: str) -> TaskRow:
        """Returns a task, deleted or not. Raises: TaskNotFoundError."""
        rows = self._database.read(_SELECT_BY_ID, {"key": task_id})
        if not rows:
            raise TaskNotFoundError(task_id)
        return TaskRow._make(rows[0])

    def find(self, task_ids: Sequence[str]) -> dict[str, TaskRow]:
        """Returns those of the tasks that there are, deleted or not, by their ids."""
        rows = self._database.read(_SELECT_BY_IDS, {"keys": list(task_ids)})
        return {row.id: row for row in map(TaskRow._make, rows)}

    def page(
        self,
        *,
        limit: int,
        filter_: Filter | None = None,
        order: tuple[Sort, ...] = NEWEST_FIRST,
        cursor: Cursor | None = None,
        show_deleted: bool = False,
    ) -> list[TaskRow]:
        """Returns the first tasks of the order that match and stand after the cursor."""
        statement = _matching(select(*TASK_COLUMNS), filter_, show_deleted=show_deleted)
        if cursor is not None:
            statement = statement.where(after(order, cursor))
        page = named("page", statement.order_by(*ordering(order)).limit(limit))
        rows = self._database.read(page)
        return [TaskRow._make(row) for row in rows]

    def count(self, filter_: Filter | None = None, *, show_deleted: bool = False) -> int:
        """Counts the tasks that match."""
        statement = named("count", select(func.count()).select_from(tasks))
        rows = self._database.read(_matching(statement, filter_, show_deleted=show_deleted))
        return int(rows[0][0])

    def update(
        self, items: Sequence[Change], origin: Origin, *, commit: bool = True
    ) -> list[TaskRow]:
        """Gives tasks new values, if those that this changes are still what they were read as.

        Values that change nothing leave a task alone; the request is recorded all the same.
        Raises: VersionMismatchError, also when one of the requests came first from elsewhere.
        """
        rows = [
            item.values | {"id": item.row.id, "version": item.row.version}
            for item in items
            if item.is_one
        ]
        asked = [(item.row.id, item.request) for item in items if item.request]
        if not rows and not asked:
            return [item.row for item in items]
        try:
            written = self._write(
                statements.UPDATE[bool(asked)], rows, asked, origin, commit=commit
            )
        except ConstraintError as error:
            if error.constraint != requests.primary_key.name:
                raise
            raise VersionMismatchError(items[0].row.id) from error
        if len(written) < len(rows):
            raise VersionMismatchError(rows[0]["id"])
        return [written.get(item.row.id, item.row) for item in items]

    @contextmanager
    def locking(self, task_ids: Sequence[str]) -> Iterator[TaskRepository]:
        """A repository while nobody else writes these tasks; its writes take place at the end."""
        if isinstance(self._database, Transaction):
            raise TypeError("the repository is in a transaction already")
        with self._database.transaction() as transaction:
            transaction.read(_LOCK, {"keys": list(task_ids)})
            yield TaskRepository(transaction)
        self._on_write()

    def delete(self, items: Sequence[Target], origin: Origin) -> list[TaskRow]:
        """Deletes tasks softly.

        Raises: TaskNotFoundError (also when one is deleted already), VersionMismatchError.
        """

        def refuse(row: TaskRow) -> None:
            if row.deleted_at is not None:
                raise TaskNotFoundError(row.id)

        return self._change(statements.DELETE, items, origin, refuse)

    def undelete(self, items: Sequence[Target], origin: Origin) -> list[TaskRow]:
        """Brings deleted tasks back.

        Raises: TaskNotFoundError, TaskNotDeletedError, VersionMismatchError.
        """

        def refuse(row: TaskRow) -> None:
            if row.deleted_at is None:
                raise TaskNotDeletedError(row.id)

        return self._change(statements.UNDELETE, items, origin, refuse)

    def purge(self, filter_: Filter, *, limit: int = 1000) -> int:
        """Removes up to `limit` deleted tasks that match; several processes may do it at once."""
        return len(self._database.write(_purge(condition(filter_), limit)))

    def purge_old(self, *, older_than: dt.timedelta, limit: int = 1000) -> int:
        """Removes up to `limit` tasks that were deleted so long ago, like `purge`."""
        is_old = absent_last(tasks.c.deleted_at) < long_ago()
        return len(self._database.write(_purge(is_old, limit), {"age": older_than}))

    def preview_purge(self, filter_: Filter, *, sample: int) -> PurgePreview:
        """Counts the deleted tasks that match, and names those that were deleted first."""
        doomed = select(tasks.c.id, tasks.c.deleted_at).where(_is_deleted, condition(filter_))
        matching = doomed.cte("matching")
        first = select(matching.c.id).order_by(matching.c.deleted_at, matching.c.id).limit(sample)
        statement = select(
            select(func.count()).select_from(matching).scalar_subquery(),
            func.array(first.scalar_subquery(), type_=ARRAY(Uuid(as_uuid=False))),
        )
        return PurgePreview._make(self._database.read(named("preview purge", statement))[0])

    def stats(self, filter_: Filter | None = None) -> Stats:
        """Counts the tasks that match by status and priority; what has none is left out."""
        is_overdue = tasks.c.status.in_((PENDING, IN_PROGRESS)) & (tasks.c.due_date < func.now())
        counted = select(
            tasks.c.status,
            tasks.c.priority,
            func.count().label("total"),
            func.count().filter(is_overdue).label("overdue"),
        ).group_by(tasks.c.status, tasks.c.priority)
        counts = _matching(counted, filter_, show_deleted=False).subquery("counts")
        clock = select(func.now().label("as_of")).subquery("clock")
        statement = select(clock.c.as_of, *counts.c).select_from(clock.outerjoin(counts, true()))
        rows = self._database.read(named("stats", statement))
        return Stats(
            rows[0].as_of,
            [StatusPriorityCount._make(row[1:]) for row in rows if row.status is not None],
        )

    def find_replays(
        self, asked: Sequence[RequestRecord | None], origin: Origin
    ) -> list[TaskRow | None]:
        """Returns, for each request, the task as it is now if it was carried out before.

        Raises: RequestIdReusedError, TaskNotFoundError when a task is gone since.
        """
        ids = [record.request_id for record in asked if record]
        if not ids:
            return [None] * len(asked)
        rows = self._database.read(_REPLAYS, {"principal": origin.principal, "keys": ids})
        found = {row.request_id: row for row in rows}
        return [_replayed(record, found) for record in asked]

    def forget_requests(self, *, older_than: dt.timedelta, limit: int = 1000) -> int:
        """Removes up to `limit` old request records; several processes may do it at once."""
        return len(self._database.write(_FORGET_REQUESTS, {"age": older_than, "most": limit}))

    def now(self) -> dt.datetime:
        """Returns the time by the clock that stamps the rows."""
        return self._database.now()

    def _taken(self, task_ids: Sequence[str]) -> str:
        found = self.find(task_ids)
        return next((task_id for task_id in task_ids if task_id in found), task_ids[0])

    def _change(
        self,
        statement: Executable,
        items: Sequence[Target],
        origin: Origin,
        refuse: Callable[[TaskRow], None],
    ) -> list[TaskRow]:
        """Writes all if all may be written; tells why when they may not."""
        if not items:
            return []
        rows = [{"id": item.task_id, "version": item.version} for item in items]
        for _ in range(_ATTEMPTS):
            written = self._write(statement, rows, [], origin)
            if len(written) == len(items):
                return [written[item.task_id] for item in items]
            found = self.find([item.task_id for item in items])
            for item in items:
                row = found.get(item.task_id)
                if row is None:
                    raise TaskNotFoundError(item.task_id)
                refuse(row)
                if item.version not in {None, row.version}:
                    raise VersionMismatchError(item.task_id)
        raise TransactionConflictError("others keep writing the tasks")

    def _write(
        self,
        statement: Executable,
        rows: Sequence[Parameters],
        asked: Sequence[tuple[str, RequestRecord]],
        origin: Origin,
        *,
        commit: bool = True,
    ) -> dict[str, TaskRow]:
        """Runs one of the statements that write; returns what it wrote, by id: all, or nothing."""
        records = [
            {
                "task_id": task_id,
                "request_id": it.request_id,
                "fingerprint": f"\\x{it.fingerprint.hex()}",
            }
            for task_id, it in asked
        ]
        parameters = origin._asdict() | {
            "rows": _to_json(rows),
            "count": len(rows),
            "keys": [row["id"] for row in rows],
            "asked": _to_json(records),
        }
        written = self._database.write(statement, parameters, commit=commit)
        if written and commit:
            self._on_write()
        return {row.id: row for row in map(TaskRow._make, written)}


def _replayed(record: RequestRecord | None, found: Mapping[str, Row[Any]]) -> TaskRow | None:
    row = found.get(record.request_id) if record else None
    if record is None or row is None:
        return None
    if bytes(row.fingerprint) != record.fingerprint:
        raise RequestIdReusedError(record.request_id)
    if row.id is None:
        raise TaskNotFoundError(row.task_id, record.request_id)
    return TaskRow._make(row[3:])


def _to_json(rows: Sequence[Parameters]) -> str:
    return json.dumps(rows, ensure_ascii=False, default=dt.datetime.isoformat)


def _matching(statement: Select[Any], filter_: Filter | None, *, show_deleted: bool) -> Select[Any]:
    if not show_deleted:
        statement = statement.where(tasks.c.deleted_at.is_(None))
    return statement if filter_ is None else statement.where(condition(filter_))


# The statements below are built once: what changes from call to call is only their parameters.

_key = bindparam("key", type_=Uuid(as_uuid=False))

_SELECT_BY_ID = named("get", select(*TASK_COLUMNS).where(tasks.c.id == _key))
_SELECT_BY_IDS = named("get many", select(*TASK_COLUMNS).where(tasks.c.id == statements.KEYS))

_LOCK = named(
    "lock",
    select(tasks.c.id).where(tasks.c.id == statements.KEYS).order_by(tasks.c.id).with_for_update(),
)

_REPLAYS = named(
    "find replays",
    select(requests.c.request_id, requests.c.fingerprint, requests.c.task_id, *TASK_COLUMNS)
    .outerjoin(tasks, tasks.c.id == requests.c.task_id)
    .where(
        requests.c.principal == bindparam("principal"), requests.c.request_id == statements.KEYS
    ),
)

# A CTE is run once; a subquery might be run for each row, and then removes more than its limit.
_old = (
    select(requests.c.principal, requests.c.request_id)
    .where(requests.c.created_at < long_ago())
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
    .cte("old")
)

_FORGET_REQUESTS = named(
    "forget requests",
    delete(requests)
    .where(tuple_(requests.c.principal, requests.c.request_id).in_(select(_old)))
    .returning(requests.c.request_id),
)


_is_deleted = tasks.c.deleted_at.is_not(None)


def _purge(matches: ColumnElement[bool], limit: int) -> Executable:
    doomed = (
        select(tasks.c.id)
        .where(_is_deleted, matches)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("doomed")
    )
    return named("purge", delete(tasks).where(tasks.c.id.in_(select(doomed))).returning(tasks.c.id))
