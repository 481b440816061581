"""The statements that write tasks, for any number of them; each is built once.

A write is a chain of named parts, of which all take place or none:

    keys     the ids, by whose number PostgreSQL chooses its plan
    given    what to write, a JSON array, as rows of `tasks`
    locked   the rows as they are, those that may be written, locked in the order of their ids,
             so that writes that overlap wait for each other and never in a circle
    written  the rows as they become, if every one that was given is locked, in its version
    event    what stands in the tasks' history
    record   the requests that asked for it, a JSON array, as rows of `requests`
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CTE,
    JSON,
    ColumnElement,
    Insert,
    Select,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    cast,
    column,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from storage.measures import named
from storage.tables import COMPLETED, WRITTEN_COLUMNS, TaskRow, Xid8, requests, task_events, tasks

KEYS = any_(cast(bindparam("keys", type_=ARRAY(Text)), ARRAY(Uuid(as_uuid=False))))


def _rows_of(table: Any, parameter: str, name: str) -> CTE:
    """A JSON array as rows of a table, which one parameter brings however many they are."""
    array = cast(bindparam(parameter, type_=Text), JSON)
    rows = func.json_populate_recordset(literal_column(f"NULL::{table.name}"), array)
    return select(
        rows.table_valued(*(column(c.name, c.type) for c in table.c if not c.computed))
    ).cte(name)


_given = _rows_of(tasks, "rows", "given")
_asked = _rows_of(requests, "asked", "asked")

_principal = bindparam("principal", type_=Text)
_transaction = func.pg_current_xact_id(type_=Xid8())

# A version is random, not counted: a counter that is restored from a backup, lost in a failover or
# begun again after a purge would give another state of the task a version that clients still hold.
# 59 random bits, so that it is a positive bigint and fits into an etag of 15 hexadecimal digits.
_new_version = (
    func.hashtextextended(cast(func.gen_random_uuid(), Text), 0)
    .bitwise_and(literal_column("1152921504606846975"))
    .bitwise_or(literal_column("1"))
)

# now() is when the transaction began: one that waited for another began before it.
_moment = func.greatest(tasks.c.updated_at, func.now())

_CONTENT = ("title", "description", "status", "priority", "assigned_to", "due_date", "tags")


def _locked(may_be_written: ColumnElement[bool]) -> CTE:
    rows = select(*WRITTEN_COLUMNS).where(tasks.c.id == KEYS, may_be_written)
    return rows.order_by(tasks.c.id).with_for_update().cte("locked")


def _updated(
    kind: str, locked: CTE, values: dict[str, Any], *where: ColumnElement[bool], asked: bool = False
) -> Select[Any]:
    right = or_(_given.c.version.is_(None), _given.c.version == locked.c.version)
    all_locked = select(func.count()).select_from(
        locked.join(_given, and_(_given.c.id == locked.c.id, right))
    ).scalar_subquery() == bindparam("count")
    written = (
        update(tasks)
        .where(tasks.c.id == KEYS, *where, all_locked)
        .values(
            values
            | {
                "version": _new_version,
                "updated_at": _moment,
                # A transaction that began to write before another may come to this task after it.
                "xid": func.greatest(tasks.c.xid, _transaction),
            }
        )
        .returning(*WRITTEN_COLUMNS)
        .cte("written")
    )
    states = {"before": _state(locked), "after": _state(written)}
    both = written.join(locked, locked.c.id == written.c.id)
    return _with_event(kind, written, both, states, all_locked, asked=asked)


def _created(*, asked: bool) -> Select[Any]:
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
    return _with_event("created", written, written, {"after": _state(written)}, asked=asked)


def _state(rows: CTE) -> ColumnElement[Any]:
    return func.to_jsonb(rows.table_valued()).op("-")("xid")


def _with_event(
    kind: str,
    written: CTE,
    source: Any,
    states: dict[str, ColumnElement[Any]],
    *if_: ColumnElement[bool],
    asked: bool,
) -> Select[Any]:
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
    if asked:
        entry["request_id"] = _asked.c.request_id
        source = source.outerjoin(_asked, _asked.c.task_id == written.c.id)
    event = insert(task_events).from_select(
        list(entry), select(*entry.values()).select_from(source)
    )
    parts = [event.cte("event"), _record(*if_).cte("record")] if asked else [event.cte("event")]
    result = select(*(written.c[name] for name in TaskRow._fields)).add_cte(*parts)
    return named(kind.removesuffix("d"), result)  # The statement that writes "created": "create".


def _record(*if_: ColumnElement[bool]) -> Insert:
    record = select(_principal, _asked.c.request_id, _asked.c.fingerprint, _asked.c.task_id)
    return insert(requests).from_select(
        ["principal", "request_id", "fingerprint", "task_id"],
        record.where(*if_).order_by(_asked.c.request_id),
    )


# Without requests and with some: PostgreSQL plans a write longer than it takes to carry it out.
CREATE = {asked: _created(asked=asked) for asked in (False, True)}

UPDATE = {
    asked: _updated(
        "updated",
        _locked(tasks.c.deleted_at.is_(None)),
        {name: _given.c[name] for name in _CONTENT}
        | {
            "completed_at": case(
                (_given.c.status == COMPLETED, func.coalesce(tasks.c.completed_at, _moment))
            )
        },
        tasks.c.id == _given.c.id,
        asked=asked,
    )
    for asked in (False, True)
}

DELETE = _updated("deleted", _locked(tasks.c.deleted_at.is_(None)), {"deleted_at": _moment})

UNDELETE = _updated("undeleted", _locked(tasks.c.deleted_at.is_not(None)), {"deleted_at": null()})
