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

from __future__ import annotations

from functools import lru_cache

from sqlalchemy import (
    CTE,
    JSON,
    BigInteger,
    ColumnElement,
    FromClause,
    Insert,
    Table,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    cast,
    column,
    delete,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
    update,
)
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

_KEYS = any_(cast(bindparam("keys", type_=ARRAY(Text)), ARRAY(Uuid(as_uuid=False))))


def _rows_of(table: Table, parameter: str, name: str) -> CTE:
    """Read a parameter, a JSON array of any length, as rows of a table."""
    array = cast(bindparam(parameter, type_=Text), JSON)
    rows = func.json_populate_recordset(literal_column(f"NULL::{table.name}"), array)
    return select(
        rows.table_valued(*(column(c.name, c.type) for c in table.c if not c.computed))
    ).cte(name)


_given = _rows_of(tasks, "rows", "given")
_requests = _rows_of(requests, "requests", "given_requests")

_principal = bindparam("principal", type_=Text)
_transaction = func.pg_current_xact_id(type_=Xid8())

# A version is random: a counter restored from a backup, lost in a failover or restarted after a
# purge would give another state of the task a version that clients still hold.
# 59 random bits: a positive bigint, and an etag of 15 hexadecimal digits.
_new_version = (
    func.hashtextextended(cast(func.gen_random_uuid(), Text), 0)
    .bitwise_and(literal_column("1152921504606846975"))
    .bitwise_or(literal_column("1"))
)

# now() is the transaction's begin, which is before the last write if it waited for that one.
_write_time = func.greatest(tasks.c.updated_at, func.now())

_CONTENT = ("title", "description", "status", "priority", "assigned_to", "due_date", "tags")


def _locked(may_be_written: ColumnElement[bool]) -> CTE:
    rows = select(*WRITTEN_COLUMNS).where(tasks.c.id == _KEYS, may_be_written)
    return rows.order_by(tasks.c.id).with_for_update().cte("locked")


def _updated(
    kind: str,
    locked: CTE,
    values: dict[str, AnyColumn],
    *where: ColumnElement[bool],
    with_requests: bool = False,
) -> Statement:
    right = or_(_given.c.version.is_(None), _given.c.version == locked.c.version)
    all_locked = select(func.count()).select_from(
        locked.join(_given, and_(_given.c.id == locked.c.id, right))
    ).scalar_subquery() == bindparam("count")
    written = (
        update(tasks)
        .where(tasks.c.id == _KEYS, *where, all_locked)
        .values(
            values
            | {
                "version": _new_version,
                "updated_at": _write_time,
                # This transaction may have taken its id before the last one that wrote the task.
                "xid": func.greatest(tasks.c.xid, _transaction),
            }
        )
        .returning(*WRITTEN_COLUMNS)
        .cte("written")
    )
    states = {"before": _state(locked), "after": _state(written)}
    both = written.join(locked, locked.c.id == written.c.id)
    return _with_event(kind, written, both, states, all_locked, with_requests=with_requests)


def _created(*, with_requests: bool) -> Statement:
    names = ("id", "created_by", *_CONTENT)
    values = select(
        *(_given.c[name] for name in names),
        case((_given.c.status == COMPLETED, func.now())),
        _transaction,
        _new_version,
    )
    written = (
        insert(tasks)
        .from_select([*names, "completed_at", "xid", "version"], values.order_by(_given.c.id))
        .returning(*WRITTEN_COLUMNS)
        .cte("written")
    )
    return _with_event(
        "created", written, written, {"after": _state(written)}, with_requests=with_requests
    )


def _state(rows: CTE) -> AnyColumn:
    return func.to_jsonb(rows.table_valued()).op("-")("xid")


def _with_event(
    kind: str,
    written: CTE,
    source: FromClause,
    states: dict[str, AnyColumn],
    *if_: ColumnElement[bool],
    with_requests: bool,
) -> Statement:
    payload = [
        part for name, state in states.items() for part in (literal_column(f"'{name}'"), state)
    ]
    entry = {
        "xid": written.c.xid,
        "aggregateid": written.c.id,
        "type": literal_column(f"'{kind}'"),
        "payload": func.jsonb_build_object(*payload),
        "principal": _principal,
        "trace_id": bindparam("trace_id", type_=Text),
        "occurred_at": written.c.updated_at,
    }
    if with_requests:
        entry["request_id"] = _requests.c.request_id
        source = source.outerjoin(_requests, _requests.c.task_id == written.c.id)
    event = insert(task_events).from_select(
        list(entry), select(*entry.values()).select_from(source)
    )
    parts = (
        [event.cte("event"), _record(*if_).cte("record")] if with_requests else [event.cte("event")]
    )
    result = select(*(written.c[name] for name in TaskRow._fields)).add_cte(*parts)
    return Statement(kind.removesuffix("d"), result, prepared=True)


def _record(*if_: ColumnElement[bool]) -> Insert:
    record = select(
        _principal, _requests.c.request_id, _requests.c.fingerprint, _requests.c.task_id
    )
    return insert(requests).from_select(
        ["principal", "request_id", "fingerprint", "task_id"],
        record.where(*if_).order_by(_requests.c.request_id),
    )


