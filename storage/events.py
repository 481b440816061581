"""The events that writes leave: the history of a task, and the stream that watches follow.

Events are ordered by (xid, id), where xid is a transaction id. A stream is read up to the oldest
running transaction (`pg_snapshot_xmin`), below which no event can appear any more.

A position contains the random version that its event left: after a restored backup, or a failover
that lost writes, other events have the same xid and id, and such a position must not be resumed.
docs/decisions/0007 has the reasons.
"""

import datetime as dt
import logging
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

from storage import event_statements as statements
from storage.database import Database
from storage.errors import EventsRemovedError, StatementFailedError
from storage.event_statements import EventRow
from storage.measures import unreadable_events
from storage.query import Filter, form_of
from storage.session import parse_time
from storage.statement import Parameters
from storage.tables import TIMES, TaskRow

log = logging.getLogger(__name__)


class Position(NamedTuple):
    """The place behind an event, with the version that it left; 0 at the stream's beginning."""

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
    matched: tuple[bool, ...] = ()  # Whether each filter of the read matched before the write,
    matches: tuple[bool, ...] = ()  # and whether it matches after it.


class Batch(NamedTuple):
    """The next events of the stream, and the position behind them."""

    events: list[Event]
    position: Position
    at_head: bool  # No further event is settled.
    settled: int  # The transaction id below which no transaction was running.


class Snapshot:
    """The transactions that a statement saw, as PostgreSQL writes them: `xmin:xmax:xip,…`."""

    def __init__(self, text: str) -> None:
        xmin, xmax, running = text.split(":")
        self._xmin, self.end = int(xmin), int(xmax)
        self._running = {int(xid) for xid in running.split(",") if xid}

    def sees(self, xid: int) -> bool:
        return xid < self._xmin or (xid < self.end and xid not in self._running)


class InitialPage(NamedTuple):
    """A page of tasks, the last id that it covers (None for the last page), and its snapshot."""

    tasks: list[TaskRow]
    last_id: str | None
    snapshot: Snapshot


class InitialPages:
    """The pages of tasks that a watch has read: the ids that each covers, and its snapshot."""

    def __init__(self) -> None:
        self._last_ids: list[str] = []
        self._snapshots: list[Snapshot] = []

    def add(self, last_id: str | None, snapshot: Snapshot) -> None:
        """Add a page; without a last id it covers all further ids."""
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
        """The transaction id from which on no page saw any."""
        return self._snapshots[-1].end

    def have_seen(self, event: Event) -> bool:
        page = bisect_left(self._last_ids, event.task_id)
        return self._snapshots[page].sees(event.written_by)


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
        """Return a task's events, newest first, before a position, optionally of one principal."""
        events: list[Event] = []
        while (wanted := limit - len(events)) > 0:  # Once, unless an event cannot be read.
            statement = statements.history(
                by_principal=only_by is not None, is_first=before is None
            )
            place = _place(before) if before else {}
            parameters = {"task_id": task_id, "principal": only_by, "limit": wanted} | place
            rows = [*map(EventRow._make, self._database.read(statement, parameters))]
            events += _events((row, (), _UNFILTERED) for row in rows)
            if len(rows) < wanted:
                break
            before = _position(rows[-1])
        return events

    def head(self) -> Position:
        """Return the end of the stream."""
        row = self._database.read(statements.HEAD)[0]
        horizon, latest = Position(*row[:3]), Position(*row[3:])
        return horizon if latest.id is None else max(horizon, latest)

    def read(
        self, position: Position, *, limit: int, filters: tuple[Filter | None, ...] = ()
    ) -> Batch:
        """Return the readable events behind a position, and whether each filter matches them.

        Raises: EventsRemovedError, also when the position is not of this database's timeline.
        """
        try:
            return self._read(position, limit, filters)
        except StatementFailedError:
            if not any(filters):
                raise
        # A filter cannot be evaluated on one of the events: read them one by one to find it.
        if limit > 1:
            return self.read(position, limit=1, filters=filters)
        batch = self._read(position, 1, ())
        for event in batch.events:
            _report_unreadable(event.position, StatementFailedError)
        return batch._replace(events=[])

    def _read(self, position: Position, limit: int, filters: tuple[Filter | None, ...]) -> Batch:
        groups = _groups(filters)
        parameters = _place(position) | {"version": position.version, "most": limit}
        rows = self._database.read(statements.stream(groups[0]), parameters)
        settled, is_known = rows[0][:2]
        if not is_known:
            raise EventsRemovedError
        found = [row[2:] for row in rows if row[2] is not None]
        events = [EventRow._make(row[: len(EventRow._fields)]) for row in found]
        end = _position(events[-1]) if events else position
        matches = [row[len(EventRow._fields) :] or _UNFILTERED for row in found]
        for group in groups[1:] if found else ():
            places = _place(position) | {"end_xid": str(end.xid), "end_id": end.id}
            more = self._database.read(statements.matches_between(group), places)
            if len(more) != len(events):
                raise EventsRemovedError
            matches = [(a + c, b + d) for (a, b), (c, d) in zip(matches, more, strict=True)]
        return Batch(
            _events((row, filters, match) for row, match in zip(events, matches, strict=True)),
            end,
            at_head=len(found) < limit,
            settled=settled,
        )

    def tasks_as_they_stand(
        self,
        filter_: Filter | None,
        *,
        after: str | None,
        limit: int,
        seconds: float = math.inf,
    ) -> InitialPage:
        """Return the next tasks that match, by their ids. Raises: StatementTimeoutError."""
        form = form_of(filter_)
        statement = statements.initial_page(form.filter_, is_first=after is None)
        parameters = form.values | {"after": after, "limit": limit}
        rows = self._database.read(statement, parameters, seconds=seconds)
        found = [TaskRow._make(row[1:]) for row in rows if row[1] is not None]
        last_id = found[-1].id if len(found) == limit else None
        return InitialPage(found, last_id, Snapshot(rows[0][0]))

    def tasks_among(self, filter_: Filter | None, *, after: str | None, ids: int) -> InitialPage:
        """Return those of the next `ids` tasks that match, in bounded time even if none does."""
        form = form_of(filter_)
        statement = statements.initial_tasks(form.filter_, is_first=after is None)
        rows = self._database.read(statement, form.values | {"after": after, "ids": ids})
        found = [TaskRow._make(row[1:-1]) for row in rows if row[1] is not None]
        return InitialPage(found, rows[0][-1], Snapshot(rows[0][0]))

    def lag_seconds(self) -> float:
        """Return the age of the oldest event that is not settled; 0 without one."""
        return float(self._database.read(statements.LAG)[0][0])

    def trim(self, *, older_than: dt.timedelta, limit: int = 1000) -> int:
        """Remove up to `limit` old events, from the beginning of the stream."""
        return len(self._database.write(statements.TRIM, {"age": older_than, "most": limit}))


