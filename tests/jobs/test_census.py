"""The counts of the database: current ones, or none."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import NullPool, create_engine, text

from server.jobs.census import UNKNOWN, Census
from storage.database import Database
from storage.repository import TaskRepository
from tests.support.postgres import closed, execute
from tests.support.service import wait_until
from tests.support.watching import create_by_hand, delete_by_hand, update_by_hand

IDS = [f"0190a8d0-1e2b-7c3d-8e4f-5a6b7c8d9e{n:02d}" for n in range(9)]
PENDING, IN_PROGRESS, COMPLETED = 1, 2, 3


@pytest.fixture
def database(own_database_url: str) -> Iterator[Database]:
    database = Database(own_database_url)
    yield database
    database.close()


@contextmanager
def running(database: Database, interval_seconds: float = 0.02) -> Iterator[Census]:
    census = Census(database, interval_seconds)
    census.start()
    try:
        yield census
    finally:
        census.stop()


def awaited(condition: Callable[[], object]) -> None:
    wait_until(condition, "the census says so")


def test_nothing_is_known_before_the_first_count(database: Database) -> None:
    census = Census(database, 60)
    assert census.latest == UNKNOWN


def test_tasks_are_counted_by_status_and_deleted_ones_are_not(database: Database) -> None:
    repository = TaskRepository(database)
    for task_id in IDS[:5]:
        create_by_hand(repository, task_id)
    update_by_hand(repository, IDS[0], status=COMPLETED)
    update_by_hand(repository, IDS[1], status=IN_PROGRESS)
    delete_by_hand(repository, IDS[2])
    with running(database, interval_seconds=60) as census:
        awaited(lambda: census.latest.tasks)
        assert census.latest.tasks == {
            "PENDING": 2,
            "IN_PROGRESS": 1,
            "COMPLETED": 1,
            "CANCELLED": 0,
        }


def test_open_tasks_past_their_due_date_are_overdue(
    database: Database, own_database_url: str
) -> None:
    repository = TaskRepository(database)
    for task_id in IDS[:3]:
        create_by_hand(repository, task_id)
    update_by_hand(repository, IDS[0], status=COMPLETED)
    update_by_hand(repository, IDS[1], due_date=dt.datetime(2100, 1, 1, tzinfo=dt.UTC))
    execute(
        own_database_url,
        "UPDATE tasks SET due_date = now() - interval '1 hour' WHERE due_date IS NULL",
    )
    with running(database, interval_seconds=60) as census:
        awaited(lambda: census.latest.overdue is not None)
        assert census.latest.overdue == 1


def test_counts_follow_what_happens(database: Database) -> None:
    with running(database) as census:
        awaited(lambda: census.latest.tasks.get("PENDING") == 0)
        create_by_hand(TaskRepository(database), IDS[0])
        awaited(lambda: census.latest.tasks.get("PENDING") == 1)


def test_events_lag_while_a_transaction_is_open_that_began_before_them(
    database: Database, own_database_url: str
) -> None:
    with running(database) as census:
        with create_engine(own_database_url, poolclass=NullPool).begin() as connection:
            connection.execute(text("SELECT pg_current_xact_id()"))
            create_by_hand(TaskRepository(database), IDS[0])
            awaited(lambda: (census.latest.events_lag_seconds or 0) > 0)
        awaited(lambda: census.latest.events_lag_seconds == 0)


def test_old_counts_are_forgotten_while_the_database_is_away(
    database: Database, own_database_url: str
) -> None:
    """An old number would look like a new one."""
    with running(database) as census:
        awaited(lambda: census.latest.tasks)
        with closed(own_database_url):
            awaited(lambda: census.latest.overdue is None)
            assert census.latest == UNKNOWN
        awaited(lambda: census.latest.tasks)
