"""Tasks in the database: a method is one statement wherever one will do.

Writes take any number of tasks and are all or nothing. Each leaves an event (`storage.events`).
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Executable,
    Select,
    Uuid,
    bindparam,
    delete,
    func,
    select,
    tuple_,
)

from storage import statements
from storage.database import Database, Parameters, Transaction
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
from storage.tables import IN_PROGRESS, PENDING, TASK_COLUMNS, TaskRow, requests, tasks

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
        done: dict[str, TaskRow] = {}
        try:
            written = self._write(
                statements.CREATE[bool(asked)], rows, asked, origin, commit=commit
            )
        except ConstraintError as error:
            done = self.find_replays([item.request for item in items], origin)
            if not done:
                if error.constraint != tasks.primary_key.name:
                    raise
                raise TaskExistsError(self._taken([row["id"] for row in rows])) from error
            left = [item for item in items if not replayed(item.request, done)]
            written = {row.id: row for row in self.create(left, origin, commit=commit)}
        return [replayed(item.request, done) or written[item.values["id"]] for item in items]

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

    def purge(self, filter_: Filter | None, *, limit: int = 1000) -> int:
        """Removes up to `limit` deleted tasks that match; several processes may do it at once."""
        return len(self._database.write(_purge(filter_, limit)))

    def count_deleted(self, filter_: Filter | None) -> int:
        """Counts the deleted tasks that match."""
        statement = select(func.count()).select_from(tasks).where(*_deleted(filter_))
        return int(self._database.read(named("count deleted", statement))[0][0])

    def stats(self, as_of: dt.datetime, filter_: Filter | None = None) -> list[StatusPriorityCount]:
        """Counts the tasks that match by status and priority; what has none is left out."""
        overdue = tasks.c.status.in_((PENDING, IN_PROGRESS)) & (tasks.c.due_date < as_of)
        statement = select(
            tasks.c.status,
            tasks.c.priority,
            func.count(),
            func.count().filter(overdue),
        ).group_by(tasks.c.status, tasks.c.priority)
        rows = self._database.read(
            named("stats", _matching(statement, filter_, show_deleted=False))
        )
        return [StatusPriorityCount._make(row) for row in rows]

    def find_replays(
        self, asked: Iterable[RequestRecord | None], origin: Origin
    ) -> dict[str, TaskRow]:
        """Returns the tasks, as they are now, of those requests that were carried out before.

        Raises: RequestIdReusedError, TaskNotFoundError when a task is gone since.
        """
        fingerprints = {record.request_id: record.fingerprint for record in asked if record}
        if not fingerprints:
            return {}
        parameters = {"principal": origin.principal, "keys": list(fingerprints)}
        done = {}
        for replay in self._database.read(_REPLAYS, parameters):
            if bytes(replay.fingerprint) != fingerprints[replay.request_id]:
                raise RequestIdReusedError(replay.request_id)
            if replay.id is None:
                raise TaskNotFoundError(replay.task_id, replay.request_id)
            done[replay.request_id] = TaskRow._make(replay[3:])
        return done

    def forget_requests(self, *, older_than: dt.timedelta, limit: int = 1000) -> int:
        """Removes up to `limit` old request records; several processes may do it at once."""
        rows = self._database.write(
            _FORGET_REQUESTS, {"before": dt.datetime.now(dt.UTC) - older_than, "most": limit}
        )
        return len(rows)

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


def replayed(request: RequestRecord | None, done: Mapping[str, TaskRow]) -> TaskRow | None:
    """What a request wrote before, if it is among those that `find_replays` found."""
    return done.get(request.request_id) if request else None


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
    .where(requests.c.created_at < bindparam("before"))
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


def _deleted(filter_: Filter | None) -> Iterator[ColumnElement[bool]]:
    yield tasks.c.deleted_at.is_not(None)
    if filter_ is not None:
        yield condition(filter_)


def _purge(filter_: Filter | None, limit: int) -> Executable:
    doomed = (
        select(tasks.c.id)
        .where(*_deleted(filter_))
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("doomed")
    )
    return named("purge", delete(tasks).where(tasks.c.id.in_(select(doomed))).returning(tasks.c.id))
