"""Define the tables, with the contract's rules (task.proto) as constraints."""

import datetime as dt
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR
from sqlalchemy.dialects.postgresql.base import ischema_names

AnyColumn: TypeAlias = sa.ColumnElement[Any]
AnySelect: TypeAlias = sa.Select[Any]

metadata = sa.MetaData(
    naming_convention={"pk": "pk_%(table_name)s", "ck": "ck_%(table_name)s_%(constraint_name)s"}
)

SEARCH_CONFIG = sa.text("'simple'::regconfig")


class Xid8(sa.types.UserDefinedType[int]):
    """PostgreSQL's transaction id of 64 bits, which never wraps around."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "xid8"


ischema_names["xid8"] = Xid8  # So that Alembic recognises it in the database.

_required = partial(sa.Column, nullable=False)
_TIME = sa.DateTime(timezone=True)
_UUID = sa.Uuid(as_uuid=False)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("id", _UUID, primary_key=True),
    _required("title", sa.Text),
    _required("description", sa.Text, server_default=""),
    _required(
        "status", sa.SmallInteger, comment="1 pending, 2 in progress, 3 completed, 4 cancelled"
    ),
    _required("priority", sa.SmallInteger, comment="1 low, 2 medium, 3 high, 4 urgent"),
    _required("assigned_to", sa.Text, server_default=""),
    sa.Column("due_date", _TIME),
    _required("tags", ARRAY(sa.Text), server_default="{}"),
    _required("created_by", sa.Text),
    _required("created_at", _TIME, server_default=sa.func.now()),
    _required("updated_at", _TIME, server_default=sa.func.now()),
    sa.Column("completed_at", _TIME),
    sa.Column("deleted_at", _TIME),
    _required("version", sa.BigInteger, server_default="1"),
    _required("xid", Xid8, server_default=sa.text("'0'::xid8")),
    sa.CheckConstraint("char_length(title) BETWEEN 1 AND 200", name="title_length"),
    sa.CheckConstraint("char_length(description) <= 2000", name="description_length"),
    sa.CheckConstraint("char_length(assigned_to) <= 200", name="assigned_to_length"),
    sa.CheckConstraint("status BETWEEN 1 AND 4", name="status_known"),
    sa.CheckConstraint("priority BETWEEN 1 AND 4", name="priority_known"),
    sa.CheckConstraint("cardinality(tags) <= 10", name="tags_count"),
    sa.CheckConstraint(
        "(status = 3) = (completed_at IS NOT NULL)", name="completed_at_follows_status"
    ),
    # Computed by PostgreSQL with functions of a migration, for filters (docs/decisions/0016).
    _required("search", TSVECTOR, sa.Computed("task_search(title, description)", persisted=True)),
    _required("tag_keys", ARRAY(sa.Text), sa.Computed("task_tag_keys(tags)", persisted=True)),
    sa.CheckConstraint("version >= 1", name="version_positive"),
    sa.Index("idx_task_search", "search", postgresql_using="gin"),
    sa.Index("idx_task_tags", "tag_keys", postgresql_using="gin"),
)

WRITTEN_COLUMNS = tuple(column for column in tasks.c if column.computed is None)

IN_PROGRESS, COMPLETED = 2, 3

TIMES = ("due_date", "created_at", "updated_at", "completed_at", "deleted_at")


class TaskRow(NamedTuple):
    """A row of `tasks`, its columns in the table's order; `xid` is for events only."""

    id: str
    title: str
    description: str
    status: int
    priority: int
    assigned_to: str
    due_date: dt.datetime | None
    tags: list[str]
    created_by: str
    created_at: dt.datetime
    updated_at: dt.datetime
    completed_at: dt.datetime | None
    deleted_at: dt.datetime | None
    version: int


TASK_COLUMNS = tuple(tasks.c[name] for name in TaskRow._fields)

requests = sa.Table(
    "requests",
    metadata,
    sa.Column("principal", sa.Text, primary_key=True),
    sa.Column("request_id", _UUID, primary_key=True),
    _required("fingerprint", sa.LargeBinary),
    _required("task_id", _UUID),
    _required("created_at", _TIME, server_default=sa.func.now()),
    sa.Index("idx_request_created_at", "created_at"),
    comment="Writes that were asked with a request id and took place",
)

