"""tasks and requests

Revision: 0001, the first.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_INDEXES = """
CREATE INDEX idx_request_created_at ON requests (created_at);
CREATE INDEX idx_task_assigned_to ON tasks (assigned_to, created_at, id);
CREATE INDEX idx_task_created_at ON tasks (created_at, id);
CREATE INDEX idx_task_due_date ON tasks (
    (coalesce(due_date, 'infinity'::timestamp with time zone)), created_at, id
);
CREATE INDEX idx_task_priority ON tasks (priority, created_at, id);
CREATE INDEX idx_task_search ON tasks USING gin (to_tsvector(
    'simple'::regconfig, translate((title || ' '::text) || description, '<>'::text, '  '::text)
));
CREATE INDEX idx_task_status ON tasks (status, created_at, id);
CREATE INDEX idx_task_status_priority ON tasks (status, priority, due_date)
    WHERE deleted_at IS NULL;
CREATE INDEX idx_task_tags ON tasks USING gin (tags);
CREATE INDEX idx_task_title ON tasks (title, created_at, id);
CREATE INDEX idx_task_updated_at ON tasks (updated_at, created_at, id);
CREATE INDEX idx_task_urgency ON tasks (
    (- priority), (coalesce(due_date, 'infinity'::timestamp with time zone)), created_at, id
);
"""


def upgrade() -> None:
    op.create_table(
        "requests",
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("task_id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("principal", "request_id", name=op.f("pk_requests")),
        comment="Writes that were asked with a request id and took place",
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.Uuid(as_uuid=False), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "status",
            sa.SmallInteger(),
            nullable=False,
            comment="1 pending, 2 in progress, 3 completed, 4 cancelled",
        ),
        sa.Column(
            "priority",
            sa.SmallInteger(),
            nullable=False,
            comment="1 low, 2 medium, 3 high, 4 urgent",
        ),
        sa.Column("assigned_to", sa.Text(), server_default="", nullable=False),
        sa.Column("due_date", sa.DateTime(timezone=True), nullable=True),
        sa.Column("tags", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("completed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("version", sa.BigInteger(), server_default="1", nullable=False),
        sa.CheckConstraint(
            "(status = 3) = (completed_at IS NOT NULL)",
            name=op.f("ck_tasks_completed_at_follows_status"),
        ),
        sa.CheckConstraint("cardinality(tags) <= 10", name=op.f("ck_tasks_tags_count")),
        sa.CheckConstraint(
            "char_length(assigned_to) <= 200", name=op.f("ck_tasks_assigned_to_length")
        ),
        sa.CheckConstraint(
            "char_length(description) <= 2000", name=op.f("ck_tasks_description_length")
        ),
        sa.CheckConstraint(
            "char_length(title) BETWEEN 1 AND 200", name=op.f("ck_tasks_title_length")
        ),
        sa.CheckConstraint("priority BETWEEN 1 AND 4", name=op.f("ck_tasks_priority_known")),
        sa.CheckConstraint("status BETWEEN 1 AND 4", name=op.f("ck_tasks_status_known")),
        sa.CheckConstraint("version >= 1", name=op.f("ck_tasks_version_positive")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
    )
    op.execute(_INDEXES)


def downgrade() -> None:
    op.drop_table("tasks")
    op.drop_table("requests")
