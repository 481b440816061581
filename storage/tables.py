"""Define the tables, as `alembic check` compares them with the migrations.

The constraints repeat the contract's rules (proto/taskservice/v1/task.proto), so that a row that
breaks them cannot exist, whatever wrote it.
"""

import datetime as dt
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    Computed,
    DateTime,
    Identity,
    Index,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Select,
    SmallInteger,
    Table,
    Text,
    Uuid,
    bindparam,
    func,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.types import UserDefinedType

AnyColumn: TypeAlias = ColumnElement[Any]
AnySelect: TypeAlias = Select[Any]

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

SEARCH_CONFIG = text("'simple'::regconfig")


class Xid8(UserDefinedType[int]):
    """PostgreSQL's transaction id of 64 bits, which never wraps around."""

    cache_ok = True

    def get_col_spec(self, **_: object) -> str:
        return "xid8"


# So that Alembic recognises it in the database.
ischema_names["xid8"] = Xid8

tasks = Table(
    "tasks",
    metadata,
    Column("id", Uuid(as_uuid=False), primary_key=True),
    Column("title", Text, nullable=False),
    Column("description", Text, nullable=False, server_default=""),
    Column(
        "status",
        SmallInteger,
        nullable=False,
        comment="1 pending, 2 in progress, 3 completed, 4 cancelled",
    ),
    Column(
        "priority",
        SmallInteger,
        nullable=False,
        comment="1 low, 2 medium, 3 high, 4 urgent",
    ),
    Column("assigned_to", Text, nullable=False, server_default=""),
    Column("due_date", DateTime(timezone=True)),
    Column("tags", ARRAY(Text), nullable=False, server_default="{}"),
    Column("created_by", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("updated_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("completed_at", DateTime(timezone=True)),
    Column("deleted_at", DateTime(timezone=True)),
    Column("version", BigInteger, nullable=False, server_default="1"),
    Column("xid", Xid8, nullable=False, server_default=text("'0'::xid8")),
    CheckConstraint("char_length(title) BETWEEN 1 AND 200", name="title_length"),
    CheckConstraint("char_length(description) <= 2000", name="description_length"),
    CheckConstraint("char_length(assigned_to) <= 200", name="assigned_to_length"),
    CheckConstraint("status BETWEEN 1 AND 4", name="status_known"),
    CheckConstraint("priority BETWEEN 1 AND 4", name="priority_known"),
    CheckConstraint("cardinality(tags) <= 10", name="tags_count"),
    CheckConstraint(
        "(status = 3) = (completed_at IS NOT NULL)", name="completed_at_follows_status"
    ),
    # Computed by PostgreSQL with functions of a migration, for filters. Stored, as a search without
    # an index would compute each task's vector (docs/decisions/0016).
    Column(
        "search",
        TSVECTOR,
        Computed("task_search(title, description)", persisted=True),
        nullable=False,
    ),
    Column(
        "tag_keys", ARRAY(Text), Computed("task_tag_keys(tags)", persisted=True), nullable=False
    ),
    CheckConstraint("version >= 1", name="version_positive"),
    Index("idx_task_search", "search", postgresql_using="gin"),
    Index("idx_task_tags", "tag_keys", postgresql_using="gin"),
)

WRITTEN_COLUMNS = tuple(column for column in tasks.c if column.computed is None)


PENDING, IN_PROGRESS, COMPLETED = 1, 2, 3
"""Statuses that statements depend on."""

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

requests = Table(
    "requests",
    metadata,
    Column("principal", Text, primary_key=True),
    Column("request_id", Uuid(as_uuid=False), primary_key=True),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("task_id", Uuid(as_uuid=False), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("idx_request_created_at", "created_at"),
    comment="Writes that were asked with a request id and took place",
)

# Every write inserts an event. Events are ordered by (xid, id), as the numbers of a sequence become
# visible in another order than they are assigned (docs/decisions/0007). `id` to `payload` have the
# names that Debezium's event router expects of a transactional outbox.
task_events = Table(
    "task_events",
    metadata,
    Column(
        "xid", Xid8, nullable=False, comment="The newest transaction that wrote the task so far"
    ),
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("aggregatetype", Text, nullable=False, server_default="task"),
    Column("aggregateid", Uuid(as_uuid=False), nullable=False),
    Column("type", Text, nullable=False),
    Column("payload", JSONB, nullable=False, comment="The task's row before and after"),
    Column("principal", Text, nullable=False),
    Column("request_id", Uuid(as_uuid=False)),
    Column("trace_id", Text),
    Column("occurred_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column(
        "written_by",
        Xid8,
        nullable=False,
        server_default=text("pg_current_xact_id()"),
        comment="The transaction that wrote it",
    ),
    PrimaryKeyConstraint("xid", "id"),
    CheckConstraint("type IN ('created', 'updated', 'deleted', 'undeleted')", name="type_known"),
    Index("idx_task_event_history", "aggregateid", "xid", "id"),
    comment="What happened to tasks",
)

event_horizon = Table(
    "event_horizon",
    metadata,
    Column("xid", Xid8, nullable=False),
    Column("id", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False, server_default="0"),
    comment="One row: the last event that was removed. What follows it is all there",
)

# Triggers add every write of tasks to the counters of a slot (migration 0005), and statistics read
# the sums. What was due in a past hour is counted under the hour '-infinity'.
task_counters = Table(
    "task_counters",
    metadata,
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("status", SmallInteger, primary_key=True, autoincrement=False),
    Column("priority", SmallInteger, primary_key=True, autoincrement=False),
    Column("total", BigInteger, nullable=False),
    comment="The number of tasks that are not deleted is the sum over the slots",
    postgresql_with={"fillfactor": "50"},  # Room for new versions of a row on its page.
)

due_counters = Table(
    "due_counters",
    metadata,
    Column("slot", Integer, nullable=False),
    Column("hour", DateTime(timezone=True), nullable=False),
    Column("total", BigInteger, nullable=False),
    PrimaryKeyConstraint("hour", "slot"),
    comment="The number of open tasks that are due in an hour is the sum over the slots",
    postgresql_with={"fillfactor": "50"},
)

# A time that is absent compares as one after all others. The indexes hold this expression, so
# that a page can begin at (due_date, created_at, id) > (…) whether the due date is there or not.
INFINITY: ColumnElement[dt.datetime] = literal_column("'infinity'::timestamp with time zone")


def long_ago() -> ColumnElement[dt.datetime]:
    """Return the time `age` ago, a parameter of the statement, by PostgreSQL's clock."""
    return func.now() - bindparam("age", type_=Interval)


# In a descending order it has to compare as one before all others, to come last there too.
MINUS_INFINITY: ColumnElement[dt.datetime] = literal_column("'-infinity'::timestamp with time zone")


def absent_last(
    column: ColumnElement[dt.datetime], *, descending: bool = False
) -> ColumnElement[dt.datetime]:
    """Replace NULL by a value that comes last in an order of this direction."""
    return func.coalesce(column, MINUS_INFINITY if descending else INFINITY)


def _ordered(name: str, *columns: AnyColumn) -> Index:
    """Define an index that finds by its columns and returns a page in the list's order."""
    return Index(name, *columns, tasks.c.created_at, tasks.c.id)


_ordered("idx_task_created_at")
_ordered("idx_task_updated_at", tasks.c.updated_at)
_ordered("idx_task_due_date", absent_last(tasks.c.due_date))
_ordered("idx_task_due_date_desc", absent_last(tasks.c.due_date, descending=True))
_ordered("idx_task_status", tasks.c.status)
_ordered("idx_task_priority", tasks.c.priority)
# The most urgent first, and of these what is due first: one direction, as the priority is negated.
NEGATED_PRIORITY: ColumnElement[int] = -tasks.c.priority
_ordered("idx_task_urgency", NEGATED_PRIORITY, absent_last(tasks.c.due_date))
_ordered("idx_task_assigned_to", tasks.c.assigned_to)
_ordered("idx_task_title", tasks.c.title)
# Has all columns of filtered statistics, so that they are counted from the index alone.
Index(
    "idx_task_status_priority",
    tasks.c.status,
    tasks.c.priority,
    tasks.c.due_date,
    postgresql_where=text("deleted_at IS NULL"),
)
# For the tasks that are due in this hour: how many of them are overdue is not counted yet.
Index(
    "idx_task_open_due_date",
    tasks.c.due_date,
    postgresql_where=text("deleted_at IS NULL AND status IN (1, 2)"),
)
# For those few that wait to be purged.
Index(
    "idx_task_deleted_at",
    absent_last(tasks.c.deleted_at),
    postgresql_where=tasks.c.deleted_at.is_not(None),
)
