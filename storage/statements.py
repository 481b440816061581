"""The statements that write tasks, for any number of them; each is built once.

A write is a chain of named parts, of which all take place or none:

    keys     the ids, by whose number PostgreSQL chooses its plan
    given    what to write, a JSON array, as rows of `tasks`
    locked   the rows as they are, locked in the order of their ids, so that writes that overlap
             wait for each other and never in a circle; only those that may be written
    written  the rows as they become, if every one that was given is locked
    event    what stands in the tasks' history
    record   the requests that asked for it, a JSON array, as rows of `requests`
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CTE,
    JSON,
    ColumnElement,
    Select,
    Text,
    Uuid,
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

from storage.tables import COMPLETED, TaskRow, Xid8, requests, task_events, tasks

KEYS = any_(cast(bindparam("keys", type_=ARRAY(Text)), ARRAY(Uuid(as_uuid=False))))


def _rows_of(table: Any, parameter: str, name: str) -> CTE:
    """A JSON array as rows of a table, which one parameter brings however many they are."""
    array = cast(bindparam(parameter, type_=Text), JSON)
    rows = func.json_populate_recordset(literal_column(f"NULL::{table.name}"), array)
    return select(rows.table_valued(*(column(c.name, c.type) for c in table.c))).cte(name)


_given = _rows_of(tasks, "rows", "given")
_asked = _rows_of(requests, "asked", "asked")

_transaction = func.pg_current_xact_id(type_=Xid8())

# now() is when the transaction began: one that waited for another began before it.
_moment = func.greatest(tasks.c.updated_at, func.now())

_CONTENT = ("title", "description", "status", "priority", "assigned_to", "due_date", "tags")


def _locked(*may_be_written: ColumnElement[bool]) -> CTE:
    return (
        select(tasks)
        .join(_given, _given.c.id == tasks.c.id)
        .where(
            tasks.c.id == KEYS,
            or_(_given.c.version.is_(None), _given.c.version == tasks.c.version),
            *may_be_written,
        )
        .order_by(tasks.c.id)
        .with_for_update(of=tasks)
        .cte("locked")
    )


def _updated(kind: str, locked: CTE, values: dict[str, Any]) -> Select[Any]:
    all_locked = select(func.count()).select_from(locked).scalar_subquery() == bindparam("count")
    written = (
        update(tasks)
        .where(tasks.c.id == KEYS, tasks.c.id == _given.c.id, all_locked)
        .values(
            values
            | {
                "version": tasks.c.version + 1,
                "updated_at": _moment,
                # A transaction that began to write before another may come to this task after it.
                "xid": func.greatest(tasks.c.xid, _transaction),
            }
        )
        .returning(*tasks.c)
        .cte("written")
    )
    states = {"before": _state(locked), "after": _state(written)}
    joined = written.join(locked, locked.c.id == written.c.id)
    return _with_event(kind, written, joined, states, all_locked)


def _created() -> Select[Any]:
    names = ("id", "created_by", *_CONTENT)
    values = select(
        *(_given.c[name] for name in names),
        case((_given.c.status == COMPLETED, func.now())),
        _transaction,
    )
    written = (
        insert(tasks)
        .from_select([*names, "completed_at", "xid"], values.order_by(_given.c.id))
        .returning(*tasks.c)
        .cte("written")
    )
    return _with_event("created", written, written, {"after": _state(written)})


def _state(rows: CTE) -> ColumnElement[Any]:
    return func.to_jsonb(rows.table_valued()).op("-")("xid")


def _with_event(
    kind: str,
    written: CTE,
    source: Any,
    states: dict[str, ColumnElement[Any]],
    *if_: ColumnElement[bool],
) -> Select[Any]:
    payload = [
        part for name, state in states.items() for part in (literal_column(f"'{name}'"), state)
    ]
    principal = bindparam("principal", type_=Text)
    entry = {
        "xid": written.c.xid,
        "aggregateid": written.c.id,
        "type": literal_column(f"'{kind}'"),
        "payload": func.jsonb_build_object(*payload),
        "principal": principal,
        "request_id": _asked.c.request_id,
        "trace_id": bindparam("trace_id", type_=Text),
        "occurred_at": written.c.updated_at,
    }
    source = source.outerjoin(_asked, _asked.c.task_id == written.c.id)
    event = insert(task_events).from_select(
        list(entry), select(*entry.values()).select_from(source)
    )
    asked = select(principal, _asked.c.request_id, _asked.c.fingerprint, _asked.c.task_id)
    record = insert(requests).from_select(
        ["principal", "request_id", "fingerprint", "task_id"],
        asked.where(*if_).order_by(_asked.c.request_id),
    )
    result = select(*(written.c[name] for name in TaskRow._fields))
    return result.add_cte(event.cte("event"), record.cte("record"))


CREATE = _created()

UPDATE = _updated(
    "updated",
    _locked(tasks.c.deleted_at.is_(None)),
    {name: _given.c[name] for name in _CONTENT}
    | {
        "completed_at": case(
            (_given.c.status == COMPLETED, func.coalesce(tasks.c.completed_at, _moment))
        )
    },
)

DELETE = _updated("deleted", _locked(tasks.c.deleted_at.is_(None)), {"deleted_at": _moment})

UNDELETE = _updated("undeleted", _locked(tasks.c.deleted_at.is_not(None)), {"deleted_at": null()})
