"""counters of tasks

Revision: 0005, after 0004.

Triggers keep the counts that statistics read: they cover every way to write tasks, the builds
before this one too. Tasks cannot be written while the migration counts those that exist.
"""

from alembic import op

revision = "0005"
down_revision = "0004"
oldest_build = "0005"

_TABLES = """
CREATE TABLE task_counters (
    slot integer NOT NULL,
    status smallint NOT NULL,
    priority smallint NOT NULL,
    total bigint NOT NULL,
    CONSTRAINT pk_task_counters PRIMARY KEY (slot, status, priority)
) WITH (fillfactor = 50);
COMMENT ON TABLE task_counters IS
    'The number of tasks that are not deleted is the sum over the slots';
CREATE TABLE due_counters (
    slot integer NOT NULL,
    hour timestamptz NOT NULL,
    total bigint NOT NULL,
    CONSTRAINT pk_due_counters PRIMARY KEY (hour, slot)
) WITH (fillfactor = 50);
COMMENT ON TABLE due_counters IS
    'The number of open tasks that are due in an hour is the sum over the slots';
-- squawk-ignore require-concurrent-index-creation -- released before this was checked
CREATE INDEX idx_task_open_due_date ON tasks (due_date)
    WHERE deleted_at IS NULL AND status IN (1, 2);
"""

# Each session adds to counters of its own, so that no writer waits for the commit of another.
_SLOT = "pg_backend_pid()"
_COUNTED = "status, priority, due_date FROM {} WHERE deleted_at IS NULL"
_NEW = f"SELECT 1 AS change, {_COUNTED.format('new_rows')}"
_OLD = f"SELECT -1 AS change, {_COUNTED.format('old_rows')}"
_EVENTS = {
    "insert": ("NEW TABLE AS new_rows", _NEW),
    "update": ("OLD TABLE AS old_rows NEW TABLE AS new_rows", f"{_NEW} UNION ALL {_OLD}"),
    "delete": ("OLD TABLE AS old_rows", _OLD),
}


def _add(rows: str, slot: str) -> str:
    """Return the statement that adds rows with a `change` to the counters.

    What is due in a past hour is counted as due long ago. All writers have one order of rows, so
    that they cannot wait for each other in a circle.
    """
    return f"""
        WITH changed AS MATERIALIZED ({rows}),
        by_status AS (
            INSERT INTO task_counters AS counter (slot, status, priority, total)
            SELECT {slot}, status, priority, sum(change) FROM changed
            GROUP BY status, priority HAVING sum(change) <> 0 ORDER BY status, priority
            ON CONFLICT (slot, status, priority)
            DO UPDATE SET total = counter.total + excluded.total
        )
        INSERT INTO due_counters AS counter (slot, hour, total)
        SELECT {slot}, hour, sum(change)
        FROM (
            SELECT change, CASE
                WHEN due_date < date_trunc('hour', now(), 'UTC') THEN '-infinity'
                ELSE date_trunc('hour', due_date, 'UTC')
            END AS hour
            FROM changed WHERE status IN (1, 2) AND due_date IS NOT NULL
        ) AS due
        GROUP BY hour HAVING sum(change) <> 0 ORDER BY hour
        ON CONFLICT (slot, hour) DO UPDATE SET total = counter.total + excluded.total
    """  # noqa: S608


def upgrade() -> None:
    op.execute("LOCK TABLE tasks IN SHARE ROW EXCLUSIVE MODE")
    op.execute(_TABLES)
    for event, (tables, rows) in _EVENTS.items():
        _create_trigger(event, f"REFERENCING {tables}", f"{_add(rows, _SLOT)};")
    _create_trigger("truncate", "", "DELETE FROM task_counters; DELETE FROM due_counters;")
    # Sees all that was written before the triggers, as the table is locked.
    op.execute(_add(f"SELECT 1 AS change, {_COUNTED.format('tasks')}", "0"))


def _create_trigger(event: str, tables: str, body: str) -> None:
    name = f"count_tasks_on_{event}"
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN {body} RETURN NULL; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {name} AFTER {event} ON tasks {tables} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {name}()"
    )


def downgrade() -> None:
    for event in (*_EVENTS, "truncate"):
        op.execute(f"DROP TRIGGER count_tasks_on_{event} ON tasks")
        op.execute(f"DROP FUNCTION count_tasks_on_{event}")
    op.execute("DROP INDEX idx_task_open_due_date")
    op.execute("DROP TABLE due_counters, task_counters")
