"""events

Revision: 0002, after 0001.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from storage.tables import Xid8

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "event_horizon",
        sa.Column("xid", Xid8(), nullable=False),
        sa.Column("id", sa.BigInteger(), nullable=False),
        comment="One row: the last event that was removed. What follows it is all there",
    )
    op.execute("INSERT INTO event_horizon VALUES ('0', 0)")
    op.create_table(
        "task_events",
        sa.Column(
            "xid",
            Xid8(),
            nullable=False,
            comment="The newest transaction that wrote the task so far",
        ),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("aggregatetype", sa.Text(), server_default="task", nullable=False),
        sa.Column("aggregateid", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column(
            "payload",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="The task's row before and after",
        ),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Uuid(as_uuid=False), nullable=True),
        sa.Column("trace_id", sa.Text(), nullable=True),
        sa.Column(
            "occurred_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "written_by",
            Xid8(),
            server_default=sa.text("pg_current_xact_id()"),
            nullable=False,
            comment="The transaction that wrote it",
        ),
        sa.CheckConstraint(
            "type IN ('created', 'updated', 'deleted', 'undeleted')",
            name=op.f("ck_task_events_type_known"),
        ),
        sa.PrimaryKeyConstraint("xid", "id", name=op.f("pk_task_events")),
        comment="What happened to tasks",
    )
    op.create_index("idx_task_event_history", "task_events", ["aggregateid", "xid", "id"])
    op.add_column(
        "tasks", sa.Column("xid", Xid8(), server_default=sa.text("'0'::xid8"), nullable=False)
    )
    op.execute(
        "CREATE INDEX idx_task_deleted_at ON tasks "
        "((coalesce(deleted_at, 'infinity'::timestamp with time zone))) "
        "WHERE deleted_at IS NOT NULL"
    )


def downgrade() -> None:
    op.drop_index("idx_task_deleted_at", "tasks")
    op.drop_column("tasks", "xid")
    op.drop_table("task_events")
    op.drop_table("event_horizon")
