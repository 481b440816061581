"""The events that writes leave: the history of a task, and the stream that watches follow.

Events are ordered by (xid, id), where xid is a transaction id. A transaction takes its id before it
commits, so that events become visible in another order; but once no transaction below an id
runs any more, nothing can appear below it. A stream is read up to there
(`pg_snapshot_xmin`), and so meets each event once however slowly its transaction committed.

The events of one task are in the order of its writes, for each has the xid of its own transaction
or that of the event before it, whichever is greater. docs/decisions/0007 has the reasons.

A position is always that of an event that was read: its transaction is on disk. The ids of others
are not, and PostgreSQL gives them out again after a crash. A position holds the version that the
event left, which is random: after a restored backup, or a failover that lost writes, other events
get the same xid and id, and a position of the lost timeline must not be resumed.
"""

from __future__ import annotations

import datetime as dt
import logging
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, overload

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Connection,
    Row,
    Select,
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

from storage.database import Database
from storage.errors import EventsRemovedError, StatementFailedError
from storage.measures import count_unreadable_event, named
from storage.query import Filter, condition
from storage.session import parse_time
from storage.tables import (
    TASK_COLUMNS,
    TIMES,
    WRITTEN_COLUMNS,
    TaskRow,
    Xid8,
    event_horizon,
    long_ago,
    task_events,
    tasks,
)

log = logging.getLogger(__name__)

# So many filters are asked about in one statement: it is large, and is kept for the next time.
_GROUP = 16
_KEPT_STATEMENTS = 32

_LAST_ID = "ffffffff-ffff-ffff-ffff-ffffffffffff"


class Position(NamedTuple):
    """A place in the stream of events: behind the event with this xid and id.

    `version` is the one that the event gave to its task; 0 for the beginning of the stream.
    """

    xid: int
    id: int
    version: int = 0


class Event(NamedTuple):
    """A write, and the task before (None for its creation) and after it."""

    position: Position
    written_by: int
    type: str
    task_id: str
    principal: str
    request_id: str | None
    trace_id: str | None
    occurred_at: dt.datetime
    before: TaskRow | None
    after: TaskRow
    matched: tuple[bool, ...] = ()
    """For each filter that was asked about, whether the task matched before the write."""
    matches: tuple[bool, ...] = ()
    """And whether it matches after it."""


class Batch(NamedTuple):
    """The next events of the stream, and where they end."""

    events: list[Event]
    position: Position
    at_head: bool
    """Whether these are all that are settled."""
    settled: int
    """The transaction id below which none was running."""


class Snapshot:
    """Which transactions a statement saw, as PostgreSQL writes it: `xmin:xmax:xip,…`."""

    def __init__(self, text: str) -> None:
        xmin, xmax, running = text.split(":")
        self._xmin, self._xmax = int(xmin), int(xmax)
        self._running = {int(xid) for xid in running.split(",") if xid}

    @property
    def end(self) -> int:
        """The transaction id above which it has seen none."""
        return self._xmax

    def sees(self, xid: int) -> bool:
        return xid < self._xmin or (xid < self._xmax and xid not in self._running)


def adopt_restored(connection: Connection) -> bool:
    """Makes events from another server's dump the past, if that server's transactions were more.

    They stay a history, in which each task's order is that of `id`; a stream cannot be resumed in
    it. Returns whether there was anything to do.
    """
    future = func.pg_snapshot_xmax(func.pg_current_snapshot(), type_=Xid8())
    ahead = [exists().where(table.c.xid >= future) for table in (task_events, event_horizon, tasks)]
    if not connection.scalar(select(or_(*ahead))):
        return False
    connection.execute(update(task_events).values(xid=1))
    connection.execute(update(tasks).where(tasks.c.xid >= future).values(xid=0))
    connection.execute(update(event_horizon).values(xid=func.pg_current_xact_id(), id=0, version=0))
    return True


class InitialPages:
    """The pages of tasks that a watch begins with: the ids that each covers, and what it saw."""

    def __init__(self) -> None:
        self._last_ids: list[str] = []
        self._snapshots: list[Snapshot] = []

    def add(self, last_id: str | None, snapshot: Snapshot) -> None:
        """Without a last id the page covers all that is left."""
        self._snapshots.append(snapshot)
        if last_id is not None:
            self._last_ids.append(last_id)

    @property
    def are_complete(self) -> bool:
        return len(self._snapshots) > len(self._last_ids)

    @property
    def last_id(self) -> str | None:
        return self._last_ids[-1] if self._last_ids else None

    @property
    def end(self) -> int:
        """The transaction id above which no page has seen any."""
        return self._snapshots[-1].end

    def have_seen(self, event: Event) -> bool:
        page = bisect_left(self._last_ids, event.task_id)
        return self._snapshots[page].sees(event.written_by)


