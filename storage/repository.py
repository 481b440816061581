"""Tasks in the database: most methods run one statement.

Writes take any number of tasks and are atomic. Each leaves an event (`storage.events`).
"""

import datetime as dt
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from storage import counters, errors
from storage import task_statements as statements
from storage.database import Database, Transaction
from storage.query import NEWEST_FIRST, Cursor, Filter, Sort, condition, form_of
from storage.statement import Parameters, Row, Statement
from storage.tables import TaskRow, absent_last, long_ago, requests, tasks

_ATTEMPTS = 10


class Origin(NamedTuple):
    """The principal and the trace of a write, for its events."""

    principal: str
    trace_id: str | None = None


class RequestRecord(NamedTuple):
    """The request id of a write, and the fingerprint of its request."""

    request_id: str
    fingerprint: bytes


class Creation(NamedTuple):
    values: Parameters
    request: RequestRecord | None = None


class Change(NamedTuple):
    """New values for the content of a task, provided that it still has the version of `row`."""

    row: TaskRow
    values: Parameters
    request: RequestRecord | None = None

    @property
    def sets_due_date(self) -> bool:
        return bool(self.values["due_date"] != self.row.due_date)

    @property
    def result(self) -> TaskRow:
        """The row with the new values, without the columns that the database sets."""
        return self.row._replace(**self.values)


class Patch(NamedTuple):
    """New values for some columns of a task, if it has this version and one of these statuses."""

    task_id: str
    values: Parameters
    version: int | None
    statuses: list[int]
    request: RequestRecord | None = None


class Target(NamedTuple):
    """A task to delete or undelete, if it has this version; of any version without one."""

    task_id: str
    version: int | None = None


class StatusPriorityCount(NamedTuple):
    status: int
    priority: int
    total: int


class Stats(NamedTuple):
    """Counts of tasks, and the time of the count by PostgreSQL's clock."""

    as_of: dt.datetime
    overdue: int
    counts: list[StatusPriorityCount]


class PurgePreview(NamedTuple):
    """The number of tasks that a purge would remove, and the ids of some of them."""

    total: int
    ids: list[str]


