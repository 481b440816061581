"""tasks and requests

Revision: 0001, the first.
"""

from alembic import op

revision = "0001"
down_revision = None
oldest_build = "0001"

_TABLES = """
-- squawk-ignore-file prefer-text-field -- of Alembic's own table
CREATE TABLE requests (
    principal text NOT NULL,
    request_id uuid NOT NULL,
    fingerprint bytea NOT NULL,
    task_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_requests PRIMARY KEY (principal, request_id)
);
COMMENT ON TABLE requests IS 'Writes that were asked with a request id and took place';
CREATE TABLE tasks (
    id uuid NOT NULL,
    title text NOT NULL,
    description text NOT NULL DEFAULT '',
    status smallint NOT NULL,
    priority smallint NOT NULL,
    assigned_to text NOT NULL DEFAULT '',
    due_date timestamptz,
    tags text[] NOT NULL DEFAULT '{}',
    created_by text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz,
    deleted_at timestamptz,
    version bigint NOT NULL DEFAULT '1',
    CONSTRAINT ck_tasks_completed_at_follows_status
        CHECK ((status = 3) = (completed_at IS NOT NULL)),
    CONSTRAINT ck_tasks_tags_count CHECK (cardinality(tags) <= 10),
    CONSTRAINT ck_tasks_assigned_to_length CHECK (char_length(assigned_to) <= 200),
    CONSTRAINT ck_tasks_description_length CHECK (char_length(description) <= 2000),
    CONSTRAINT ck_tasks_title_length CHECK (char_length(title) BETWEEN 1 AND 200),
    CONSTRAINT ck_tasks_priority_known CHECK (priority BETWEEN 1 AND 4),
    CONSTRAINT ck_tasks_status_known CHECK (status BETWEEN 1 AND 4),
    CONSTRAINT ck_tasks_version_positive CHECK (version >= 1),
    CONSTRAINT pk_tasks PRIMARY KEY (id)
);
COMMENT ON COLUMN tasks.status IS '1 pending, 2 in progress, 3 completed, 4 cancelled';
COMMENT ON COLUMN tasks.priority IS '1 low, 2 medium, 3 high, 4 urgent';
"""
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
    op.execute(_TABLES)
    op.execute(_INDEXES)


def downgrade() -> None:
    op.execute("DROP TABLE tasks, requests")