class InitialPage(NamedTuple):
    """A page of tasks, the id that it ends with (None when nothing is left), and what it saw."""

    tasks: list[TaskRow]
    last_id: str | None
    snapshot: Snapshot


class EventLog:
    """The events of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def history(
        self,
        task_id: str,
        *,
        limit: int,
        before: Position | None = None,
        only_by: str | None = None,
    ) -> list[Event]:
        """Returns a task's events, the newest first, beginning before a place; of one principal
        only, if he is named."""
        statement = select(*_EVENT).where(task_events.c.aggregateid == task_id)
        if only_by is not None:
            statement = statement.where(task_events.c.principal == only_by)
        events: list[Event] = []
        while (wanted := limit - len(events)) > 0:  # Once, unless an event cannot be read.
            part = statement if before is None else statement.where(_place < _bound())
            part = named("history", part.order_by(*map(desc, _place)).limit(wanted))
            rows = self._database.read(
                part, {"xid": before.xid, "id": before.id} if before else None
            )
            events += _events((row, (), None) for row in rows)
            if len(rows) < wanted:
                break
            before = _position(rows[-1])
        return events

    def head(self) -> Position:
        """Returns where the stream ends now."""
        row = self._database.read(_HEAD)[0]
        horizon = Position(row.horizon_xid, row.horizon_id, row.horizon_version)
        return horizon if row.id is None else max(horizon, Position(row.xid, row.id, row.version))

    def read(
        self, position: Position, *, limit: int, filters: tuple[Filter | None, ...] = ()
    ) -> Batch:
        """Returns what follows a place in the stream, and what each filter says of it.

        An event that PostgreSQL or we cannot read is left out.
        Raises: EventsRemovedError, when some of it is no longer there, or when the place is not
            one of this database's timeline.
        """
        try:
            return self._read(position, limit, filters)
        except StatementFailedError:
            if not any(filters):
                raise
        # A filter's condition cannot be asked about one of the events: which one is seen alone.
        if limit > 1:
            return self.read(position, limit=1, filters=filters)
        batch = self._read(position, 1, ())
        for event in batch.events:
            _report_unreadable(event.position, StatementFailedError)
        return batch._replace(events=[])

    def _read(self, position: Position, limit: int, filters: tuple[Filter | None, ...]) -> Batch:
        groups = _groups(filters)
        rows = self._database.read(_reading(groups[0]), {**position._asdict(), "most": limit})
        if not rows[0].is_known:
            raise EventsRemovedError
        found = [row for row in rows if row.id is not None]
        end = _position(found[-1]) if found else position
        answers = [_Answers(row) for row in found]
        for group in groups[1:] if found else ():
            self._ask(group, position, end, answers)
        events = _events((row, filters, it) for row, it in zip(found, answers, strict=True))
        return Batch(events, end, at_head=len(found) < limit, settled=rows[0].xmin)

    def _ask(
        self, filters: tuple[Filter, ...], begin: Position, end: Position, answers: list[_Answers]
    ) -> None:
        """Adds what these filters say of the events between two places."""
        places = {"xid": begin.xid, "id": begin.id, "end_xid": end.xid, "end_id": end.id}
        rows = self._database.read(_asking(filters), places)
        if len(rows) != len(answers):
            raise EventsRemovedError
        for row, known in zip(rows, answers, strict=True):
            known.add(row)

    def tasks_as_they_stand(
        self,
        filter_: Filter | None,
        *,
        after: str | None,
        limit: int,
        seconds: float = math.inf,
    ) -> InitialPage:
        """Returns the next tasks that match, in the order of their ids.

        Raises: StatementTimeoutError, when so many take too long to find.
        """
        page = _standing(filter_, after).limit(limit)
        rows = self._database.read(named("initial page", _with_snapshot(page)), seconds=seconds)
        found = [TaskRow._make(row[1:]) for row in rows if row.id is not None]
        last_id = found[-1].id if len(found) == limit else None
        return InitialPage(found, last_id, Snapshot(rows[0].seen))

    def tasks_among(self, filter_: Filter | None, *, after: str | None, ids: int) -> InitialPage:
        """Returns those tasks of the next so many that match: it takes no longer if none does."""
        beyond = select(tasks.c.id).order_by(tasks.c.id).offset(ids - 1).limit(1)
        if after is not None:
            beyond = beyond.where(tasks.c.id > after)
        last = beyond.scalar_subquery()
        page = _standing(filter_, after).where(tasks.c.id <= func.coalesce(last, _LAST_ID))
        statement = _with_snapshot(page).add_columns(last.label("last_id"))
        rows = self._database.read(named("initial tasks", statement))
        found = [TaskRow._make(row[1:-1]) for row in rows if row.id is not None]
        return InitialPage(found, rows[0].last_id, Snapshot(rows[0].seen))

    def lag_seconds(self) -> float:
        """Returns how old the oldest event is that no reader gets yet; 0 when there is none.

        It waits for a transaction that began before it, in any database of the server.
        """
        return float(self._database.read(_LAG)[0][0])

    def trim(self, *, older_than: dt.timedelta, limit: int = 1000) -> int:
        """Removes up to `limit` old events, the first ones of the stream."""
        return len(self._database.write(_TRIM, {"age": older_than, "most": limit}))


def _standing(filter_: Filter | None, after: str | None) -> Select[Any]:
    statement = select(*TASK_COLUMNS).where(tasks.c.deleted_at.is_(None)).order_by(tasks.c.id)
    if filter_ is not None:
        statement = statement.where(condition(filter_))
    return statement if after is None else statement.where(tasks.c.id > after)


def _with_snapshot(page: Select[Any]) -> Select[Any]:
    """One row for each task, or one without a task: it always says what was seen."""
    rows = page.lateral("page")
    snapshot = select(func.pg_current_snapshot().cast(Text).label("seen")).subquery("snapshot")
    return (
        select(snapshot.c.seen, *rows.c)
        .select_from(snapshot.outerjoin(rows, true()))
        .order_by(rows.c.id)
    )


class _Answers:
    """What the filters that were asked about say of an event's task, before and after."""

    def __init__(self, row: Row[Any]) -> None:
        self.matched: list[bool] = []
        self.matches: list[bool] = []
        if hasattr(row, "matched"):
            self.add(row)

    def add(self, row: Row[Any]) -> None:
        self.matched += row.matched
        self.matches += row.matches


