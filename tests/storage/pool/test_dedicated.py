"""Connections that are held: for what one process does at a time, and outside of the pool."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, text

from storage.database import Database
from storage.errors import DatabaseUnavailableError
from tests.support.pool import ADD_NOTE, COUNT_NOTES, backend, kill, opened

# What one process does at a time


def test_one_at_a_time_is_alone_with_a_key(url: str) -> None:
    with opened(url) as one, opened(url) as another, one.exclusively(1) as first:
        with another.exclusively(1) as second:
            assert (first, second) == (True, False)
        with another.exclusively(2) as other:
            assert other


def test_the_next_is_alone_when_the_first_is_done(url: str) -> None:
    with opened(url) as one, opened(url) as another:
        with one.exclusively(1):
            pass
        with another.exclusively(1) as alone:
            assert alone


def test_one_that_fails_leaves_the_place_to_the_next(url: str) -> None:
    with opened(url) as one, opened(url) as another:
        with pytest.raises(ValueError, match="failed"), one.exclusively(1):
            raise ValueError("failed")
        with another.exclusively(1) as alone:
            assert alone


def test_one_that_lost_its_connection_is_told_and_leaves_the_place(
    url: str, admin: Connection
) -> None:
    holder = text("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 1")
    with opened(url) as one, opened(url) as another:
        with pytest.raises(DatabaseUnavailableError), one.exclusively(1):
            kill(admin, admin.scalar(holder))
        with another.exclusively(1) as alone:
            assert alone


def test_after_it_the_connection_commits_by_itself_again(
    database: Database, admin: Connection
) -> None:
    with database.exclusively(1):
        pass
    database.write(ADD_NOTE, {"id": 1})
    assert admin.scalar(COUNT_NOTES) == 1


# A connection that is not the pool's any more


def test_a_dedicated_connection_leaves_its_place_in_the_pool(database: Database) -> None:
    connection = database.dedicated_connection("SELECT 1")
    assert backend(database) != connection.info.backend_pid
    connection.close()


def test_a_dedicated_connection_commits_by_itself(database: Database, admin: Connection) -> None:
    connection = database.dedicated_connection("INSERT INTO notes VALUES (1)")
    assert admin.scalar(COUNT_NOTES) == 1
    connection.close()


def test_a_dedicated_connection_to_an_absent_server_is_unavailable(
    refusing_url: str,
) -> None:
    with opened(refusing_url) as database, pytest.raises(DatabaseUnavailableError):
        database.dedicated_connection("SELECT 1")


def test_a_dedicated_connection_needs_no_free_connection_of_the_pool(url: str) -> None:
    with opened(url, pool_timeout_seconds=0.1) as database, database.transaction():
        database.dedicated_connection("SELECT 1").close()
