"""Statements on events: the stream, histories, the initial tasks of a watch, retention."""

import datetime as dt
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa
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
_place = sa.tuple_(task_events.c.xid, task_events.c.id)


def _bound(xid: str = "xid", id_: str = "id") -> AnyColumn:
    """The place that the statement's parameters name."""
    return sa.tuple_(sa.bindparam(xid, type_=Xid8), sa.bindparam(id_, type_=sa.BigInteger))


_is_behind = _place > _bound()
_written = sa.func.jsonb_extract_path_text(task_events.c.payload, "after", "version")
_version = sa.func.coalesce(sa.cast(_written, sa.BigInteger), 0)
_horizon_place = sa.tuple_(event_horizon.c.xid, event_horizon.c.id)

_xmin = sa.func.pg_snapshot_xmin(sa.func.pg_current_snapshot(), type_=Xid8())
_snapshot = sa.select(_xmin.label("xmin")).subquery("snapshot")
_is_settled = task_events.c.xid < _snapshot.c.xmin


@cache
def history(*, by_principal: bool, is_first: bool) -> Statement:
    """Select a task's newest events; unless it is the first page, before a place."""
    statement = sa.select(*_EVENT).where(task_events.c.aggregateid == sa.bindparam("task_id"))
    if by_principal:
        statement = statement.where(task_events.c.principal == sa.bindparam("principal"))
    if not is_first:
        statement = statement.where(_place < _bound())
    return Statement(
        "history", statement.order_by(*map(sa.desc, _place)).limit(sa.bindparam("limit"))
    )


_latest = (
    sa.select(task_events.c.xid, task_events.c.id, _version.label("version"))
    .where(_is_settled)
    .order_by(*map(sa.desc, _place))
    .limit(1)
    .lateral("latest")
)
HEAD = Statement(
    "stream head",
    sa.select(
        *(column.label(f"horizon_{column.name}") for column in event_horizon.c), *_latest.c
    ).select_from(event_horizon.join(_snapshot, sa.true()).outerjoin(_latest, sa.true())),
)

# A position belongs to this timeline if its event exists, or is the last one that was removed.
_given_version = sa.bindparam("version", type_=sa.BigInteger)
_is_known = sa.or_(
    sa.and_(_horizon_place == _bound(), event_horizon.c.version == _given_version),
    sa.exists().where(_place == _bound(), _version == _given_version),
)

_age = sa.func.extract("epoch", sa.func.clock_timestamp() - sa.func.min(task_events.c.occurred_at))
LAG = Statement(
    "stream lag",
    sa.select(sa.func.coalesce(_age, 0)).where(task_events.c.xid >= _xmin),
)


@lru_cache(maxsize=_CACHED_STATEMENTS)
def stream(filters: tuple[Filter, ...]) -> Statement:
    """Select the next settled events, with filters; without any, one row with NULLs."""
    event = (
        sa.select(*_EVENT)
        .where(_is_behind, _is_settled)
        .order_by(*_place)
        .limit(sa.bindparam("most"))
        .lateral("event")
    )
    source = event_horizon.join(_snapshot, sa.true()).outerjoin(event, sa.true())
    columns = [*_snapshot.c, _is_known.label("is_known"), *event.c]
    return Statement("stream", _with_matches(columns, source, event, filters))


@lru_cache(maxsize=_CACHED_STATEMENTS)
def matches_between(filters: tuple[Filter, ...]) -> Statement:
    """Evaluate filters on the events between two places."""
    until = _place <= _bound("end_xid", "end_id")
    event = sa.select(*_place.clauses, task_events.c.payload).where(_is_behind, until)
    subquery = event.subquery("event")
    return Statement("stream filters", _with_matches([], subquery, subquery, filters))


def _with_matches(
    columns: Sequence[AnyColumn],
    source: sa.FromClause,
    event: sa.FromClause,
    filters: tuple[Filter, ...],
) -> AnySelect:
    for side, name in (("before", "matched"), ("after", "matches")) if filters else ():
        # The conditions of lists, on the row in the event's payload.
        state = sa.func.jsonb_populate_record(
            sa.literal_column("NULL::tasks"), event.c.payload[side]
        ).table_valued(*(sa.column(c.name, c.type) for c in WRITTEN_COLUMNS), name=side)
        source = source.join(state, sa.true())
        exists = sa.and_(state.c.id.is_not(None), state.c.deleted_at.is_(None))
        conditions = [sa.and_(exists, condition(filter_, state)) for filter_ in filters]
        cases = [sa.case((matches, True), else_=False) for matches in conditions]
        answers: AnyColumn = array(cases, type_=sa.Boolean)
        columns = [*columns, answers.label(name)]
    return sa.select(*columns).select_from(source).order_by(event.c.xid, event.c.id)


