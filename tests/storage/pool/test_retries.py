"""What PostgreSQL's errors mean for a call: repeated, refused or unavailable."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection, make_url, text

from storage.database import Database
from storage.errors import (
    DatabaseUnavailableError,
    StatementFailedError,
    StatementTimeoutError,
    TransactionConflictError,
)
from tests.support.pool import ADD_NOTE, FAIL, PID, STUCK, attempts, backend, connected, opened

UNAVAILABLE = ["25006", "57P01", "57P02", "57P03", "57P04", "57P05", "08006", "08003", "53300"]
CONFLICT = ["40001", "40P01"]


@pytest.mark.parametrize("sqlstate", UNAVAILABLE)
def test_a_server_that_cannot_serve_is_unavailable(sqlstate: str, database: Database) -> None:
    with pytest.raises(DatabaseUnavailableError, match="made to fail"):
        database.write(FAIL, {"times": 1, "code": sqlstate})


@pytest.mark.parametrize("sqlstate", UNAVAILABLE)
def test_a_connection_to_a_server_that_cannot_serve_is_given_up(
    sqlstate: str, database: Database
) -> None:
    """The next one may reach a server that can: the address has moved to the new primary."""
    pid = backend(database)
    with pytest.raises(DatabaseUnavailableError):
        database.write(FAIL, {"times": 1, "code": sqlstate})
    assert backend(database) != pid


def test_every_connection_to_a_server_that_cannot_serve_is_given_up(
    url: str, admin: Connection
) -> None:
    with opened(url, pool_size=2) as database:
        with database.engine.connect() as other:
            pid = other.scalar(PID)
            with pytest.raises(DatabaseUnavailableError):
                database.write(FAIL, {"times": 1, "code": "25006"})
        assert backend(database) != pid


@contextmanager
def read_only(postgres_url: str, name: str | None) -> Iterator[None]:
    with connected(postgres_url) as admin:
        admin.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
        try:
            yield
        finally:
            admin.execute(text(f"ALTER DATABASE {name} RESET default_transaction_read_only"))


def test_a_write_to_a_read_only_server_is_unavailable_until_it_is_writable(
    postgres_url: str, url: str, admin: Connection
) -> None:
    """A primary that was demoted serves reads, and old connections to it go on doing so."""
    with opened(url) as database:
        with (
            read_only(postgres_url, make_url(url).database),
            pytest.raises(DatabaseUnavailableError, match="read-only"),
        ):
            database.write(ADD_NOTE, {"id": 1})
        assert database.write(ADD_NOTE, {"id": 1}) == [(1,)]


def test_a_statement_that_takes_too_long_is_ended(url: str, admin: Connection) -> None:
    with (
        opened(url, statement_timeout_seconds=0.05) as database,
        pytest.raises(StatementTimeoutError),
    ):
        database.read(STUCK)


def test_a_statement_that_took_too_long_keeps_the_connection(url: str, admin: Connection) -> None:
    with opened(url, statement_timeout_seconds=0.05) as database:
        pid = backend(database)
        with pytest.raises(StatementTimeoutError):
            database.read(STUCK)
        assert backend(database) == pid


@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize("sqlstate", CONFLICT)
@pytest.mark.parametrize("times", [1, 3])
def test_a_write_given_up_for_another_transaction_is_repeated(
    times: int, sqlstate: str, commit: bool, database: Database
) -> None:
    assert database.write(FAIL, {"times": times, "code": sqlstate}, commit=commit) == [(times + 1,)]


@pytest.mark.parametrize("sqlstate", CONFLICT)
def test_a_write_given_up_again_and_again_is_a_conflict(sqlstate: str, database: Database) -> None:
    with pytest.raises(TransactionConflictError):
        database.write(FAIL, {"times": 1000, "code": sqlstate})


def test_a_conflict_keeps_the_connection(database: Database) -> None:
    pid = backend(database)
    database.write(FAIL, {"times": 1, "code": "40001"})
    assert backend(database) == pid


def test_two_writes_in_a_deadlock_both_succeed(
    url: str, admin: Connection, background: ThreadPoolExecutor
) -> None:
    admin.execute(text("INSERT INTO notes VALUES (1), (2)"))
    cross = text("SELECT cross_over(:mine, :other)")
    with opened(url, pool_size=2) as database:
        writes = [
            background.submit(database.write, cross, {"mine": mine, "other": 3 - mine})
            for mine in (1, 2)
        ]
        for write in writes:
            write.result()
    bodies = admin.scalars(text("SELECT body FROM notes")).all()
    assert sorted("".join(sorted(body)) for body in bodies) == ["12", "12"]
    # The one that gave way may be back in time to meet the other again.
    assert attempts(admin) >= 3


def test_a_read_that_gave_way_is_repeated(database: Database, admin: Connection) -> None:
    """A standby cancels reads with the code of a serialization failure."""
    database.read(FAIL, {"times": 1, "code": "40001"})
    assert attempts(admin) == 2


def test_a_disk_that_is_full_costs_no_connection(database: Database) -> None:
    pid = backend(database)
    with pytest.raises(DatabaseUnavailableError):
        database.write(text("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '53100'; END $$"))
    assert backend(database) == pid


def test_a_failed_statement_quotes_no_value(database: Database) -> None:
    with pytest.raises(StatementFailedError) as raised:
        database.read(text("SELECT CAST('a value' AS integer)"))
    assert str(raised.value).startswith("22P02")
    assert "a value" not in str(raised.value)
