"""What a call has spent where, and how full the pool is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest
from sqlalchemy import text

from storage.database import Database
from storage.errors import DatabaseUnavailableError, StatementFailedError
from storage.measures import Spent, spent
from storage.pool import PoolUsage
from tests.support.postgres import execute
from tests.support.service import wait_until

A_MOMENT = 0.05
SLEEP = text(f"SELECT pg_sleep({A_MOMENT})")
ONE = text("SELECT 1")


@pytest.fixture
def narrow(database_url: str) -> Iterator[Database]:
    """A database to which there is one connection."""
    database = Database(database_url, pool_size=1, max_overflow=0, pool_timeout_seconds=60)
    yield database
    database.close()


@pytest.fixture
def mine() -> Iterator[Spent]:
    """What the test spends."""
    mine = Spent()
    token = spent.set(mine)
    yield mine
    spent.reset(token)


def test_the_time_of_a_statement_is_spent_in_the_database(narrow: Database, mine: Spent) -> None:
    narrow.read(SLEEP)
    assert mine.in_database >= A_MOMENT


def test_statements_add_up(narrow: Database, mine: Spent) -> None:
    narrow.read(SLEEP)
    with narrow.transaction() as transaction:
        transaction.read(SLEEP)
    narrow.write(SLEEP)
    assert mine.in_database >= 3 * A_MOMENT


def test_the_time_of_a_statement_that_fails_counts(narrow: Database, mine: Spent) -> None:
    with pytest.raises(StatementFailedError):
        narrow.read(text(f"SELECT 1 / length(pg_sleep({A_MOMENT})::text)"))
    assert mine.in_database >= A_MOMENT


def test_the_wait_for_a_connection_is_not_time_in_the_database(
    narrow: Database, database_url: str
) -> None:
    waiter = Spent()

    def wait_and_read() -> None:
        spent.set(waiter)
        narrow.read(ONE)

    with ThreadPoolExecutor(1) as threads:
        with narrow.transaction():
            waiting = threads.submit(copy_context().run, wait_and_read)
            wait_until(lambda: narrow.usage().waiting == 1, "one waits")
            began = time.perf_counter()
            execute(database_url, f"SELECT pg_sleep({A_MOMENT})")
            held = time.perf_counter() - began
        waiting.result()
    assert waiter.waiting >= held
    assert waiter.in_database > 0


def test_a_wait_in_vain_counts(database_url: str, mine: Spent) -> None:
    database = Database(database_url, pool_size=1, max_overflow=0, pool_timeout_seconds=A_MOMENT)
    with database.transaction():
        with pytest.raises(DatabaseUnavailableError):
            database.read(ONE)
        assert mine.waiting >= A_MOMENT
        assert mine.in_database == 0
    assert database.usage().waiting == 0
    database.close()


def test_each_call_counts_for_itself(narrow: Database, mine: Spent) -> None:
    def other_call() -> Spent:
        spent.set(Spent())
        narrow.read(SLEEP)
        return spent.get()

    other = copy_context().run(other_call)
    assert other.in_database >= A_MOMENT
    assert mine.in_database == 0


def test_the_pool_reports_its_usage(database_url: str) -> None:
    database = Database(database_url, pool_size=2, max_overflow=3)
    assert database.usage() == PoolUsage(used=0, idle=0, waiting=0, limit=5)
    with database.engine.connect(), database.engine.connect():
        assert database.usage() == PoolUsage(used=2, idle=0, waiting=0, limit=5)
    assert database.usage() == PoolUsage(used=0, idle=2, waiting=0, limit=5)
    database.close()
