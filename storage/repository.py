"""Tasks in the database: a method is one statement wherever one will do."""

from __future__ import annotations

import datetime as dt
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Executable,
    LargeBinary,
    Select,
    Text,
    Uuid,
    bindparam,
    case,
    delete,
    func,
    insert,
    null,
    or_,
    select,
    tuple_,
    update,
)

from storage.database import Database, Parameters
from storage.errors import (
    ConstraintError,
    RequestIdReusedError,
    TaskExistsError,
    TaskNotDeletedError,
    TaskNotFoundError,
    VersionMismatchError,
)
from storage.query import NEWEST_FIRST, Cursor, Filter, Sort, after, condition, ordering
from storage.tables import TaskRow, requests, tasks

_PENDING, _IN_PROGRESS, _COMPLETED = 1, 2, 3


class RequestRecord(NamedTuple):
    """A write that a principal asked for with a request id."""

    principal: str
    request_id: str
    fingerprint: bytes


class StatusPriorityCount(NamedTuple):
    """How many tasks have a status and a priority, and how many of them are overdue."""

    status: int
    priority: int
    total: int
    overdue: int


class TaskRepository:
    """The tasks of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self, values: Parameters, request: RequestRecord | None = None, *, commit: bool = True
    ) -> TaskRow:
        """Stores a task and, in the same statement, the request that asked for it.

        Raises: TaskExistsError, RequestIdReusedError.
        """
        try:
            return self._write(_INSERT, values, request, commit=commit)
        except ConstraintError as error:
            if (done := self.find_replay(request)) is not None:
                return done
            if error.constraint != tasks.primary_key.name:
                raise
            raise TaskExistsError(values["id"]) from error

    def get(self, task_id: str) -> TaskRow:
        """Returns a task, deleted or not. Raises: TaskNotFoundError."""
        rows = self._database.read(_SELECT_BY_ID, {"key": task_id})
        if not rows:
            raise TaskNotFoundError(task_id)
        return TaskRow._make(rows[0])

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
        statement = _matching(select(tasks), filter_, show_deleted=show_deleted)
        if cursor is not None:
            statement = statement.where(after(order, cursor))
        rows = self._database.read(statement.order_by(*ordering(order)).limit(limit))
        return [TaskRow._make(row) for row in rows]

    def count(self, filter_: Filter | None = None, *, show_deleted: bool = False) -> int:
        """Counts the tasks that match."""
        statement = select(func.count()).select_from(tasks)
        rows = self._database.read(_matching(statement, filter_, show_deleted=show_deleted))
        return int(rows[0][0])

    def update(
        self,
        row: TaskRow,
        values: Parameters,
        request: RequestRecord | None = None,
        *,
        commit: bool = True,
    ) -> TaskRow:
        """Gives a task new values if it is still what `row` says.

        Values that change nothing leave it as it is; the request is recorded all the same.
        Raises: VersionMismatchError, RequestIdReusedError.
        """
        key = {"key": row.id, "key_version": row.version}
        changed = any(getattr(row, name) != value for name, value in values.items())
        if not changed and request is None:
            return row
        statements, values = (_UPDATE, values | key) if changed else (_TOUCH, key)
        try:
            return self._write(statements, values, request, commit=commit)
        except (ConstraintError, VersionMismatchError):
            # The same request may have come first, and be what changed the version.
            if (done := self.find_replay(request)) is not None:
                return done
            raise

    def delete(self, task_id: str, version: int | None = None) -> TaskRow:
        """Deletes a task softly, if it has the version.

        Raises: TaskNotFoundError (also when it is deleted already), VersionMismatchError.
        """
        rows = self._database.write(_DELETE, {"key": task_id, "key_version": version})
        if rows:
            return TaskRow._make(rows[0])
        if self.get(task_id).deleted_at is not None:
            raise TaskNotFoundError(task_id)
        raise VersionMismatchError(task_id)

    def undelete(self, task_id: str, version: int | None = None) -> TaskRow:
        """Brings a deleted task back, if it has the version.

        Raises: TaskNotFoundError, TaskNotDeletedError, VersionMismatchError.
        """
        rows = self._database.write(_UNDELETE, {"key": task_id, "key_version": version})
        if rows:
            return TaskRow._make(rows[0])
        if self.get(task_id).deleted_at is None:
            raise TaskNotDeletedError(task_id)
        raise VersionMismatchError(task_id)

    def stats(self, as_of: dt.datetime, filter_: Filter | None = None) -> list[StatusPriorityCount]:
        """Counts the tasks that match by status and priority; what has none is left out."""
        overdue = tasks.c.status.in_((_PENDING, _IN_PROGRESS)) & (tasks.c.due_date < as_of)
        statement = select(
            tasks.c.status,
            tasks.c.priority,
            func.count(),
            func.count().filter(overdue),
        ).group_by(tasks.c.status, tasks.c.priority)
        rows = self._database.read(_matching(statement, filter_, show_deleted=False))
        return [StatusPriorityCount._make(row) for row in rows]

    def find_replay(self, request: RequestRecord | None) -> TaskRow | None:
        """Returns the task that a request wrote, as it is now, if it was asked before.

        Raises: RequestIdReusedError, TaskNotFoundError when the task is gone since.
        """
        if request is None:
            return None
        rows = self._database.read(_SELECT_REQUEST, request._asdict())
        if not rows:
            return None
        if bytes(rows[0].fingerprint) != request.fingerprint:
            raise RequestIdReusedError(request.request_id)
        return self.get(rows[0].task_id)

    def forget_requests(self, *, older_than: dt.timedelta, limit: int = 1000) -> int:
        """Removes up to `limit` old request records; several processes may do it at once."""
        rows = self._database.write(
            _FORGET_REQUESTS, {"before": dt.datetime.now(dt.UTC) - older_than, "most": limit}
        )
        return len(rows)

    def _write(
        self,
        statements: tuple[Executable, Executable],
        values: Parameters,
        request: RequestRecord | None,
        *,
        commit: bool,
    ) -> TaskRow:
        alone, with_request = statements
        if request is None:
            rows = self._database.write(alone, values, commit=commit)
        else:
            rows = self._database.write(with_request, values | request._asdict(), commit=commit)
        if not rows:
            raise VersionMismatchError(values["key"])
        return TaskRow._make(rows[0])


def _matching(statement: Select[Any], filter_: Filter | None, *, show_deleted: bool) -> Select[Any]:
    if not show_deleted:
        statement = statement.where(tasks.c.deleted_at.is_(None))
    return statement if filter_ is None else statement.where(condition(filter_))


# The statements below are built once: what changes from call to call is only their parameters.

_key = bindparam("key", type_=Uuid(as_uuid=False))
_key_version = bindparam("key_version", type_=BigInteger)
_status = bindparam("status", type_=tasks.c.status.type)

_SELECT_BY_ID = select(tasks).where(tasks.c.id == _key)

_WRITTEN = {"version": tasks.c.version + 1, "updated_at": func.now()}


def _with_request(statement: Any) -> tuple[Executable, Executable]:
    """The statement alone, and with the record of its request, both or neither of which happen."""
    written = statement.cte("written")
    record = (
        insert(requests)
        .from_select(
            ["principal", "request_id", "fingerprint", "task_id"],
            select(
                bindparam("principal", type_=Text),
                bindparam("request_id", type_=Uuid(as_uuid=False)),
                bindparam("fingerprint", type_=LargeBinary),
                written.c.id,
            ),
        )
        .cte("record")
    )
    return statement, select(written).add_cte(record)


_CONTENT = ("title", "description", "status", "priority", "assigned_to", "due_date", "tags")

_INSERT = _with_request(
    insert(tasks)
    .values(
        {
            name: bindparam(name, type_=tasks.c[name].type)
            for name in ("id", "created_by", *_CONTENT)
        }
        | {"completed_at": case((_status == _COMPLETED, func.now()))}
    )
    .returning(*tasks.c)
)

_UPDATE = _with_request(
    update(tasks)
    .where(
        tasks.c.id == _key,
        tasks.c.version == _key_version,
        tasks.c.deleted_at.is_(None),
    )
    .values(
        {name: bindparam(name, type_=tasks.c[name].type) for name in _CONTENT}
        | {
            "completed_at": case(
                (_status == _COMPLETED, func.coalesce(tasks.c.completed_at, func.now()))
            )
        }
        | _WRITTEN
    )
    .returning(*tasks.c)
)

_TOUCH = _with_request(select(tasks).where(tasks.c.id == _key, tasks.c.version == _key_version))

_OF_VERSION = (tasks.c.id == _key, or_(_key_version.is_(None), tasks.c.version == _key_version))

_DELETE = (
    update(tasks)
    .where(*_OF_VERSION, tasks.c.deleted_at.is_(None))
    .values({"deleted_at": func.now()} | _WRITTEN)
    .returning(*tasks.c)
)

_UNDELETE = (
    update(tasks)
    .where(*_OF_VERSION, tasks.c.deleted_at.is_not(None))
    .values({"deleted_at": null()} | _WRITTEN)
    .returning(*tasks.c)
)

_SELECT_REQUEST = select(requests.c.fingerprint, requests.c.task_id).where(
    requests.c.principal == bindparam("principal"),
    requests.c.request_id == bindparam("request_id"),
)

# A CTE is run once; a subquery might be run for each row, and then removes more than its limit.
_old = (
    select(requests.c.principal, requests.c.request_id)
    .where(requests.c.created_at < bindparam("before"))
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
    .cte("old")
)

_FORGET_REQUESTS = (
    delete(requests)
    .where(tuple_(requests.c.principal, requests.c.request_id).in_(select(_old)))
    .returning(requests.c.request_id)
)
