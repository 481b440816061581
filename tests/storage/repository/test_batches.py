"""Batches on a real PostgreSQL: all or nothing, also when they overlap."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from sqlalchemy import text

from storage.database import Database
from storage.errors import (
    StorageError,
    TaskExistsError,
    TaskNotDeletedError,
    TaskNotFoundError,
    VersionMismatchError,
)
from storage.query import Sort
from storage.repository import Change, Creation, Target, TaskRepository
from storage.tables import TaskRow
from tests.support.repository import (
    SOME_ORIGIN,
    OneByOne,
    all_at_once,
    changed,
    new_id,
    new_request,
    new_task,
    scalar,
)
from tests.support.service import wait_until

# Batches


def titled(rows: Sequence[TaskRow], title: str) -> list[Change]:
    return [Change(row, changed(row, title=title)) for row in rows]


@pytest.fixture
def rows(repository: OneByOne) -> list[TaskRow]:
    """Three tasks."""
    return repository.many.create([Creation(new_task()) for _ in range(3)], SOME_ORIGIN)


@pytest.fixture(params=[1, -1], ids=["as they were made", "the other way round"])
def shuffled(request: pytest.FixtureRequest, rows: list[TaskRow]) -> list[TaskRow]:
    return rows[:: request.param]


def test_a_batch_of_nothing_does_nothing(repository: OneByOne) -> None:
    many = repository.many
    assert many.create([], SOME_ORIGIN) == many.update([], SOME_ORIGIN) == []
    assert many.delete([], SOME_ORIGIN) == many.undelete([], SOME_ORIGIN) == []


def test_batches_are_answered_in_the_order_they_were_asked_in(
    repository: OneByOne, shuffled: list[TaskRow]
) -> None:
    many, ids = repository.many, [row.id for row in shuffled]
    targets = [Target(id_) for id_ in ids]
    assert [row.id for row in many.update(titled(shuffled, "new"), SOME_ORIGIN)] == ids
    assert [row.id for row in many.delete(targets, SOME_ORIGIN)] == ids
    assert [row.id for row in many.undelete(targets, SOME_ORIGIN)] == ids


def test_find_returns_those_that_there_are(repository: OneByOne, rows: list[TaskRow]) -> None:
    deleted = repository.delete(rows[0].id)
    found = repository.many.find([rows[0].id, new_id(), rows[1].id])
    assert found == {row.id: row for row in (deleted, rows[1])}


def test_a_batch_of_which_one_id_is_taken_creates_nothing(
    repository: OneByOne, rows: list[TaskRow]
) -> None:
    batch = [Creation(new_task()), Creation(new_task(id=rows[1].id))]
    with pytest.raises(TaskExistsError, match=rows[1].id):
        repository.many.create(batch, SOME_ORIGIN)
    assert repository.count() == len(rows)


def test_a_batch_some_of_which_was_created_before_creates_the_others(
    repository: OneByOne,
) -> None:
    batch = [Creation(new_task(), new_request()) for _ in range(3)]
    (before,) = repository.many.create(batch[1:2], SOME_ORIGIN)
    created = repository.many.create(batch, SOME_ORIGIN)
    assert [row.id for row in created] == [item.values["id"] for item in batch]
    assert (created[1], repository.count()) == (before, 3)


def test_a_batch_of_which_one_is_stale_updates_nothing(
    repository: OneByOne, rows: list[TaskRow]
) -> None:
    renamed = repository.update(rows[1], changed(rows[1], title="renamed"))
    with pytest.raises(VersionMismatchError):
        repository.many.update(titled(rows, "new"), SOME_ORIGIN)
    assert repository.page(limit=10, order=(Sort("created_at"),)) == sorted(
        [rows[0], renamed, rows[2]], key=lambda row: row.id
    )


def test_a_batch_that_is_refused_records_none_of_its_requests(
    repository: OneByOne, rows: list[TaskRow]
) -> None:
    repository.update(rows[1], changed(rows[1], title="renamed"))
    asked = [new_request() for _ in rows]
    changes = [
        change._replace(request=request)
        for change, request in zip(titled(rows, "new"), asked, strict=True)
    ]
    with pytest.raises(VersionMismatchError):
        repository.many.update(changes, SOME_ORIGIN)
    assert not any(repository.many.find_replays(asked, SOME_ORIGIN))


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (lambda row: Target(new_id()), TaskNotFoundError),
        (lambda row: Target(row.id, row.version + 1), VersionMismatchError),
    ],
    ids=["unknown", "another version"],
)
def test_a_batch_of_which_one_cannot_be_deleted_deletes_nothing(
    repository: OneByOne,
    rows: list[TaskRow],
    bad: Callable[[TaskRow], Target],
    error: type[StorageError],
) -> None:
    with pytest.raises(error):
        repository.many.delete([Target(rows[0].id), bad(rows[1])], SOME_ORIGIN)
    assert repository.count() == len(rows)


def test_a_batch_of_which_one_is_not_deleted_undeletes_nothing(
    repository: OneByOne, rows: list[TaskRow]
) -> None:
    repository.delete(rows[0].id)
    with pytest.raises(TaskNotDeletedError, match=rows[1].id):
        repository.many.undelete([Target(row.id) for row in rows[:2]], SOME_ORIGIN)
    assert repository.count() == 2


@pytest.fixture
def own_database(own_database_url: str) -> Iterator[Database]:
    database = Database(own_database_url)
    yield database
    database.close()


# Batches that overlap


def deadlocks(database: Database) -> int:
    """The number of deadlocks in the database; a connection reports its own when it ends."""
    database.engine.dispose()
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    wait_until(lambda: scalar(database, others) == 0, "they have told")
    counted = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    return int(scalar(database, counted))


def batches_written(database: Database) -> Counter[int]:
    """How many batches of each size have left their events."""
    rows = database.read(text("SELECT count(*) FROM task_events GROUP BY written_by"))
    return Counter(size for (size,) in rows)


def sizes(results: Iterable[Sequence[TaskRow] | StorageError]) -> Counter[int]:
    return Counter(len(result) for result in results if not isinstance(result, StorageError))


def test_overlapping_batches_are_atomic_and_never_deadlock(
    own_database: Database,
) -> None:
    """Whatever the order of their items: each locks its tasks in that of their ids."""
    many = TaskRepository(own_database)
    ids = [row.id for row in many.create([Creation(new_task()) for _ in range(10)], SOME_ORIGIN)]

    def write(writer: int) -> list[list[TaskRow] | StorageError]:
        chance = random.Random(writer)  # noqa: S311
        results: list[list[TaskRow] | StorageError] = []
        for number in range(60):
            some = chance.sample(ids, chance.randint(2, 10))
            targets = [Target(id_) for id_ in some]
            found = many.find(some)
            update = titled([found[id_] for id_ in some], f"{writer}.{number}")
            asked = [change._replace(request=new_request()) for change in update]
            try:
                results.append(
                    chance.choice(
                        [
                            partial(many.update, update),
                            partial(many.update, asked),
                            partial(many.delete, targets),
                            partial(many.undelete, targets),
                        ]
                    )(origin=SOME_ORIGIN)
                )
            except StorageError as error:
                results.append(error)
        return results

    with ThreadPoolExecutor(6) as pool:
        results = [result for results in pool.map(write, range(6)) for result in results]
    assert {type(result) for result in results} <= {
        list,
        TaskNotFoundError,
        TaskNotDeletedError,
        VersionMismatchError,
    }
    assert batches_written(own_database) == sizes(results) + Counter({10: 1})
    assert deadlocks(own_database) == 0


@pytest.mark.parametrize("with_requests", [False, True])
def test_overlapping_creations_are_atomic_and_never_deadlock(
    own_database: Database, with_requests: bool
) -> None:
    many, chance = TaskRepository(own_database), random.Random(1)  # noqa: S311
    results: list[list[TaskRow] | StorageError] = []
    for _ in range(25):
        ids = [new_id() for _ in range(6)]
        batches = [
            [
                Creation(new_task(id=id_), new_request() if with_requests else None)
                for id_ in chance.sample(ids, 4)
            ]
            for _ in range(6)
        ]
        results += all_at_once([partial(many.create, batch, SOME_ORIGIN) for batch in batches])
    assert {type(result) for result in results} == {list, TaskExistsError}
    assert batches_written(own_database) == sizes(results)
    assert deadlocks(own_database) == 0


def test_batches_with_the_same_requests_run_once_and_never_deadlock(
    own_database: Database,
) -> None:
    """Whatever their order. These change nothing else, so that their requests meet at once."""
    many, chance = TaskRepository(own_database), random.Random(1)  # noqa: S311
    rows = many.create([Creation(new_task()) for _ in range(500)], SOME_ORIGIN)
    for _ in range(5):
        asked = [Change(row, changed(row), new_request()) for row in rows]
        batches = [chance.sample(asked, 500) for _ in range(6)]
        results = all_at_once([partial(many.update, batch, SOME_ORIGIN) for batch in batches])
        assert Counter(map(type, results)) == {list: 1, VersionMismatchError: 5}
        assert len(many.find_replays([change.request for change in asked], SOME_ORIGIN)) == 500
    assert deadlocks(own_database) == 0


def test_creations_with_the_same_requests_in_any_order_take_place_once(
    own_database: Database,
) -> None:
    many, chance = TaskRepository(own_database), random.Random(1)  # noqa: S311
    asked = [new_request() for _ in range(20)]
    batches = [
        [Creation(new_task(), record) for record in chance.sample(asked, 20)] for _ in range(6)
    ]
    results = all_at_once([partial(many.create, batch, SOME_ORIGIN) for batch in batches])
    answers = {frozenset(row.id for row in rows) for rows in results}  # type: ignore[union-attr]
    assert answers == {frozenset(row.id for row in many.page(limit=100))}
    assert many.count() == 20
