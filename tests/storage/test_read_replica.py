"""What the repository can do on a replica: why the service uses none (docs/scaling.md)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from storage import schema
from storage.database import Database
from storage.embedded import EmbeddedPostgres
from storage.errors import DatabaseUnavailableError, TaskNotFoundError
from storage.events import EventLog
from storage.repository import TaskRepository
from tests.support.base_backups import base_backup
from tests.support.postgres import execute
from tests.support.service import wait_until
from tests.support.watching import create_by_hand


class Pair(NamedTuple):
    """A database and its replica."""

    primary: Database
    replica: Database


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("replica")
    with EmbeddedPostgres(folder / "one", settings={"fsync": "off"}) as one:
        schema.upgrade(one.url)
        base_backup(one, folder / "two", "--write-recovery-conf")
        with EmbeddedPostgres(folder / "two", settings={"fsync": "off"}) as two:
            pair = Pair(Database(one.url), Database(two.url))
            yield pair
            for database in pair:
                database.close()


def written(database: Database) -> str:
    return create_by_hand(TaskRepository(database), str(uuid.uuid4())).id


def is_there(database: Database, task_id: str) -> bool:
    return task_id in TaskRepository(database).find([task_id])


def test_reads_and_streams_work_on_a_replica(pair: Pair) -> None:
    head = EventLog(pair.replica).head()
    task_id = written(pair.primary)
    wait_until(lambda: is_there(pair.replica, task_id), "the write is replayed")
    repository, events = TaskRepository(pair.replica), EventLog(pair.replica)
    assert repository.page(limit=10)[0].id == task_id
    assert repository.count() == 1
    repository.stats()
    assert len(events.history(task_id, limit=10)) == 1
    assert events.read(head, limit=10).events[0].task_id == task_id


def test_a_replica_neither_listens_nor_writes(pair: Pair) -> None:
    with pytest.raises(DatabaseUnavailableError, match="cannot execute LISTEN during recovery"):
        pair.replica.dedicated_connection("LISTEN task_events")
    with pytest.raises(DatabaseUnavailableError, match="read-only transaction"):
        written(pair.replica)


def test_a_client_does_not_read_its_own_write_from_a_replica(pair: Pair) -> None:
    """Whatever delays the replay: here it is stopped."""
    url = pair.replica.engine.url.render_as_string(hide_password=False)
    execute(url, "SELECT pg_wal_replay_pause()")
    task_id = written(pair.primary)
    with pytest.raises(TaskNotFoundError):
        TaskRepository(pair.replica).get(task_id)
    execute(url, "SELECT pg_wal_replay_resume()")
    wait_until(lambda: is_there(pair.replica, task_id), "the write is replayed")
