"""Lost connections: what is repeated, what fails, and what is replaced."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection

from storage.database import Database
from storage.errors import DatabaseUnavailableError
from tests.support.pool import (
    COUNT_NOTES,
    FAIL,
    PID,
    STUCK_ONCE,
    attempts,
    backend,
    kill,
    opened,
    sleeper,
    until,
)


@pytest.mark.parametrize("method", ["read", "write"])
def test_a_connection_lost_while_idle_never_reaches_a_caller(
    method: str, database: Database, admin: Connection
) -> None:
    """Not even a write's, which could not be repeated."""
    kill(admin, backend(database))
    assert getattr(database, method)(COUNT_NOTES) == [(0,)]


def test_a_connection_that_died_while_idle_is_replaced_by_one_that_is_kept(
    database: Database, admin: Connection
) -> None:
    dead = backend(database)
    kill(admin, dead)
    assert backend(database) == backend(database) != dead


def test_connections_that_died_together_are_all_replaced(url: str, admin: Connection) -> None:
    """As after a restart of PostgreSQL: one call must not stumble over one after another."""
    with opened(url, pool_size=4) as database:
        held = [database.engine.connect() for _ in range(4)]
        dead = [connection.scalar(PID) for connection in held]
        for connection in held:
            connection.close()
        for pid in dead:
            kill(admin, pid)
        held = [database.engine.connect() for _ in range(4)]
        alive = [connection.scalar(PID) for connection in held]
        for connection in held:
            connection.close()
    assert set(alive).isdisjoint(dead)


def test_a_read_whose_connection_dies_is_repeated(
    database: Database, admin: Connection, background: ThreadPoolExecutor
) -> None:
    read = background.submit(database.read, STUCK_ONCE)
    kill(admin, until(lambda: sleeper(admin)))
    assert read.result() == [("done",)]


def test_a_read_is_repeated_once(
    database: Database, admin: Connection, background: ThreadPoolExecutor
) -> None:
    read = background.submit(database.read, FAIL, {"times": 100, "code": "57P01"})
    with pytest.raises(DatabaseUnavailableError):
        read.result()
    assert attempts(admin) == 2


def test_a_write_whose_connection_dies_fails(
    database: Database, admin: Connection, background: ThreadPoolExecutor
) -> None:
    write = background.submit(database.write, STUCK_ONCE)
    kill(admin, until(lambda: sleeper(admin)))
    with pytest.raises(DatabaseUnavailableError):
        write.result()


def test_a_write_whose_connection_dies_is_not_repeated(
    database: Database, admin: Connection, background: ThreadPoolExecutor
) -> None:
    """It may have taken place: the caller must decide."""
    write = background.submit(database.write, STUCK_ONCE)
    kill(admin, until(lambda: sleeper(admin)))
    assert write.exception() is not None
    assert attempts(admin) == 1


def test_a_write_without_commit_whose_connection_dies_fails(
    database: Database, admin: Connection, background: ThreadPoolExecutor
) -> None:
    write = background.submit(database.write, STUCK_ONCE, commit=False)
    kill(admin, until(lambda: sleeper(admin)))
    with pytest.raises(DatabaseUnavailableError):
        write.result()