# Events are ordered by (xid, id), see docs/decisions/0007. `id` to `payload` have the names that
# Debezium's event router expects of a transactional outbox.
task_events = sa.Table(
    "task_events",
    metadata,
    _required("xid", Xid8, comment="The newest transaction that wrote the task so far"),
    _required("id", sa.BigInteger, sa.Identity(always=True)),
    _required("aggregatetype", sa.Text, server_default="task"),
    _required("aggregateid", _UUID),
    _required("type", sa.Text),
    _required("payload", JSONB, comment="The task's row before and after"),
    _required("principal", sa.Text),
    sa.Column("request_id", _UUID),
    sa.Column("trace_id", sa.Text),
    _required("occurred_at", _TIME, server_default=sa.func.now()),
    _required(
        "written_by",
        Xid8,
        server_default=sa.text("pg_current_xact_id()"),
        comment="The transaction that wrote it",
    ),
    sa.PrimaryKeyConstraint("xid", "id"),
    sa.CheckConstraint("type IN ('created', 'updated', 'deleted', 'undeleted')", name="type_known"),
    sa.Index("idx_task_event_history", "aggregateid", "xid", "id"),
    comment="What happened to tasks",
)

event_horizon = sa.Table(
    "event_horizon",
    metadata,
    _required("xid", Xid8),
    _required("id", sa.BigInteger),
    _required("version", sa.BigInteger, server_default="0"),
    comment="One row: the last event that was removed. What follows it is all there",
)

# Triggers add every write of tasks to the counters of a slot (migration 0005), and statistics read
# the sums. What was due in a past hour is counted under the hour '-infinity'.
task_counters = sa.Table(
    "task_counters",
    metadata,
    sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("status", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("priority", sa.SmallInteger, primary_key=True, autoincrement=False),
    _required("total", sa.BigInteger),
    comment="The number of tasks that are not deleted is the sum over the slots",
    postgresql_with={"fillfactor": "50"},  # Room for new versions of a row on its page.
)

due_counters = sa.Table(
    "due_counters",
    metadata,
    _required("slot", sa.Integer),
    _required("hour", _TIME),
    _required("total", sa.BigInteger),
    sa.PrimaryKeyConstraint("hour", "slot"),
    comment="The number of open tasks that are due in an hour is the sum over the slots",
    postgresql_with={"fillfactor": "50"},
)

# A time that is absent compares as one after all others, and in a descending order as one before
# all others. The indexes hold this expression, so that a page can begin at
# (due_date, created_at, id) > (…) whether the due date is there or not.
_Time: TypeAlias = sa.ColumnElement[dt.datetime]
INFINITY: _Time = sa.literal_column("'infinity'::timestamp with time zone")
MINUS_INFINITY: _Time = sa.literal_column("'-infinity'::timestamp with time zone")


def long_ago() -> _Time:
    """Return the time `age` ago, a parameter of the statement, by PostgreSQL's clock."""
    return sa.func.now() - sa.bindparam("age", type_=sa.Interval)


def absent_last(column: _Time, *, descending: bool = False) -> _Time:
    """Replace NULL by a value that comes last in an order of this direction."""
    return sa.func.coalesce(column, MINUS_INFINITY if descending else INFINITY)


def _ordered(name: str, *columns: AnyColumn) -> sa.Index:
    """Define an index that finds by its columns and returns a page in the list's order."""
    return sa.Index(name, *columns, tasks.c.created_at, tasks.c.id)


_ordered("idx_task_created_at")
_ordered("idx_task_updated_at", tasks.c.updated_at)
_ordered("idx_task_due_date", absent_last(tasks.c.due_date))
_ordered("idx_task_due_date_desc", absent_last(tasks.c.due_date, descending=True))
_ordered("idx_task_status", tasks.c.status)
_ordered("idx_task_priority", tasks.c.priority)
# The most urgent first, and of these what is due first: one direction, as the priority is negated.
NEGATED_PRIORITY: sa.ColumnElement[int] = -tasks.c.priority
_ordered("idx_task_urgency", NEGATED_PRIORITY, absent_last(tasks.c.due_date))
_ordered("idx_task_assigned_to", tasks.c.assigned_to)
_ordered("idx_task_title", tasks.c.title)
# Has all columns of filtered statistics, so that they are counted from the index alone.
sa.Index(
    "idx_task_status_priority",
    tasks.c.status,
    tasks.c.priority,
    tasks.c.due_date,
    postgresql_where=sa.text("deleted_at IS NULL"),
)
# For the tasks that are due in this hour: how many of them are overdue is not counted yet.
sa.Index(
    "idx_task_open_due_date",
    tasks.c.due_date,
    postgresql_where=sa.text("deleted_at IS NULL AND status IN (1, 2)"),
)
# For those few that wait to be purged.
sa.Index(
    "idx_task_deleted_at",
    absent_last(tasks.c.deleted_at),
    postgresql_where=tasks.c.deleted_at.is_not(None),
)
