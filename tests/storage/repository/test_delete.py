"""Deletion on a real PostgreSQL: delete, undelete and purge."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from functools import partial

import pytest
from sqlalchemy import text

from storage.database import Database
from storage.errors import (
    StorageError,
    TaskNotDeletedError,
    TaskNotFoundError,
    VersionMismatchError,
)
from storage.query import Comparison, Filter, Present
from storage.repository import Creation, Target, TaskRepository
from storage.tables import TaskRow
from tests.support.repository import SOME_ORIGIN, OneByOne, all_at_once, new_id, new_task, scalar

# delete and undelete


def test_delete_keeps_the_task_and_says_when(repository: OneByOne) -> None:
    row = repository.create(new_task())
    deleted = repository.delete(row.id)
    assert deleted == row._replace(
        deleted_at=deleted.updated_at,
        updated_at=deleted.updated_at,
        version=deleted.version,
    )
    assert deleted.updated_at > row.updated_at


def test_undelete_brings_the_task_back(repository: OneByOne) -> None:
    row = repository.create(new_task(title="back"))
    deleted = repository.delete(row.id)
    restored = repository.undelete(row.id)
    assert restored == row._replace(updated_at=restored.updated_at, version=restored.version)
    assert restored.updated_at > deleted.updated_at


def test_delete_and_undelete_return_what_they_stored(repository: OneByOne) -> None:
    row = repository.create(new_task())
    deleted = repository.delete(row.id, row.version)
    assert deleted == repository.get(row.id)
    assert repository.undelete(row.id, deleted.version) == repository.get(row.id)


def test_delete_of_an_unknown_task_is_not_found(repository: OneByOne) -> None:
    with pytest.raises(TaskNotFoundError):
        repository.delete(new_id())


@pytest.mark.parametrize("version", [None, 1, 2])
def test_delete_of_a_deleted_task_is_not_found(version: int | None, repository: OneByOne) -> None:
    row = repository.create(new_task())
    repository.delete(row.id)
    with pytest.raises(TaskNotFoundError):
        repository.delete(row.id, version)


def test_delete_of_another_version_is_refused(repository: OneByOne) -> None:
    row = repository.create(new_task())
    with pytest.raises(VersionMismatchError):
        repository.delete(row.id, row.version + 1)
    assert repository.get(row.id) == row


def test_undelete_of_an_unknown_task_is_not_found(repository: OneByOne) -> None:
    with pytest.raises(TaskNotFoundError):
        repository.undelete(new_id())


@pytest.mark.parametrize("version", [None, 1, 2])
def test_undelete_of_a_task_that_is_not_deleted_is_refused(
    version: int | None, repository: OneByOne
) -> None:
    row = repository.create(new_task())
    with pytest.raises(TaskNotDeletedError):
        repository.undelete(row.id, version)


def test_undelete_of_another_version_is_refused(repository: OneByOne) -> None:
    row = repository.create(new_task())
    deleted = repository.delete(row.id)
    with pytest.raises(VersionMismatchError):
        repository.undelete(row.id, row.version)
    assert repository.get(row.id) == deleted


def test_of_many_deletes_one_wins(repository: OneByOne) -> None:
    row = repository.create(new_task())
    results = all_at_once([partial(repository.delete, row.id)] * 8)
    assert Counter(type(result) for result in results) == {TaskRow: 1, TaskNotFoundError: 7}


# purge


@pytest.fixture
def purgeable(repository: OneByOne) -> TaskRepository:
    """Four tasks that are deleted, of which two are called "old", and an old one that is not."""
    many = repository.many
    titles = ["old", "old", "new", "new", "old"]
    made = many.create([Creation(new_task(title=title)) for title in titles], SOME_ORIGIN)
    many.delete([Target(row.id) for row in made[:4]], SOME_ORIGIN)
    return many


OLD = Comparison("title", "=", "old")
DELETED = Present("deleted_at")


@pytest.mark.parametrize(("filter_", "purged"), [(DELETED, 4), (OLD, 2)], ids=["all", "old"])
def test_purge_removes_the_deleted_tasks_that_match_and_no_others(
    purgeable: TaskRepository, filter_: Filter, purged: int
) -> None:
    assert purgeable.preview_purge(filter_, sample=100).total == purged
    assert purgeable.purge(filter_) == purged
    assert purgeable.preview_purge(filter_, sample=100) == (0, [])
    assert (purgeable.count(show_deleted=True), purgeable.count()) == (5 - purged, 1)


def test_the_preview_of_a_purge_names_what_was_deleted_first(purgeable: TaskRepository) -> None:
    rows = [row for row in purgeable.page(limit=9, show_deleted=True) if row.deleted_at]
    oldest = sorted((row.deleted_at, row.id) for row in rows)[:3]
    assert purgeable.preview_purge(DELETED, sample=3) == (4, [task_id for _, task_id in oldest])


def test_purge_old_removes_what_was_deleted_so_long_ago(
    purgeable: TaskRepository, database: Database
) -> None:
    with database.engine.connect() as connection:
        connection.execute(
            text("UPDATE tasks SET deleted_at = now() - interval '2 days' WHERE title = 'old'")
        )
    assert purgeable.purge_old(older_than=dt.timedelta(days=1)) == 3
    assert purgeable.preview_purge(DELETED, sample=0).total == 2


def test_purge_removes_no_more_than_its_limit(purgeable: TaskRepository) -> None:
    assert [purgeable.purge(DELETED, limit=3) for _ in range(3)] == [3, 1, 0]


def test_several_processes_purge_each_task_once(purgeable: TaskRepository) -> None:
    purges = all_at_once([partial(purgeable.purge, DELETED, limit=2)] * 8)
    assert sum(int(purged) for purged in purges if not isinstance(purged, StorageError)) == 4


def test_a_task_that_is_undeleted_meanwhile_is_not_purged(
    purgeable: TaskRepository, database: Database
) -> None:
    with database.engine.connect() as other:
        other.execution_options(isolation_level="READ COMMITTED")
        other.execute(text("UPDATE tasks SET deleted_at = NULL WHERE title = 'old'"))
        assert purgeable.purge(DELETED) == 2
        other.commit()
    assert (purgeable.purge(DELETED), purgeable.count()) == (0, 3)


def test_a_purged_task_keeps_its_history(purgeable: TaskRepository, database: Database) -> None:
    purgeable.purge(DELETED)
    assert scalar(database, "SELECT count(*) FROM task_events") == 5 + 4
