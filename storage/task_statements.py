"""Statements on tasks and request records.

A write of any number of tasks is a chain of named parts that all take effect, or none:

    keys      the ids, by whose number PostgreSQL chooses its plan
    given     the values to write, a JSON array, as rows of `tasks`
    locked    the current rows that may be written, locked in the order of their ids, so that
              overlapping writes never wait for each other in a circle
    written   the new rows, provided that each given row is locked and has the given version
    event     the events of the tasks
    record    the request records, a JSON array, as rows of `requests`
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from storage.query import Cursor, Filter, Sort, after, condition, ordering
from storage.statement import Statement
from storage.tables import (
    COMPLETED,
    IN_PROGRESS,
    TASK_COLUMNS,
    WRITTEN_COLUMNS,
    AnyColumn,
    AnySelect,
    TaskRow,
    Xid8,
    long_ago,
    requests,
    task_events,
    tasks,
)

_KEPT_STATEMENTS = 128

_KEYS = sa.any_(sa.cast(sa.bindparam("keys", type_=ARRAY(sa.Text)), ARRAY(sa.Uuid(as_uuid=False))))


def _any_of(parameter: str, type_: type[sa.types.TypeEngine[Any]]) -> AnyColumn:
    return sa.any_(sa.cast(sa.bindparam(parameter), ARRAY(type_)))


def _rows_of(table: sa.Table, parameter: str, name: str) -> sa.CTE:
    """Read a parameter, a JSON array of any length, as rows of a table."""
    array = sa.cast(sa.bindparam(parameter, type_=sa.Text), sa.JSON)
    rows = sa.func.json_populate_recordset(sa.literal_column(f"NULL::{table.name}"), array)
    return sa.select(
        rows.table_valued(*(sa.column(c.name, c.type) for c in table.c if not c.computed))
    ).cte(name)


_given = _rows_of(tasks, "rows", "given")
_requests = _rows_of(requests, "requests", "given_requests")

_principal = sa.bindparam("principal", type_=sa.Text)
_transaction = sa.func.pg_current_xact_id(type_=Xid8())

# 59 random bits (docs/decisions/0015): a positive bigint, and an etag of 15 hexadecimal digits.
_new_version = (
    sa.func.hashtextextended(sa.cast(sa.func.gen_random_uuid(), sa.Text), 0)
    .bitwise_and(sa.literal_column("1152921504606846975"))
    .bitwise_or(sa.literal_column("1"))
)

# now() is the transaction's begin, which is before the last write if it waited for that one.
_write_time = sa.func.greatest(tasks.c.updated_at, sa.func.now())

_CONTENT = ("title", "description", "status", "priority", "assigned_to", "due_date", "tags")


def _updated(
    kind: str,
    may_be_written: sa.ColumnElement[bool],
    values: dict[str, AnyColumn],
    *where: sa.ColumnElement[bool],
) -> Statement:
    current = sa.select(*WRITTEN_COLUMNS).where(tasks.c.id == _KEYS, may_be_written)
    locked = current.order_by(tasks.c.id).with_for_update().cte("locked")
    right = sa.or_(_given.c.version.is_(None), _given.c.version == locked.c.version)
    all_locked = sa.select(sa.func.count()).select_from(
        locked.join(_given, sa.and_(_given.c.id == locked.c.id, right))
    ).scalar_subquery() == sa.bindparam("count")
    written = (
        sa.update(tasks)
        .where(tasks.c.id == _KEYS, *where, all_locked)
        .values(
            values
            | {
                "version": _new_version,
                "updated_at": _write_time,
                # This transaction may have taken its id before the last one that wrote the task.
                "xid": sa.func.greatest(tasks.c.xid, _transaction),
            }
        )
        .returning(*WRITTEN_COLUMNS)
        .cte("written")
    )
    states = {"before": _state(locked), "after": _state(written)}
    both = written.join(locked, locked.c.id == written.c.id)
    return _with_event(kind, written, both, states, all_locked)


def _created() -> Statement:
    names = ("id", "created_by", *_CONTENT)
    values = sa.select(
        *(_given.c[name] for name in names),
        sa.case((_given.c.status == COMPLETED, sa.func.now())),
        _transaction,
        _new_version,
    )
    written = (
        sa.insert(tasks)
        .from_select([*names, "completed_at", "xid", "version"], values.order_by(_given.c.id))
        .returning(*WRITTEN_COLUMNS)
        .cte("written")
    )
    return _with_event("created", written, written, {"after": _state(written)})


def _state(rows: sa.CTE) -> AnyColumn:
    return sa.func.to_jsonb(rows.table_valued()).op("-")("xid")


def _with_event(
    kind: str,
    written: sa.CTE,
    source: sa.FromClause,
    states: dict[str, AnyColumn],
    *if_: sa.ColumnElement[bool],
) -> Statement:
    payload = [
        part for name, state in states.items() for part in (sa.literal_column(f"'{name}'"), state)
    ]
    entry = {
        "xid": written.c.xid,
        "aggregateid": written.c.id,
        "type": sa.literal_column(f"'{kind}'"),
        "payload": sa.func.jsonb_build_object(*payload),
        "principal": _principal,
        "trace_id": sa.bindparam("trace_id", type_=sa.Text),
        "occurred_at": written.c.updated_at,
        "request_id": _requests.c.request_id,
    }
    events = sa.select(*entry.values()).select_from(
        source.outerjoin(_requests, _requests.c.task_id == written.c.id)
    )
    recorded = ("request_id", "fingerprint", "task_id")
    records = sa.select(_principal, *(_requests.c[name] for name in recorded)).where(*if_)
    result = sa.select(*(written.c[name] for name in TaskRow._fields)).add_cte(
        sa.insert(task_events).from_select(list(entry), events).cte("event"),
        sa.insert(requests)
        .from_select(["principal", *recorded], records.order_by(_requests.c.request_id))
        .cte("record"),
    )
    return Statement(kind.removesuffix("d"), result, prepared=True)


CREATE = _created()


_is_deleted = tasks.c.deleted_at.is_not(None)


def _content_updated(
    values: Mapping[str, AnyColumn], *conditions: sa.ColumnElement[bool]
) -> Statement:
    first_completed_at = sa.func.coalesce(tasks.c.completed_at, _write_time)
    completed_at = sa.case((values["status"] == COMPLETED, first_completed_at))
    may_be_written = sa.and_(~_is_deleted, *conditions)
    written = {**values, "completed_at": completed_at}
    return _updated("updated", may_be_written, written, tasks.c.id == _given.c.id)


UPDATE = _content_updated({name: _given.c[name] for name in _CONTENT})

# Some columns of a task, merged and checked in the statement.
_patched = {
    name: sa.case(
        (sa.literal_column(f"'{name}'") == _any_of("fields", sa.Text), _given.c[name]),
        else_=tasks.c[name],
    )
    for name in _CONTENT
}
_due_date = _patched["due_date"]
_may_be_patched = sa.exists().where(
    _given.c.id == tasks.c.id,
    tasks.c.status == _any_of("statuses", sa.SmallInteger),
    sa.or_(
        _due_date.is_(None),
        _due_date.is_not_distinct_from(tasks.c.due_date),
        _due_date > sa.func.now(),
    ),
    sa.or_(*(value.is_distinct_from(tasks.c[name]) for name, value in _patched.items())),
)
PATCH = _content_updated(_patched, _may_be_patched)

DELETE = _updated("deleted", ~_is_deleted, {"deleted_at": _write_time})
UNDELETE = _updated("undeleted", _is_deleted, {"deleted_at": sa.null()})

LOCK = Statement(
    "lock",
    sa.select(tasks.c.id).where(tasks.c.id == _KEYS).order_by(tasks.c.id).with_for_update(),
)

# A CTE is run once; a subquery may be run for each row, and would exceed the limit.
_old = (
    sa.select(requests.c.principal, requests.c.request_id)
    .where(requests.c.created_at < long_ago())
    .limit(sa.bindparam("most"))
    .with_for_update(skip_locked=True)
    .cte("old")
)

FORGET_REQUESTS = Statement(
    "forget requests",
    sa.delete(requests)
    .where(sa.tuple_(requests.c.principal, requests.c.request_id).in_(sa.select(_old)))
    .returning(requests.c.request_id),
)


def purge(matches: sa.ColumnElement[bool], limit: int) -> Statement:
    """Delete up to `limit` deleted tasks; rows that another transaction has locked are skipped."""
    purged = (
        sa.select(tasks.c.id)
        .where(_is_deleted, matches)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("purged")
    )
    return Statement(
        "purge", sa.delete(tasks).where(tasks.c.id.in_(sa.select(purged))).returning(tasks.c.id)
    )


_key = sa.bindparam("key", type_=sa.Uuid(as_uuid=False))
BY_ID = Statement("get", sa.select(*TASK_COLUMNS).where(tasks.c.id == _key), prepared=True)
BY_IDS = Statement("get many", sa.select(*TASK_COLUMNS).where(tasks.c.id == _KEYS), prepared=True)

REPLAYS = Statement(
    "find replays",
    sa.select(requests.c.request_id, requests.c.fingerprint, requests.c.task_id, *TASK_COLUMNS)
    .outerjoin(tasks, tasks.c.id == requests.c.task_id)
    .where(requests.c.principal == sa.bindparam("principal"), requests.c.request_id == _KEYS),
    prepared=True,
)

# Statements with a filter are kept by its form: its values are parameters.


@lru_cache(_KEPT_STATEMENTS)
def page(
    filter_: Filter | None, order: tuple[Sort, ...], cursor: Cursor | None, *, show_deleted: bool
) -> Statement:
    statement = _matching(sa.select(*TASK_COLUMNS), filter_, show_deleted=show_deleted)
    if cursor is not None:
        statement = statement.where(after(order, cursor))
    return Statement("page", statement.order_by(*ordering(order)).limit(sa.bindparam("limit")))


@lru_cache(_KEPT_STATEMENTS)
def count(filter_: Filter | None, *, show_deleted: bool) -> Statement:
    statement = sa.select(sa.func.count()).select_from(tasks)
    return Statement("count", _matching(statement, filter_, show_deleted=show_deleted))


@lru_cache(_KEPT_STATEMENTS)
def stats(filter_: Filter) -> Statement:
    """Count by status and priority; without a task there is one row with NULLs and the time."""
    is_overdue = (tasks.c.status <= IN_PROGRESS) & (tasks.c.due_date < sa.func.now())
    overdue = sa.func.sum(sa.func.count().filter(is_overdue)).over()
    counted = sa.select(overdue.label("overdue"), tasks.c.status, tasks.c.priority, sa.func.count())
    counts = (
        _matching(counted, filter_, show_deleted=False)
        .group_by(tasks.c.status, tasks.c.priority)
        .subquery("counts")
    )
    clock = sa.select(sa.func.now().label("as_of")).subquery("clock")
    columns = [clock.c.as_of, sa.cast(sa.func.coalesce(counts.c.overdue, 0), sa.BigInteger)]
    statement = sa.select(*columns, *list(counts.c)[1:])
    return Statement("stats", statement.select_from(clock.outerjoin(counts, sa.true())))


def preview_purge(filter_: Filter, *, sample: int) -> Statement:
    matching = (
        sa.select(tasks.c.id, tasks.c.deleted_at)
        .where(_is_deleted, condition(filter_))
        .cte("matching")
    )
    first = sa.select(matching.c.id).order_by(matching.c.deleted_at, matching.c.id).limit(sample)
    return Statement(
        "preview purge",
        sa.select(
            sa.select(sa.func.count()).select_from(matching).scalar_subquery(),
            sa.func.array(first.scalar_subquery(), type_=ARRAY(sa.Uuid(as_uuid=False))),
        ),
    )


def _matching(statement: AnySelect, filter_: Filter | None, *, show_deleted: bool) -> AnySelect:
    if not show_deleted:
        statement = statement.where(~_is_deleted)
    return statement if filter_ is None else statement.where(condition(filter_))
