"""Open pools on a database whose statements fail, wait and are counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, NullPool, create_engine, text

from storage.cancellation import Cancellation
from storage.database import Database
from storage.statement import Rows

OBJECTS = (
    "CREATE TABLE notes (id int PRIMARY KEY, body text NOT NULL DEFAULT '')",
    # A sequence is not rolled back: it counts the attempts of a statement that fails.
    "CREATE SEQUENCE attempts",
    """
    CREATE FUNCTION fail_first(times int, code text) RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE attempt bigint := nextval('attempts');
    BEGIN
        IF attempt <= times THEN
            RAISE EXCEPTION 'made to fail' USING ERRCODE = code;
        END IF;
        RETURN attempt;
    END $$
    """,
    # Locks one row, meets the other caller, who has locked the other, and wants that one too.
    """
    CREATE FUNCTION cross_over(mine int, other int) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        UPDATE notes SET body = body || mine WHERE id = mine;
        PERFORM nextval('attempts');
        WHILE (SELECT last_value FROM attempts) < 2 LOOP
            PERFORM pg_sleep(0.001);
        END LOOP;
        UPDATE notes SET body = body || mine WHERE id = other;
    END $$
    """,
)
PID = text("SELECT pg_backend_pid()")
FAIL = text("SELECT fail_first(:times, :code)")
ADD_NOTE = text("INSERT INTO notes VALUES (:id) RETURNING id")
COUNT_NOTES = text("SELECT count(*) FROM notes")
# Sleeps at the first attempt only.
STUCK_ONCE = text("SELECT CASE nextval('attempts') WHEN 1 THEN pg_sleep(600)::text ELSE 'done' END")
STUCK = text("SELECT pg_sleep(600)")
# Continues when it gets the lock, which the connection that runs WAITING holds.
LOCKED = text("SELECT 'done' FROM pg_advisory_lock(1)")
WAITING = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'")

T = TypeVar("T")


def connected(url: str) -> Connection:
    return create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect()


@contextmanager
def opened(url: str, **settings: Any) -> Iterator[Database]:
    database = Database(url, **({"pool_size": 1, "max_overflow": 0} | settings))
    try:
        yield database
    finally:
        database.close()


def until(condition: Callable[[], T | None]) -> T:
    """What the condition gives as soon as it is true."""
    deadline = time.monotonic() + 60
    while not (result := condition()):
        assert time.monotonic() < deadline, "it has not come true"
    return result


def backend(database: Database) -> int:
    """The process at the other end of the pool's connection."""
    return int(database.read(PID)[0][0])


def sleeper(admin: Connection) -> int | None:
    """The process that runs pg_sleep."""
    pid: int | None = admin.scalar(
        text(
            "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' "
            "AND datname = current_database()"
        )
    )
    return pid


def kill(admin: Connection, pid: int) -> None:
    admin.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    alive = text("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = :pid)")
    until(lambda: admin.scalar(alive, {"pid": pid}))


def attempts(admin: Connection) -> int:
    counted = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM attempts"
    return int(admin.scalar(text(counted)) or 0)


def under(cancellation: Cancellation, call: Callable[[], Rows]) -> Rows:
    with cancellation:
        return call()