@lru_cache(maxsize=_CACHED_STATEMENTS)
def initial_page(filter_: Filter | None, *, is_first: bool) -> Statement:
    """Select the next tasks that match, in the order of their ids, and the snapshot."""
    page = _undeleted(filter_, is_first=is_first).limit(sa.bindparam("limit"))
    return Statement("initial page", _with_snapshot(page))


@lru_cache(maxsize=_CACHED_STATEMENTS)
def initial_tasks(filter_: Filter | None, *, is_first: bool) -> Statement:
    """Select those of the next `ids` tasks that match, the last id examined, and the snapshot."""
    beyond = sa.select(tasks.c.id).order_by(tasks.c.id).offset(sa.bindparam("ids") - 1).limit(1)
    if not is_first:
        beyond = beyond.where(tasks.c.id > sa.bindparam("after"))
    last = beyond.scalar_subquery()
    page = _undeleted(filter_, is_first=is_first).where(
        tasks.c.id <= sa.func.coalesce(last, _LAST_ID)
    )
    return Statement("initial tasks", _with_snapshot(page).add_columns(last.label("last_id")))


def _undeleted(filter_: Filter | None, *, is_first: bool) -> AnySelect:
    statement = sa.select(*TASK_COLUMNS).where(tasks.c.deleted_at.is_(None)).order_by(tasks.c.id)
    if filter_ is not None:
        statement = statement.where(condition(filter_))
    return statement if is_first else statement.where(tasks.c.id > sa.bindparam("after"))


def _with_snapshot(page: AnySelect) -> AnySelect:
    """Add the snapshot to each row; without a task there is one row with NULLs."""
    rows = page.lateral("page")
    seen = sa.func.pg_current_snapshot().cast(sa.Text).label("seen")
    snapshot = sa.select(seen).subquery("snapshot")
    joined = snapshot.outerjoin(rows, sa.true())
    return sa.select(snapshot.c.seen, *rows.c).select_from(joined).order_by(rows.c.id)


# The first events, up to one that is not old: the events that are kept have no gap.
_first = (
    sa.select(
        task_events.c.xid,
        task_events.c.id,
        sa.func.bool_and(task_events.c.occurred_at < long_ago())
        .over(order_by=_place.clauses)
        .label("is_old"),
    )
    .order_by(*_place)
    .limit(sa.bindparam("most"))
    .subquery("first")
)
_removed = (
    sa.delete(task_events)
    .where(_place.in_(sa.select(_first.c.xid, _first.c.id).where(_first.c.is_old)))
    .returning(task_events.c.xid, task_events.c.id, _version.label("version"))
    .cte("removed")
)
_last = (
    sa.select(_removed).order_by(_removed.c.xid.desc(), _removed.c.id.desc()).limit(1).cte("last")
)
TRIM = Statement(
    "trim",
    sa.select(_removed).add_cte(
        sa.update(event_horizon)
        .where(_horizon_place < sa.tuple_(_last.c.xid, _last.c.id))
        .values({"xid": _last.c.xid, "id": _last.c.id, "version": _last.c.version})
        .cte("horizon")
    ),
)


def adopt_restored(connection: sa.Connection) -> bool:
    """Move events of another server's dump into the past, if its transaction ids are ahead.

    Each task's history keeps the order of `id`; streams cannot be resumed in it.
    """
    future = sa.func.pg_snapshot_xmax(sa.func.pg_current_snapshot(), type_=Xid8())

    def ahead(table: sa.FromClause) -> sa.Exists:
        return sa.exists().where(table.c.xid >= future)

    if not connection.scalar(sa.select(sa.or_(*map(ahead, (task_events, event_horizon, tasks))))):
        return False
    connection.execute(sa.update(task_events).values(xid=sa.literal_column("'1'")))
    settled = sa.update(tasks).where(tasks.c.xid >= future)
    connection.execute(settled.values(xid=sa.literal_column("'0'")))
    now = sa.func.pg_current_xact_id()
    connection.execute(sa.update(event_horizon).values(xid=now, id=0, version=0))
    return True
