"""events

Revision: 0002, after 0001.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
oldest_build = "0002"

_EVENTS = """
CREATE TABLE event_horizon (xid xid8 NOT NULL, id bigint NOT NULL);
COMMENT ON TABLE event_horizon IS
    'One row: the last event that was removed. What follows it is all there';
INSERT INTO event_horizon VALUES ('0', 0);
CREATE TABLE task_events (
    xid xid8 NOT NULL,
    id bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    aggregatetype text NOT NULL DEFAULT 'task',
    aggregateid uuid NOT NULL,
    type text NOT NULL,
    payload jsonb NOT NULL,
    principal text NOT NULL,
    request_id uuid,
    trace_id text,
    occurred_at timestamptz NOT NULL DEFAULT now(),
    written_by xid8 NOT NULL DEFAULT pg_current_xact_id(),
    CONSTRAINT ck_task_events_type_known
        CHECK (type IN ('created', 'updated', 'deleted', 'undeleted')),
    CONSTRAINT pk_task_events PRIMARY KEY (xid, id)
);
COMMENT ON TABLE task_events IS 'What happened to tasks';
COMMENT ON COLUMN task_events.xid IS 'The newest transaction that wrote the task so far';
COMMENT ON COLUMN task_events.payload IS 'The task''s row before and after';
COMMENT ON COLUMN task_events.written_by IS 'The transaction that wrote it';
CREATE INDEX idx_task_event_history ON task_events (aggregateid, xid, id);
ALTER TABLE tasks ADD xid xid8 NOT NULL DEFAULT '0'::xid8;
-- squawk-ignore require-concurrent-index-creation -- released before this was checked
CREATE INDEX idx_task_deleted_at ON tasks (
    (coalesce(deleted_at, 'infinity'::timestamp with time zone))
) WHERE deleted_at IS NOT NULL;
"""


def upgrade() -> None:
    op.execute(_EVENTS)


def downgrade() -> None:
    op.execute("DROP INDEX idx_task_deleted_at")
    op.execute("ALTER TABLE tasks DROP xid")
    op.execute("DROP TABLE task_events, event_horizon")
