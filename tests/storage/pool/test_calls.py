"""What a call costs in round trips, and what a write leaves."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, text

from storage.database import Database
from storage.errors import ConstraintError, StatementFailedError
from tests.support.pool import ADD_NOTE, COUNT_NOTES, PID, backend

# What a call costs


class Heard(list[str]):
    """The notices of a connection, whose statements stay when SQLAlchemy clears them."""

    def __init__(self) -> None:
        super().__init__()
        self.statements: list[str] = []

    def append(self, notice: str) -> None:
        self.statements.append(notice.partition("statement: ")[2].strip())


@pytest.fixture
def sent(database: Database) -> list[str]:
    """The statements that reached PostgreSQL since, from the notices of their connection."""
    with database.engine.connect() as connection:
        if connection.scalar(text("SHOW is_superuser")) != "on":
            pytest.skip("only a superuser may have its statements logged")
        connection.execute(text("SET client_min_messages = log"))
        connection.execute(text("SET log_statement = 'all'"))
        driver: Any = connection.connection.driver_connection
    driver.notices = Heard()
    return driver.notices.statements  # type: ignore[no-any-return]


def test_a_read_is_one_round_trip(database: Database, sent: list[str]) -> None:
    database.read(COUNT_NOTES)
    assert sent == ["SELECT count(*) FROM notes"]


def test_a_write_is_one_round_trip(database: Database, sent: list[str]) -> None:
    database.write(ADD_NOTE, {"id": 1})
    assert sent == ["INSERT INTO notes VALUES (1) RETURNING id"]


def test_a_read_on_a_long_idle_connection_tests_the_connection_first(
    database: Database, sent: list[str]
) -> None:
    """It may be lost without a sign: a firewall drops idle connections silently."""
    with database.engine.connect() as connection:
        info = connection.info
    info["returned_at"] -= 31
    database.read(COUNT_NOTES)
    assert sent == ["SELECT 1", "SELECT count(*) FROM notes"]


def test_a_question_makes_the_connection_trusted_again(database: Database, sent: list[str]) -> None:
    with database.engine.connect() as connection:
        info = connection.info
    info["returned_at"] -= 31
    database.read(PID)
    database.read(COUNT_NOTES)
    assert sent[2:] == ["SELECT count(*) FROM notes"]


def test_a_write_without_commit_is_rolled_back_at_once(database: Database, sent: list[str]) -> None:
    database.write(ADD_NOTE, {"id": 1}, commit=False)
    assert sent == [
        "BEGIN ISOLATION LEVEL READ COMMITTED",
        "INSERT INTO notes VALUES (1) RETURNING id",
        "ROLLBACK",
    ]


@pytest.mark.parametrize("note", [1, 2], ids=["that failed", "that succeeded"])
def test_a_read_after_a_write_without_commit_is_one_round_trip(
    note: int, database: Database, sent: list[str]
) -> None:
    """The connection goes back to the pool as it came from there: in AUTOCOMMIT."""
    database.write(ADD_NOTE, {"id": 1})
    try:
        database.write(ADD_NOTE, {"id": note}, commit=False)
    except ConstraintError:
        assert note == 1
    sent.clear()
    database.read(COUNT_NOTES)
    assert sent == ["SELECT count(*) FROM notes"]


# Writes


def test_a_write_is_committed(database: Database, admin: Connection) -> None:
    database.write(ADD_NOTE, {"id": 1})
    assert admin.scalar(COUNT_NOTES) == 1


def test_a_write_without_commit_gives_its_rows(database: Database) -> None:
    assert database.write(ADD_NOTE, {"id": 1}, commit=False) == [(1,)]


def test_a_write_without_commit_leaves_nothing(database: Database, admin: Connection) -> None:
    database.write(ADD_NOTE, {"id": 1}, commit=False)
    assert admin.scalar(COUNT_NOTES) == 0


def test_a_write_after_one_without_commit_is_committed(
    database: Database, admin: Connection
) -> None:
    database.write(ADD_NOTE, {"id": 1}, commit=False)
    database.write(ADD_NOTE, {"id": 2})
    assert admin.scalars(text("SELECT id FROM notes")).all() == [2]


def test_a_violated_constraint_is_told_by_its_name(database: Database) -> None:
    database.write(ADD_NOTE, {"id": 1})
    with pytest.raises(ConstraintError, match="notes_pkey"):
        database.write(ADD_NOTE, {"id": 1})


def test_an_error_of_the_statement_alone_keeps_the_connection(database: Database) -> None:
    pid = backend(database)
    with pytest.raises(StatementFailedError):
        database.read(text("SELECT 1 / 0"))
    assert backend(database) == pid
