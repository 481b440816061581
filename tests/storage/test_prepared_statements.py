"""Statements that a session prepares: once, only where it may, and again when they are lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text

from storage.cancellation import Cancellation
from storage.database import Database
from storage.errors import ConstraintError, StatementCancelledError, StatementTimeoutError
from storage.repository import TaskRepository
from storage.statement import Statement
from tests.support.events import create, delete, undelete, update
from tests.support.pool import opened

ECHO = Statement("echo", text("SELECT CAST(:given AS integer) + 1"), prepared=True)
STUCK = Statement("stuck", text("SELECT pg_sleep(600)"), prepared=True)
PREPARED = text("SELECT name, statement FROM pg_prepared_statements ORDER BY prepare_time")


@pytest.fixture
def database(own_database_url: str) -> Iterator[Database]:
    """A database with one connection, so that all statements share a session."""
    with opened(own_database_url) as database:
        yield database


@pytest.fixture
def repository(database: Database) -> TaskRepository:
    return TaskRepository(database)


def prepared(database: Database) -> list[str]:
    """Return the names of the statements that the session has prepared, without their numbers."""
    return [name.rpartition("_")[0] for name, _ in database.read(PREPARED)]


def test_a_statement_is_prepared_at_its_first_run(database: Database) -> None:
    assert database.read(ECHO, {"given": 1}) == [(2,)]
    assert prepared(database) == ["echo"]


def test_a_prepared_statement_runs_with_the_values_of_each_run(database: Database) -> None:
    assert [database.read(ECHO, {"given": n})[0][0] for n in (1, 2, 3)] == [2, 3, 4]
    assert prepared(database) == ["echo"]


def test_the_statements_of_frequent_calls_are_prepared(
    database: Database, repository: TaskRepository
) -> None:
    (row,) = update(repository, create(repository))
    repository.get(row.id)
    repository.find([row.id])
    delete(repository, [row])
    undelete(repository, [row])
    names = ["create", "update", "get", "get_many", "delete", "undelete"]
    assert prepared(database) == names


def test_a_batch_is_planned_for_its_size(database: Database, repository: TaskRepository) -> None:
    update(repository, create(repository, 3))
    assert prepared(database) == []


def test_nothing_is_prepared_where_the_setting_is_off(own_database_url: str) -> None:
    with opened(own_database_url, prepared_statements=False) as database:
        (row,) = create(TaskRepository(database))
        assert TaskRepository(database).get(row.id) == row
        assert prepared(database) == []


def test_nothing_is_prepared_in_a_transaction(database: Database) -> None:
    """There a statement that is lost could not be prepared again."""
    with database.transaction() as transaction:
        assert transaction.read(ECHO, {"given": 1}) == [(2,)]
    assert prepared(database) == []


def test_a_statement_that_was_deallocated_is_prepared_again(database: Database) -> None:
    database.read(ECHO, {"given": 1})
    database.write(text("DISCARD ALL"))
    assert database.read(ECHO, {"given": 2}) == [(3,)]
    assert prepared(database) == ["echo"]


def test_a_statement_whose_columns_changed_type_is_prepared_again(
    database: Database, repository: TaskRepository
) -> None:
    """As after a migration; PostgreSQL refuses the plan that it has kept."""
    (row,) = create(repository)
    repository.get(row.id)
    database.write(text("ALTER TABLE tasks DROP CONSTRAINT ck_tasks_priority_known"))
    database.write(text("ALTER TABLE tasks ALTER priority TYPE bigint"))
    assert repository.get(row.id) == row


def test_an_error_of_a_prepared_statement_names_the_constraint(
    database: Database, repository: TaskRepository
) -> None:
    broken = {"priority": 9}
    for _ in range(2):
        with pytest.raises(ConstraintError, match="priority_known"):
            create(repository, **broken)


def test_a_prepared_statement_that_takes_too_long_is_ended(own_database_url: str) -> None:
    with opened(own_database_url, statement_timeout_seconds=0.05) as database:
        for _ in range(2):
            with pytest.raises(StatementTimeoutError):
                database.read(STUCK)


def test_a_prepared_statement_of_a_cancelled_call_does_not_run(database: Database) -> None:
    with Cancellation() as call:
        call.cancelled = True
        with pytest.raises(StatementCancelledError):
            database.read(ECHO, {"given": 1})
    assert prepared(database) == []


def test_percent_signs_and_quotes_stay_as_they_are(database: Database) -> None:
    statement: Any = text("SELECT '100 % of %s', CAST(:given AS text)")
    for query in (statement, Statement("percent", statement, prepared=True)):
        assert database.read(query, {"given": "1 % 'o'"}) == [("100 % of %s", "1 % 'o'")]


def test_at_level_debug_the_text_of_a_statement_is_logged_without_values(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG", logger="storage.statement"):
        database.read(ECHO, {"given": 271828})
    assert caplog.messages == [ECHO.sql]
    assert "271828" not in caplog.text
