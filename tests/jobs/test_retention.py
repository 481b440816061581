"""Retention removes rows when their time is over, and not before."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from server import periodic
from server.jobs import retention as maintenance
from server.jobs.retention import Maintenance
from server.settings import Settings
from storage.database import Database
from storage.repository import TaskRepository

# Of each kind five, which are 0, 1, … 4 days old, and some hours.
AGED = (
    "INSERT INTO requests SELECT 'me', gen_random_uuid(), '', gen_random_uuid(), {age}",
    "INSERT INTO tasks (id, title, status, priority, created_by, deleted_at) "
    "SELECT gen_random_uuid(), 'deleted', 1, 2, 'me', {age}",
    "INSERT INTO task_events (xid, aggregateid, type, payload, principal, occurred_at) "
    "SELECT pg_current_xact_id(), gen_random_uuid(), 'deleted', '{{}}', 'me', {age}",
)
AGE = "now() - days * interval '1 day' - interval '1 hour'"
# Older than all of these, and not deleted.
LIVING = """
    INSERT INTO tasks (id, title, status, priority, created_by, created_at, updated_at)
    SELECT gen_random_uuid(), 'living', 1, 2, 'me', now() - interval '1 year',
           now() - interval '1 year'
"""
KEPT = """
    SELECT (SELECT count(*) FROM requests) AS requests,
           (SELECT count(*) FROM task_events) AS events,
           (SELECT count(*) FROM tasks WHERE deleted_at IS NOT NULL) AS tasks
"""

ALL = {"requests": 5, "events": 5, "tasks": 5}


@pytest.fixture
def ages(database: Database) -> None:
    with database.engine.connect() as connection:
        for statement in AGED:
            oldest_first = " FROM generate_series(4, 0, -1) days"
            connection.execute(text(statement.format(age=AGE) + oldest_first))


@pytest.fixture
def keeping(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Two days for requests, one for events and three for deleted tasks."""
    monkeypatch.setattr("server.jobs.retention.REQUEST_RETENTION", dt.timedelta(days=2))
    return settings.model_copy(
        update={
            "event_retention_days": 1,
            "deleted_retention_days": 3,
        }
    )


def kept(database: Database) -> dict[str, int]:
    return dict(zip(("requests", "events", "tasks"), database.read(text(KEPT))[0], strict=True))


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it has not come true"


@contextmanager
def running(keeper: Maintenance, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(keeper._periodic, "_interval_seconds", 0.01)
    monkeypatch.setattr(keeper._periodic, "_delay_seconds", 0)
    keeper.start()
    try:
        yield
    finally:
        keeper.stop()


@pytest.mark.usefixtures("ages")
@pytest.mark.parametrize("batch", [1, 2, 1000])
def test_what_is_old_is_removed_in_batches_and_counted(
    database: Database, keeping: Settings, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(maintenance, "_BATCH", batch)
    removed = Maintenance(database, keeping).run_once()
    assert removed == {"requests": 3, "events": 4, "tasks": 2}
    assert kept(database) == {"requests": 2, "events": 1, "tasks": 3}


@pytest.mark.usefixtures("ages")
def test_a_task_that_is_not_deleted_is_never_removed(database: Database, keeping: Settings) -> None:
    database.write(text(f"{LIVING} RETURNING id"))
    Maintenance(database, keeping).run_once()
    living = database.read(text("SELECT title FROM tasks WHERE deleted_at IS NULL"))
    assert living == [("living",)]


@pytest.mark.usefixtures("ages")
def test_nothing_is_removed_while_another_process_is_at_it(
    database: Database, database_url: str, keeping: Settings
) -> None:
    other = Database(database_url)
    with other.exclusively(maintenance._LOCK) as alone:
        assert alone
        assert Maintenance(database, keeping).run_once() == {}
        assert kept(database) == ALL
    other.close()


@pytest.mark.usefixtures("ages")
def test_it_goes_on_when_the_other_process_is_done(database: Database, keeping: Settings) -> None:
    with database.exclusively(maintenance._LOCK):
        Maintenance(database, keeping).run_once()
    assert Maintenance(database, keeping).run_once() == {"requests": 3, "events": 4, "tasks": 2}


@pytest.mark.usefixtures("ages")
def test_one_that_was_stopped_removes_nothing_more(database: Database, keeping: Settings) -> None:
    keeper = Maintenance(database, keeping)
    keeper.stop()
    keeper.run_once()
    assert kept(database) == ALL


@pytest.mark.usefixtures("ages")
def test_it_happens_by_itself(
    database: Database, keeping: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(Maintenance(database, keeping), monkeypatch):
        until(lambda: kept(database) == {"requests": 2, "events": 1, "tasks": 3})


def test_an_outage_does_not_end_it(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must go on when the database is back."""
    away = Database("postgresql+psycopg2://unused@127.0.0.1:1/nothing")
    failures: list[str] = []
    monkeypatch.setattr(periodic.log, "warning", lambda *_, why: failures.append(why))
    with running(Maintenance(away, settings), monkeypatch):
        until(lambda: len(failures) >= 2)
    away.close()


def test_wrong_counters_of_tasks_are_repaired_and_logged(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    repaired: list[int] = []
    monkeypatch.setattr(maintenance.log, "warning", lambda _, counters: repaired.append(counters))
    database.write(text("INSERT INTO task_counters VALUES (1, 2, 3, 4)"))
    for _ in range(2):
        Maintenance(database, settings).run_once()
    assert repaired == [1]
    assert TaskRepository(database).stats().counts == []
