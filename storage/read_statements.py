"""Statements that read tasks and request records."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Uuid, bindparam, func, select, true
from sqlalchemy.dialects.postgresql import ARRAY

from storage.measures import named
from storage.query import Cursor, Filter, Sort, after, condition, ordering
from storage.tables import IN_PROGRESS, PENDING, TASK_COLUMNS, requests, tasks
from storage.untyped import AnySelect
from storage.write_statements import KEYS, is_deleted

_key = bindparam("key", type_=Uuid(as_uuid=False))

BY_ID = named("get", select(*TASK_COLUMNS).where(tasks.c.id == _key))
BY_IDS = named("get many", select(*TASK_COLUMNS).where(tasks.c.id == KEYS))

REPLAYS = named(
    "find replays",
    select(requests.c.request_id, requests.c.fingerprint, requests.c.task_id, *TASK_COLUMNS)
    .outerjoin(tasks, tasks.c.id == requests.c.task_id)
    .where(requests.c.principal == bindparam("principal"), requests.c.request_id == KEYS),
)


def page(
    filter_: Filter | None,
    order: Sequence[Sort],
    cursor: Cursor | None,
    *,
    limit: int,
    show_deleted: bool,
) -> AnySelect:
    statement = _matching(select(*TASK_COLUMNS), filter_, show_deleted=show_deleted)
    if cursor is not None:
        statement = statement.where(after(order, cursor))
    return named("page", statement.order_by(*ordering(order)).limit(limit))


def count(filter_: Filter | None, *, show_deleted: bool) -> AnySelect:
    statement = named("count", select(func.count()).select_from(tasks))
    return _matching(statement, filter_, show_deleted=show_deleted)


def preview_purge(filter_: Filter, *, sample: int) -> AnySelect:
    matching = (
        select(tasks.c.id, tasks.c.deleted_at).where(is_deleted, condition(filter_)).cte("matching")
    )
    first = select(matching.c.id).order_by(matching.c.deleted_at, matching.c.id).limit(sample)
    return named(
        "preview purge",
        select(
            select(func.count()).select_from(matching).scalar_subquery(),
            func.array(first.scalar_subquery(), type_=ARRAY(Uuid(as_uuid=False))),
        ),
    )


def stats(filter_: Filter | None) -> AnySelect:
    """Count by status and priority; without a task there is one row with NULLs and the time."""
    is_overdue = tasks.c.status.in_((PENDING, IN_PROGRESS)) & (tasks.c.due_date < func.now())
    counted = select(
        tasks.c.status,
        tasks.c.priority,
        func.count().label("total"),
        func.count().filter(is_overdue).label("overdue"),
    ).group_by(tasks.c.status, tasks.c.priority)
    counts = _matching(counted, filter_, show_deleted=False).subquery("counts")
    clock = select(func.now().label("as_of")).subquery("clock")
    statement = select(clock.c.as_of, *counts.c).select_from(clock.outerjoin(counts, true()))
    return named("stats", statement)


def _matching(statement: AnySelect, filter_: Filter | None, *, show_deleted: bool) -> AnySelect:
    if not show_deleted:
        statement = statement.where(~is_deleted)
    return statement if filter_ is None else statement.where(condition(filter_))
