"""Statements on events: the stream, histories, the initial tasks of a watch, retention."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    Connection,
    Exists,
    FromClause,
    Text,
    and_,
    bindparam,
    case,
    cast,
    column,
    delete,
    desc,
    exists,
    func,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import array

from storage.query import Filter, condition
from storage.statement import Statement
from storage.tables import (
    TASK_COLUMNS,
    WRITTEN_COLUMNS,
    AnyColumn,
    AnySelect,
    Xid8,
    event_horizon,
    long_ago,
    task_events,
    tasks,
)

FILTERS_IN_ONE_STATEMENT = 16
_CACHED_STATEMENTS = 32

_LAST_ID = "ffffffff-ffff-ffff-ffff-ffffffffffff"


class EventRow(NamedTuple):
    """A row of `task_events`."""

    xid: int
    id: int
    aggregateid: str
    type: str
    payload: dict[str, Any]
    principal: str
    request_id: str | None
    trace_id: str | None
    occurred_at: dt.datetime
    written_by: int


_EVENT = [task_events.c[name] for name in EventRow._fields]
_place = tuple_(task_events.c.xid, task_events.c.id)


def _bound(xid: str = "xid", id_: str = "id") -> AnyColumn:
    """The place that the statement's parameters name."""
    return tuple_(bindparam(xid, type_=Xid8), bindparam(id_, type_=BigInteger))


_is_behind = _place > _bound()
_written = func.jsonb_extract_path_text(task_events.c.payload, "after", "version")
_version = func.coalesce(cast(_written, BigInteger), 0)
_horizon_place = tuple_(event_horizon.c.xid, event_horizon.c.id)

_snapshot = select(
    func.pg_snapshot_xmin(func.pg_current_snapshot(), type_=Xid8()).label("xmin"),
).subquery("snapshot")
_is_settled = task_events.c.xid < _snapshot.c.xmin


@cache
def history(*, by_principal: bool, is_first: bool) -> Statement:
    """Select a task's newest events; unless it is the first page, before a place."""
    statement = select(*_EVENT).where(task_events.c.aggregateid == bindparam("task_id"))
    if by_principal:
        statement = statement.where(task_events.c.principal == bindparam("principal"))
    if not is_first:
        statement = statement.where(_place < _bound())
    return Statement("history", statement.order_by(*map(desc, _place)).limit(bindparam("limit")))


_latest = (
    select(task_events.c.xid, task_events.c.id, _version.label("version"))
    .where(_is_settled)
    .order_by(*map(desc, _place))
    .limit(1)
    .lateral("latest")
)
HEAD = Statement(
    "stream head",
    select(
        *(column.label(f"horizon_{column.name}") for column in event_horizon.c), *_latest.c
    ).select_from(event_horizon.join(_snapshot, true()).outerjoin(_latest, true())),
)

# A position belongs to this timeline if its event exists, or is the last one that was removed.
_given_version = bindparam("version", type_=BigInteger)
_is_known = or_(
    and_(_horizon_place == _bound(), event_horizon.c.version == _given_version),
    exists().where(_place == _bound(), _version == _given_version),
)

_age = func.extract("epoch", func.clock_timestamp() - func.min(task_events.c.occurred_at))
LAG = Statement(
    "stream lag",
    select(func.coalesce(_age, 0)).where(
        task_events.c.xid >= func.pg_snapshot_xmin(func.pg_current_snapshot(), type_=Xid8())
    ),
)


@lru_cache(maxsize=_CACHED_STATEMENTS)
def stream(filters: tuple[Filter, ...]) -> Statement:
    """Select the next settled events, and evaluate filters on each.

    Without an event there is one row with NULLs: it says how far the stream is settled.
    """
    event = (
        select(*_EVENT)
        .where(_is_behind, _is_settled)
        .order_by(*_place)
        .limit(bindparam("most"))
        .lateral("event")
    )
    source = event_horizon.join(_snapshot, true()).outerjoin(event, true())
    columns = [*_snapshot.c, _is_known.label("is_known"), *event.c]
    return Statement("stream", _with_matches(columns, source, event, filters))


@lru_cache(maxsize=_CACHED_STATEMENTS)
def matches_between(filters: tuple[Filter, ...]) -> Statement:
    """Evaluate filters on the events between two places."""
    until = _place <= _bound("end_xid", "end_id")
    event = select(*_place.clauses, task_events.c.payload).where(_is_behind, until)
    subquery = event.subquery("event")
    return Statement("stream filters", _with_matches([], subquery, subquery, filters))