def _events(
    rows: Iterable[tuple[Row[Any], Sequence[Filter | None], _Answers | None]],
) -> list[Event]:
    """The events that can be read. One that cannot must not hide all others."""
    events = []
    for row, filters, answers in rows:
        try:
            events.append(_event(row, filters, answers))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            _report_unreadable(_position(row), type(error))
    return events


def _report_unreadable(position: Position, error_type: type[Exception]) -> None:
    """Without the error's text, which may quote the task: the callers' data."""
    place = position.xid, position.id
    log.error("an event cannot be read: xid %d, id %d, %s", *place, error_type.__name__)
    count_unreadable_event()


def _event(
    row: Row[Any], filters: Sequence[Filter | None] = (), answers: _Answers | None = None
) -> Event:
    before = _task_row(row.payload.get("before"))
    after = _task_row(row.payload["after"])
    return Event(
        position=_position(row),
        written_by=row.written_by,
        type=row.type,
        task_id=row.aggregateid,
        principal=row.principal,
        request_id=row.request_id,
        trace_id=row.trace_id,
        occurred_at=row.occurred_at,
        before=before,
        after=after,
        matched=_answered(filters, before, answers.matched if answers else ()),
        matches=_answered(filters, after, answers.matches if answers else ()),
    )


def _position(row: Row[Any]) -> Position:
    """Where an event is; its version is 0 if it has none that can be read, as `_version` says."""
    try:
        version = row.payload["after"]["version"]
    except (KeyError, TypeError):
        version = 0
    return Position(row.xid, row.id, version)


def _answered(
    filters: Sequence[Filter | None], task: TaskRow | None, answers: Iterable[bool]
) -> tuple[bool, ...]:
    """The answers in their order; without a filter, every task that is there matches."""
    there = task is not None and task.deleted_at is None
    answers = iter(answers)
    return tuple(there if filter_ is None else next(answers) for filter_ in filters)


def _groups(filters: Sequence[Filter | None]) -> list[tuple[Filter, ...]]:
    asked = [filter_ for filter_ in filters if filter_ is not None]
    return [tuple(asked[n : n + _GROUP]) for n in range(0, max(len(asked), 1), _GROUP)]


@overload
def _task_row(state: dict[str, Any]) -> TaskRow: ...
@overload
def _task_row(state: None) -> None: ...
def _task_row(state: dict[str, Any] | None) -> TaskRow | None:
    if state is None:
        return None
    values = {name: state[name] for name in TaskRow._fields}
    for name in TIMES:
        if values[name] is not None:
            values[name] = parse_time(values[name])
    return TaskRow(**values)


