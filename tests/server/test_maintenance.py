"""What is kept for a set time goes when that time is over, and not before."""

from __future__ import annotations

import datetime as dt
import time
import uuid

import pytest
from sqlalchemy import text

from server import maintenance
from server.maintenance import Maintenance
from storage.database import Database
from storage.repository import TaskRepository

DAY = dt.timedelta(days=1)


@pytest.fixture
def ages(database: Database) -> None:
    """Records of requests that are 0, 1, … 4 days old, and some hours."""
    with database.engine.connect() as connection:
        for days in range(5):
            connection.execute(
                text(
                    "INSERT INTO requests VALUES "
                    "('me', :id, '', :id, now() - :days * interval '1 day' - interval '1 hour')"
                ),
                {"id": str(uuid.uuid4()), "days": days},
            )


def kept(database: Database) -> int:
    return int(database.read(text("SELECT count(*) FROM requests"))[0][0])


@pytest.mark.usefixtures("ages")
@pytest.mark.parametrize("batch", [1, 2, 1000])
def test_old_request_records_are_removed_in_batches(
    repository: TaskRepository, database: Database, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(maintenance, "_BATCH", batch)
    assert Maintenance(repository, request_id_retention=2 * DAY).run_once() == 3
    assert kept(database) == 2


@pytest.mark.usefixtures("ages")
def test_it_happens_by_itself(
    repository: TaskRepository, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_INTERVAL_SECONDS", 0.01)
    keeper = Maintenance(repository, request_id_retention=2 * DAY)
    keeper.start()
    deadline = time.monotonic() + 30
    while kept(database) != 2 and time.monotonic() < deadline:
        pass
    keeper.stop()
    assert kept(database) == 2


def test_an_outage_does_not_end_it(
    database: Database, repository: TaskRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must go on when the database is back."""
    monkeypatch.setattr(maintenance, "_INTERVAL_SECONDS", 0.01)
    away = Database("postgresql+psycopg2://nobody@127.0.0.1:1/nothing")
    keeper = Maintenance(TaskRepository(away), request_id_retention=DAY)
    failures: list[str] = []
    monkeypatch.setattr(maintenance.log, "warning", lambda *_, why: failures.append(why))
    keeper.start()
    deadline = time.monotonic() + 30
    while len(failures) < 2 and time.monotonic() < deadline:
        pass
    keeper.stop()
    away.close()
    assert len(failures) >= 2