# Without requests and with them: PostgreSQL takes longer to plan a write than to run it.
CREATE = {with_requests: _created(with_requests=with_requests) for with_requests in (False, True)}

UPDATE = {
    with_requests: _updated(
        "updated",
        _locked(tasks.c.deleted_at.is_(None)),
        {name: _given.c[name] for name in _CONTENT}
        | {
            "completed_at": case(
                (_given.c.status == COMPLETED, func.coalesce(tasks.c.completed_at, _write_time))
            )
        },
        tasks.c.id == _given.c.id,
        with_requests=with_requests,
    )
    for with_requests in (False, True)
}

DELETE = _updated("deleted", _locked(tasks.c.deleted_at.is_(None)), {"deleted_at": _write_time})

UNDELETE = _updated("undeleted", _locked(tasks.c.deleted_at.is_not(None)), {"deleted_at": null()})

_is_deleted = tasks.c.deleted_at.is_not(None)

LOCK = Statement(
    "lock",
    select(tasks.c.id).where(tasks.c.id == _KEYS).order_by(tasks.c.id).with_for_update(),
)

# A CTE is run once; a subquery may be run for each row, and would exceed the limit.
_old = (
    select(requests.c.principal, requests.c.request_id)
    .where(requests.c.created_at < long_ago())
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
    .cte("old")
)

FORGET_REQUESTS = Statement(
    "forget requests",
    delete(requests)
    .where(tuple_(requests.c.principal, requests.c.request_id).in_(select(_old)))
    .returning(requests.c.request_id),
)


def purge(matches: ColumnElement[bool], limit: int) -> Statement:
    """Delete up to `limit` deleted tasks; rows that another transaction has locked are skipped."""
    purged = (
        select(tasks.c.id)
        .where(_is_deleted, matches)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("purged")
    )
    return Statement(
        "purge", delete(tasks).where(tasks.c.id.in_(select(purged))).returning(tasks.c.id)
    )


_key = bindparam("key", type_=Uuid(as_uuid=False))
BY_ID = Statement("get", select(*TASK_COLUMNS).where(tasks.c.id == _key), prepared=True)
BY_IDS = Statement("get many", select(*TASK_COLUMNS).where(tasks.c.id == _KEYS), prepared=True)

REPLAYS = Statement(
    "find replays",
    select(requests.c.request_id, requests.c.fingerprint, requests.c.task_id, *TASK_COLUMNS)
    .outerjoin(tasks, tasks.c.id == requests.c.task_id)
    .where(requests.c.principal == bindparam("principal"), requests.c.request_id == _KEYS),
    prepared=True,
)

# Statements with a filter are kept by its form: its values are parameters.


@lru_cache(_KEPT_STATEMENTS)
def page(
    filter_: Filter | None, order: tuple[Sort, ...], cursor: Cursor | None, *, show_deleted: bool
) -> Statement:
    statement = _matching(select(*TASK_COLUMNS), filter_, show_deleted=show_deleted)
    if cursor is not None:
        statement = statement.where(after(order, cursor))
    return Statement("page", statement.order_by(*ordering(order)).limit(bindparam("limit")))


@lru_cache(_KEPT_STATEMENTS)
def count(filter_: Filter | None, *, show_deleted: bool) -> Statement:
    statement = select(func.count()).select_from(tasks)
    return Statement("count", _matching(statement, filter_, show_deleted=show_deleted))


@lru_cache(_KEPT_STATEMENTS)
def stats(filter_: Filter) -> Statement:
    """Count by status and priority; without a task there is one row with NULLs and the time."""
    is_overdue = (tasks.c.status <= IN_PROGRESS) & (tasks.c.due_date < func.now())
    overdue = func.sum(func.count().filter(is_overdue)).over()
    counted = select(overdue.label("overdue"), tasks.c.status, tasks.c.priority, func.count())
    counts = (
        _matching(counted, filter_, show_deleted=False)
        .group_by(tasks.c.status, tasks.c.priority)
        .subquery("counts")
    )
    clock = select(func.now().label("as_of")).subquery("clock")
    columns = [clock.c.as_of, cast(func.coalesce(counts.c.overdue, 0), BigInteger)]
    statement = select(*columns, *list(counts.c)[1:])
    return Statement("stats", statement.select_from(clock.outerjoin(counts, true())))


def preview_purge(filter_: Filter, *, sample: int) -> Statement:
    matching = (
        select(tasks.c.id, tasks.c.deleted_at)
        .where(_is_deleted, condition(filter_))
        .cte("matching")
    )
    first = select(matching.c.id).order_by(matching.c.deleted_at, matching.c.id).limit(sample)
    return Statement(
        "preview purge",
        select(
            select(func.count()).select_from(matching).scalar_subquery(),
            func.array(first.scalar_subquery(), type_=ARRAY(Uuid(as_uuid=False))),
        ),
    )


def _matching(statement: AnySelect, filter_: Filter | None, *, show_deleted: bool) -> AnySelect:
    if not show_deleted:
        statement = statement.where(~_is_deleted)
    return statement if filter_ is None else statement.where(condition(filter_))