_EVENT = [c for c in task_events.c if c.name != "aggregatetype"]
_place = tuple_(task_events.c.xid, task_events.c.id)


def _bound(xid: str = "xid", id_: str = "id") -> Any:
    """A place that the statement's parameters give."""
    return tuple_(bindparam(xid, type_=Xid8), bindparam(id_, type_=BigInteger))


_behind = _place > _bound()
_version = func.coalesce(cast(task_events.c.payload[("after", "version")].astext, BigInteger), 0)
_horizon_place = tuple_(event_horizon.c.xid, event_horizon.c.id)

_snapshot = select(
    func.pg_snapshot_xmin(func.pg_current_snapshot(), type_=Xid8()).label("xmin"),
).subquery("snapshot")
_is_settled = task_events.c.xid < _snapshot.c.xmin

_latest = (
    select(task_events.c.xid, task_events.c.id, _version.label("version"))
    .where(_is_settled)
    .order_by(*map(desc, _place))
    .limit(1)
    .lateral("latest")
)
_HEAD = named(
    "stream head",
    select(
        *(column.label(f"horizon_{column.name}") for column in event_horizon.c), *_latest.c
    ).select_from(event_horizon.join(_snapshot, true()).outerjoin(_latest, true())),
)

# A position is one of this timeline if its event is there, or is the last one that was removed.
_given_version = bindparam("version", type_=BigInteger)
_is_known = or_(
    and_(_horizon_place == _bound(), event_horizon.c.version == _given_version),
    exists().where(_place == _bound(), _version == _given_version),
)

_age = func.extract("epoch", func.clock_timestamp() - func.min(task_events.c.occurred_at))
_LAG = named(
    "stream lag",
    select(func.coalesce(_age, 0)).where(
        task_events.c.xid >= func.pg_snapshot_xmin(func.pg_current_snapshot(), type_=Xid8())
    ),
)


@lru_cache(maxsize=_KEPT_STATEMENTS)
def _reading(filters: tuple[Filter, ...]) -> Select[Any]:
    """One row for each event, or one without an event: it always says how far was read."""
    event = (
        select(*_EVENT)
        .where(_behind, _is_settled)
        .order_by(*_place)
        .limit(bindparam("most"))
        .lateral("event")
    )
    source = event_horizon.join(_snapshot, true()).outerjoin(event, true())
    columns = [*_snapshot.c, _is_known.label("is_known"), *event.c]
    return named("stream", _with_answers(columns, source, event, filters))


@lru_cache(maxsize=_KEPT_STATEMENTS)
def _asking(filters: tuple[Filter, ...]) -> Select[Any]:
    until = _place <= _bound("end_xid", "end_id")
    event = select(*_place.clauses, task_events.c.payload).where(_behind, until)
    subquery = event.subquery("event")
    return named("stream filters", _with_answers([], subquery, subquery, filters))


def _with_answers(
    columns: list[Any], source: Any, event: Any, filters: tuple[Filter, ...]
) -> Select[Any]:
    in_order = event.c.xid, event.c.id
    if not filters:
        return select(*columns).select_from(source).order_by(*in_order)
    answers = []
    for side, name in (("before", "matched"), ("after", "matches")):
        # The very conditions that lists use, on the row as the event has it.
        state = func.jsonb_populate_record(
            literal_column("NULL::tasks"), event.c.payload[side]
        ).table_valued(*(column(c.name, c.type) for c in WRITTEN_COLUMNS), name=side)
        source = source.join(state, true())
        answers.append(_answers(filters, state).label(name))
    return select(*columns, *answers).select_from(source).order_by(*in_order)


def _answers(filters: Sequence[Filter], state: Any) -> ColumnElement[Any]:
    there = and_(state.c.id.is_not(None), state.c.deleted_at.is_(None))
    return array(
        [case((and_(there, condition(filter_, state)), True), else_=False) for filter_ in filters],
        type_=Boolean,
    )


# The first events, up to one that is not old: what is kept has no gap.
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
_gone = (
    delete(task_events)
    .where(_place.in_(select(_first.c.xid, _first.c.id).where(_first.c.is_old)))
    .returning(task_events.c.xid, task_events.c.id, _version.label("version"))
    .cte("gone")
)
_last = select(_gone).order_by(_gone.c.xid.desc(), _gone.c.id.desc()).limit(1).cte("last")
_TRIM = named(
    "trim",
    select(_gone).add_cte(
        update(event_horizon)
        .where(_horizon_place < tuple_(_last.c.xid, _last.c.id))
        .values({"xid": _last.c.xid, "id": _last.c.id, "version": _last.c.version})
        .cte("horizon")
    ),
)
