"""Statements on the counters of tasks, which triggers keep (migration 0005).

A counter is the sum of its slots. All changes add to it, so that a correction is right whatever is
written meanwhile.
"""

from sqlalchemy import text

from storage.statement import Statement

# What is due in this hour is counted one by one, up to now.
STATS = Statement(
    "stats",
    text("""
        SELECT now(), due_before.total + due_now.total, counted.*
        FROM (
            SELECT coalesce(sum(total), 0)::bigint AS total FROM due_counters
            WHERE hour < date_trunc('hour', now(), 'UTC')
        ) AS due_before
        CROSS JOIN (
            SELECT count(*) AS total FROM tasks
            WHERE deleted_at IS NULL AND status IN (1, 2)
                AND due_date >= date_trunc('hour', now(), 'UTC') AND due_date < now()
        ) AS due_now
        LEFT JOIN (
            SELECT status, priority, sum(total)::bigint AS total FROM task_counters
            GROUP BY status, priority HAVING sum(total) <> 0
        ) AS counted ON true
    """),
    prepared=True,
)

# Into slot 0, without waiting for transactions that have written to a counter.
FOLD = Statement(
    "fold counters",
    text("""
        WITH ended AS (
            SELECT slot, status, priority FROM task_counters
            WHERE slot NOT IN (SELECT pid FROM pg_stat_activity UNION ALL SELECT 0)
            FOR UPDATE SKIP LOCKED
        ), counted AS (
            DELETE FROM task_counters AS counter USING ended
            WHERE (counter.slot, counter.status, counter.priority)
                = (ended.slot, ended.status, ended.priority)
            RETURNING counter.status, counter.priority, total
        ), by_status AS (
            INSERT INTO task_counters AS counter (slot, status, priority, total)
            SELECT 0, status, priority, sum(total) FROM counted
            GROUP BY status, priority HAVING sum(total) <> 0 ORDER BY status, priority
            ON CONFLICT (slot, status, priority)
            DO UPDATE SET total = counter.total + excluded.total
        ), past AS (
            SELECT slot, hour FROM due_counters
            WHERE slot NOT IN (SELECT pid FROM pg_stat_activity UNION ALL SELECT 0)
                OR hour > '-infinity' AND hour < date_trunc('hour', now(), 'UTC')
            FOR UPDATE SKIP LOCKED
        ), due AS (
            DELETE FROM due_counters AS counter USING past
            WHERE (counter.slot, counter.hour) = (past.slot, past.hour)
            RETURNING total, CASE
                WHEN counter.hour < date_trunc('hour', now(), 'UTC') THEN '-infinity'
                ELSE counter.hour
            END AS hour
        )
        INSERT INTO due_counters AS counter (slot, hour, total)
        SELECT 0, hour, sum(total) FROM due
        GROUP BY hour HAVING sum(total) <> 0 ORDER BY hour
        ON CONFLICT (slot, hour) DO UPDATE SET total = counter.total + excluded.total
    """),
)

REPAIR = Statement(
    "repair counters",
    text("""
        WITH by_status AS (
            INSERT INTO task_counters AS counter (slot, status, priority, total)
            SELECT 0, status, priority, sum(drift)
            FROM (
                SELECT status, priority, count(*) AS drift FROM tasks
                WHERE deleted_at IS NULL GROUP BY status, priority
                UNION ALL SELECT status, priority, -total FROM task_counters
            ) AS counted
            GROUP BY status, priority HAVING sum(drift) <> 0 ORDER BY status, priority
            ON CONFLICT (slot, status, priority)
            DO UPDATE SET total = counter.total + excluded.total
            RETURNING 1
        ), by_hour AS (
            INSERT INTO due_counters AS counter (slot, hour, total)
            SELECT 0, counted_hour, sum(drift)
            FROM (
                SELECT date_trunc('hour', due_date, 'UTC') AS hour, 1 AS drift FROM tasks
                WHERE deleted_at IS NULL AND status IN (1, 2) AND due_date IS NOT NULL
                UNION ALL SELECT hour, -total FROM due_counters
            ) AS counted
            CROSS JOIN LATERAL (
                SELECT CASE
                    WHEN hour < date_trunc('hour', now(), 'UTC') THEN '-infinity' ELSE hour
                END AS counted_hour
            ) AS folded
            GROUP BY counted_hour HAVING sum(drift) <> 0 ORDER BY counted_hour
            ON CONFLICT (slot, hour) DO UPDATE SET total = counter.total + excluded.total
            RETURNING 1
        )
        SELECT (SELECT count(*) FROM by_status) + (SELECT count(*) FROM by_hour)
    """),
)