class TaskRepository:
    """The tasks of one database, by ids in lower case; calls `on_write` after writes."""

    def __init__(
        self, database: Database | Transaction, on_write: Callable[[], None] = lambda: None
    ) -> None:
        self._database = database
        self._on_write = on_write

    def create(
        self, items: Sequence[Creation], origin: Origin, *, commit: bool = True
    ) -> list[TaskRow]:
        """Store tasks and, in the same statement, their request records.

        A task that its request created before is returned in its current state.
        Raises: TaskExistsError, RequestIdReusedError.
        """
        if not items:
            return []
        rows = [item.values for item in items]
        requested = [(item.values["id"], item.request) for item in items]
        try:
            written = self._write(statements.CREATE, rows, requested, origin, commit=commit)
        except errors.ConstraintError as error:
            replays = self.find_replays([item.request for item in items], origin)
            if not any(replays):
                if error.constraint != tasks.primary_key.name:
                    raise
                found = self.find([row["id"] for row in rows])
                taken = next((row["id"] for row in rows if row["id"] in found), rows[0]["id"])
                raise errors.TaskExistsError(taken) from error
            left = [item for item, row in zip(items, replays, strict=True) if row is None]
            created = iter(self.create(left, origin, commit=commit))
            return [row or next(created) for row in replays]
        return [written[item.values["id"]] for item in items]

    def get(self, task_id: str) -> TaskRow:
        """Return a task, deleted or not. Raises: TaskNotFoundError."""
        rows = self._database.read(statements.BY_ID, {"key": task_id})
        if not rows:
            raise errors.TaskNotFoundError(task_id)
        return TaskRow._make(rows[0])

    def find(self, task_ids: Sequence[str]) -> dict[str, TaskRow]:
        """Return the tasks that exist, deleted or not, by their ids."""
        rows = self._database.read(statements.BY_IDS, {"keys": list(task_ids)})
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
        """Return the first tasks of the order that match and come after the cursor."""
        form = form_of(filter_, cursor)
        statement = statements.page(form.filter_, order, form.cursor, show_deleted=show_deleted)
        rows = self._database.read(statement, form.values | {"limit": limit})
        return [TaskRow._make(row) for row in rows]

    def count(self, filter_: Filter | None = None, *, show_deleted: bool = False) -> int:
        """Count the tasks that match."""
        form = form_of(filter_)
        statement = statements.count(form.filter_, show_deleted=show_deleted)
        return int(self._database.read(statement, form.values)[0][0])

    def update(
        self, items: Sequence[Change], origin: Origin, *, commit: bool = True
    ) -> list[TaskRow]:
        """Update tasks that still have the version that was read.

        A change that alters nothing does not write the task, but its request is recorded.
        Raises: VersionMismatchError, also when another call has recorded one of the requests.
        """
        rows = [
            item.values | {"id": item.row.id, "version": item.row.version}
            for item in items
            if item.result != item.row
        ]
        requested = [(item.row.id, item.request) for item in items]
        if not rows and not any(item.request for item in items):
            return [item.row for item in items]
        try:
            written = self._write(statements.UPDATE, rows, requested, origin, commit=commit)
        except errors.ConstraintError as error:
            if error.constraint != requests.primary_key.name:
                raise
            raise errors.VersionMismatchError(items[0].row.id) from error
        if len(written) < len(rows):
            raise errors.VersionMismatchError(rows[0]["id"])
        return [written.get(item.row.id, item.row) for item in items]

    def patch(self, item: Patch, origin: Origin, *, commit: bool = True) -> TaskRow | None:
        """Update some columns of a task in one statement.

        Return None, and write nothing, if the task is absent, deleted, or of another version or
        status; a new due date has passed; no value is new; or the request was carried out before.
        """
        row = item.values | {"id": item.task_id, "version": item.version}
        requested = [(item.task_id, item.request)]
        limits = {"fields": list(item.values), "statuses": item.statuses}
        try:
            written = self._write(statements.PATCH, [row], requested, origin, limits, commit=commit)
        except errors.ConstraintError as error:
            if error.constraint != requests.primary_key.name:
                raise
            return None
        return written.get(item.task_id)

    @contextmanager
    def locking(self, task_ids: Sequence[str]) -> "Iterator[TaskRepository]":
        """Give a repository in a transaction that locks these tasks; its writes commit together."""
        if isinstance(self._database, Transaction):
            raise TypeError("the repository is in a transaction already")
        with self._database.transaction() as transaction:
            transaction.read(statements.LOCK, {"keys": list(task_ids)})
            yield TaskRepository(transaction)
        self._on_write()

    def delete(self, items: Sequence[Target], origin: Origin) -> list[TaskRow]:
        """Delete tasks softly. Raises: TaskNotFoundError, VersionMismatchError."""
        return self._change(statements.DELETE, items, origin)

    def undelete(self, items: Sequence[Target], origin: Origin) -> list[TaskRow]:
        """Undelete tasks. Raises: TaskNotFoundError, TaskNotDeletedError, VersionMismatchError."""
        return self._change(statements.UNDELETE, items, origin)

    def purge(self, filter_: Filter, *, limit: int = 1000) -> int:
        """Remove up to `limit` deleted tasks that match; safe to run in several processes."""
        return len(self._database.write(statements.purge(condition(filter_), limit)))

    def purge_old(self, *, older_than: dt.timedelta, limit: int = 1000) -> int:
        """Remove up to `limit` tasks that were deleted before this time, like `purge`."""
        is_old = absent_last(tasks.c.deleted_at) < long_ago()
        statement = statements.purge(is_old, limit)
        return len(self._database.write(statement, {"age": older_than}))

    def preview_purge(self, filter_: Filter, *, sample: int) -> PurgePreview:
        """Count the deleted tasks that match; list the ids of those that were deleted first."""
        statement = statements.preview_purge(filter_, sample=sample)
        return PurgePreview._make(self._database.read(statement)[0])

    def stats(self, filter_: Filter | None = None) -> Stats:
        """Count the tasks that match by status and priority; zero counts are omitted."""
        form = form_of(filter_)
        statement = counters.STATS if form.filter_ is None else statements.stats(form.filter_)
        rows = self._database.read(statement, form.values)
        counts = [StatusPriorityCount._make(row[2:]) for row in rows if row[2] is not None]
        return Stats(rows[0][0], rows[0][1], counts)

    def repair_counters(self) -> int:
        """Correct the counters, and return how many were wrong; for one process at a time."""
        self._database.write(counters.FOLD)
        return int(self._database.write(counters.REPAIR)[0][0])

    def find_replays(
        self, requests: Sequence[RequestRecord | None], origin: Origin
    ) -> list[TaskRow | None]:
        """Return for each request its task as it is now, or None if it was not carried out.

        Raises: RequestIdReusedError; TaskNotFoundError, when such a task was purged.
        """
        ids = [request.request_id for request in requests if request]
        if not ids:
            return [None] * len(requests)
        parameters = {"principal": origin.principal, "keys": ids}
        rows = self._database.read(statements.REPLAYS, parameters)
        found = {row[0]: row for row in rows}
        return [_replayed(request, found) for request in requests]

    def forget_requests(self, *, older_than: dt.timedelta, limit: int = 1000) -> int:
        """Remove up to `limit` old request records; safe to run in several processes."""
        parameters = {"age": older_than, "most": limit}
        return len(self._database.write(statements.FORGET_REQUESTS, parameters))

    def now(self) -> dt.datetime:
        """Return the time by the clock that stamps the rows."""
        return self._database.now()

    def _change(
        self, statement: Statement, items: Sequence[Target], origin: Origin
    ) -> list[TaskRow]:
        """Write all tasks, or raise for the first that cannot be written."""
        if not items:
            return []
        rows = [{"id": item.task_id, "version": item.version} for item in items]
        for _ in range(_ATTEMPTS):
            written = self._write(statement, rows, [], origin)
            if len(written) == len(items):
                return [written[item.task_id] for item in items]
            found = self.find([item.task_id for item in items])
            for item in items:
                _check_target(item, found.get(item.task_id), statement)
        raise errors.TransactionConflictError("other calls keep writing the tasks")

    def _write(
        self,
        statement: Statement,
        rows: Sequence[Parameters],
        requests: Sequence[tuple[str, RequestRecord | None]],
        origin: Origin,
        others: Parameters | None = None,
        *,
        commit: bool = True,
    ) -> dict[str, TaskRow]:
        """Run a write statement; return the rows that it wrote, by id: all, or none."""
        records = [
            {
                "task_id": task_id,
                "request_id": request.request_id,
                "fingerprint": f"\\x{request.fingerprint.hex()}",
            }
            for task_id, request in requests
            if request
        ]
        parameters = origin._asdict() | {
            "rows": _to_json(rows),
            "count": len(rows),
            "keys": [row["id"] for row in rows],
            "requests": _to_json(records),
            **(others or {}),
        }
        query = statement if len(rows) == 1 else statement.unprepared
        written = self._database.write(query, parameters, commit=commit)
        if written and commit:
            self._on_write()
        return {row.id: row for row in map(TaskRow._make, written)}


def _check_target(item: Target, row: TaskRow | None, statement: Statement) -> None:
    is_undelete = statement is statements.UNDELETE
    if row is None or (row.deleted_at is not None and not is_undelete):
        raise errors.TaskNotFoundError(item.task_id)
    if row.deleted_at is None and is_undelete:
        raise errors.TaskNotDeletedError(item.task_id)
    if item.version not in {None, row.version}:
        raise errors.VersionMismatchError(item.task_id)


def _replayed(request: RequestRecord | None, found: Mapping[str, Row]) -> TaskRow | None:
    if request is None or request.request_id not in found:
        return None
    _, fingerprint, task_id, *row = found[request.request_id]
    if bytes(fingerprint) != request.fingerprint:
        raise errors.RequestIdReusedError(request.request_id)
    if row[0] is None:
        raise errors.TaskNotFoundError(task_id, request.request_id)
    return TaskRow._make(row)


def _to_json(rows: Sequence[Parameters]) -> str:
    return json.dumps(rows, ensure_ascii=False, default=dt.datetime.isoformat)
