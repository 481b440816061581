"""Statements that read for a call have a time limit; all others have limits of their own."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from storage.cancellation import Cancellation
from storage.database import Database
from storage.errors import StatementCancelledError, StatementTimeoutError

STUCK = text("SELECT pg_sleep(600)")
# Longer than the limit, and than the clock takes to notice.
SLOW = text("SELECT 'done' FROM pg_sleep(0.5)")
PID = text("SELECT pg_backend_pid()")
LIMIT_SECONDS = 0.05
# Longer than the time limit of a test: a read that only this ends fails it.
NOT_REACHED_SECONDS = 3600.0


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database whose reads have a limit that a test can wait for."""
    database = Database(
        database_url,
        read_timeout_seconds=LIMIT_SECONDS,
        statement_timeout_seconds=NOT_REACHED_SECONDS,
    )
    yield database
    database.close()


def test_a_read_of_a_call_that_takes_too_long_is_ended(database: Database) -> None:
    with Cancellation(), pytest.raises(StatementTimeoutError):
        database.read(STUCK)


def test_a_read_may_be_given_less_time_than_others(database_url: str) -> None:
    database = Database(
        database_url,
        read_timeout_seconds=NOT_REACHED_SECONDS,
        statement_timeout_seconds=NOT_REACHED_SECONDS,
    )
    with Cancellation(), pytest.raises(StatementTimeoutError):
        database.read(STUCK, seconds=LIMIT_SECONDS)
    database.close()


def test_a_read_cannot_be_given_more_time_than_others(database: Database) -> None:
    with Cancellation(), pytest.raises(StatementTimeoutError):
        database.read(STUCK, seconds=math.inf)


def test_a_write_of_a_call_is_not_held_to_the_limit_of_reads(database: Database) -> None:
    with Cancellation():
        assert database.write(SLOW)[0][0] == "done"


def test_a_read_in_a_transaction_is_not_held_to_it(database: Database) -> None:
    """It belongs to a write, and may wait for a lock."""
    with Cancellation(), database.transaction() as transaction:
        assert transaction.read(SLOW)[0][0] == "done"


def test_a_read_without_a_call_is_not_held_to_it(database: Database) -> None:
    """The service's own threads may count every task."""
    assert database.read(SLOW)[0][0] == "done"


def test_a_call_goes_on_after_a_read_that_took_too_long(database: Database) -> None:
    """Nothing of the limit stays with the call, nor with the connection."""
    with Cancellation():
        pid = database.read(PID)[0][0]
        with pytest.raises(StatementTimeoutError):
            database.read(STUCK)
        assert database.write(SLOW)[0][0] == "done"
        assert database.read(PID)[0][0] == pid


def test_a_call_that_was_cancelled_is_not_one_that_took_too_long(database: Database) -> None:
    with Cancellation() as call:
        call.cancelled = True
        with pytest.raises(StatementCancelledError):
            database.read(STUCK)