# For each filter, whether it matches an event's task before and after the write.
_Matches: TypeAlias = tuple[list[bool], list[bool]]
_UNFILTERED: _Matches = ([], [])


def _events(
    rows: Iterable[tuple[EventRow, Sequence[Filter | None], _Matches]],
) -> list[Event]:
    """Read events from rows; omit and report an unreadable one, so that it hides no other."""
    events = []
    for row, filters, matches in rows:
        try:
            events.append(_event(row, filters, matches))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            _report_unreadable(_position(row), type(error))
    return events


def _report_unreadable(position: Position, error_type: type[Exception]) -> None:
    """Log and count an event, without the error's text: it may quote the clients' data."""
    place = position.xid, position.id
    log.error("an event cannot be read: xid %d, id %d, %s", *place, error_type.__name__)
    unreadable_events.inc()


def _event(row: EventRow, filters: Sequence[Filter | None], matches: _Matches) -> Event:
    before = _task_row(row.payload["before"]) if row.payload.get("before") is not None else None
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
        matched=_in_order(filters, before, matches[0]),
        matches=_in_order(filters, after, matches[1]),
    )


def _place(position: Position) -> Parameters:
    return {"xid": str(position.xid), "id": position.id}  # The driver knows no xid8.


def _position(row: EventRow) -> Position:
    """Read an event's position; its version is 0 if unreadable, as it is in the statements."""
    try:
        version = row.payload["after"]["version"]
    except (KeyError, TypeError):
        version = 0
    return Position(row.xid, row.id, version)


def _in_order(
    filters: Sequence[Filter | None], task: TaskRow | None, matches: Iterable[bool]
) -> tuple[bool, ...]:
    """Give one answer for each filter; None matches every task that is not deleted."""
    exists = task is not None and task.deleted_at is None
    matches = iter(matches)
    return tuple(exists if filter_ is None else next(matches) for filter_ in filters)


def _groups(filters: Sequence[Filter | None]) -> list[tuple[Filter, ...]]:
    size = statements.FILTERS_IN_ONE_STATEMENT
    given = [filter_ for filter_ in filters if filter_ is not None]
    return [tuple(given[n : n + size]) for n in range(0, max(len(given), 1), size)]


def _task_row(state: Parameters) -> TaskRow:
    values = {name: state[name] for name in TaskRow._fields}
    for name in TIMES:
        if values[name] is not None:
            values[name] = parse_time(values[name])
    return TaskRow(**values)