def _with_matches(
    columns: Sequence[AnyColumn],
    source: FromClause,
    event: FromClause,
    filters: tuple[Filter, ...],
) -> AnySelect:
    matches = []
    for side, name in (("before", "matched"), ("after", "matches")) if filters else ():
        # The conditions of lists, on the row in the event's payload.
        state = func.jsonb_populate_record(
            literal_column("NULL::tasks"), event.c.payload[side]
        ).table_valued(*(column(c.name, c.type) for c in WRITTEN_COLUMNS), name=side)
        source = source.join(state, true())
        matches.append(_matches(filters, state).label(name))
    return select(*columns, *matches).select_from(source).order_by(event.c.xid, event.c.id)


def _matches(filters: Sequence[Filter], state: FromClause) -> AnyColumn:
    present = and_(state.c.id.is_not(None), state.c.deleted_at.is_(None))
    return array(
        [
            case((and_(present, condition(filter_, state)), True), else_=False)
            for filter_ in filters
        ],
        type_=Boolean,
    )


@lru_cache(maxsize=_CACHED_STATEMENTS)
def initial_page(filter_: Filter | None, *, is_first: bool) -> Statement:
    """Select the next tasks that match, in the order of their ids, and the snapshot."""
    page = _undeleted(filter_, is_first=is_first).limit(bindparam("limit"))
    return Statement("initial page", _with_snapshot(page))


@lru_cache(maxsize=_CACHED_STATEMENTS)
def initial_tasks(filter_: Filter | None, *, is_first: bool) -> Statement:
    """Select those of the next `ids` tasks that match, the last id examined, and the snapshot."""
    beyond = select(tasks.c.id).order_by(tasks.c.id).offset(bindparam("ids") - 1).limit(1)
    if not is_first:
        beyond = beyond.where(tasks.c.id > bindparam("after"))
    last = beyond.scalar_subquery()
    page = _undeleted(filter_, is_first=is_first).where(tasks.c.id <= func.coalesce(last, _LAST_ID))
    return Statement("initial tasks", _with_snapshot(page).add_columns(last.label("last_id")))


def _undeleted(filter_: Filter | None, *, is_first: bool) -> AnySelect:
    statement = select(*TASK_COLUMNS).where(tasks.c.deleted_at.is_(None)).order_by(tasks.c.id)
    if filter_ is not None:
        statement = statement.where(condition(filter_))
    return statement if is_first else statement.where(tasks.c.id > bindparam("after"))


def _with_snapshot(page: AnySelect) -> AnySelect:
    """Add the snapshot to each row; without a task there is one row with NULLs."""
    rows = page.lateral("page")
    snapshot = select(func.pg_current_snapshot().cast(Text).label("seen")).subquery("snapshot")
    return (
        select(snapshot.c.seen, *rows.c)
        .select_from(snapshot.outerjoin(rows, true()))
        .order_by(rows.c.id)
    )


# The first events, up to one that is not old: the events that are kept have no gap.
_first = (
    select(
        task_events.c.xid,
        task_events.c.id,
        func.bool_and(task_events.c.occurred_at < long_ago())
        .over(order_by=_place.clauses)
        .label("is_old"),
    )
    .order_by(*_place)
    .limit(bindparam("most"))
    .subquery("first")
)
_removed = (
    delete(task_events)
    .where(_place.in_(select(_first.c.xid, _first.c.id).where(_first.c.is_old)))
    .returning(task_events.c.xid, task_events.c.id, _version.label("version"))
    .cte("removed")
)
_last = select(_removed).order_by(_removed.c.xid.desc(), _removed.c.id.desc()).limit(1).cte("last")
TRIM = Statement(
    "trim",
    select(_removed).add_cte(
        update(event_horizon)
        .where(_horizon_place < tuple_(_last.c.xid, _last.c.id))
        .values({"xid": _last.c.xid, "id": _last.c.id, "version": _last.c.version})
        .cte("horizon")
    ),
)


def adopt_restored(connection: Connection) -> bool:
    """Move events of another server's dump into the past, if its transaction ids are ahead.

    Each task's history keeps the order of `id`; streams cannot be resumed in it. Returns whether
    anything was moved.
    """
    future = func.pg_snapshot_xmax(func.pg_current_snapshot(), type_=Xid8())

    def ahead(table: FromClause) -> Exists:
        return exists().where(table.c.xid >= future)

    if not connection.scalar(select(or_(*map(ahead, (task_events, event_horizon, tasks))))):
        return False
    connection.execute(update(task_events).values(xid=literal_column("'1'")))
    connection.execute(update(tasks).where(tasks.c.xid >= future).values(xid=literal_column("'0'")))
    connection.execute(update(event_horizon).values(xid=func.pg_current_xact_id(), id=0, version=0))
    return True
