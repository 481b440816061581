"""The counters of tasks are a full count, whatever is written, and are repaired if they are not."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from storage import schema
from storage.database import Database
from storage.query import Comparison
from storage.repository import StatusPriorityCount, TaskRepository
from storage.tables import TaskRow
from tests.support.databases import downgrade
from tests.support.events import PENDING, SOME_ORIGIN, change, create, delete, new_task, undelete
from tests.support.postgres import execute
from tests.support.service import wait_until

HOUR = dt.timedelta(hours=1)
COUNT = text("SELECT status, priority, count(*) FROM tasks WHERE deleted_at IS NULL GROUP BY 1, 2")
OVERDUE = text(
    "SELECT count(*) FROM tasks WHERE deleted_at IS NULL AND status IN (1, 2) AND due_date < now()"
)
ALL = Comparison("created_at", ">", dt.datetime(2000, 1, 1, tzinfo=dt.UTC))

# Due dates by their distance from now: absent, long ago, near now, and far ahead.
DUE = st.none() | st.sampled_from([n * HOUR for n in (-9000, -25, -2, -1, -0.001, 0.5, 2, 9000)])
FIELDS = st.fixed_dictionaries(
    {"status": st.integers(1, 4), "priority": st.integers(1, 4), "due_date": DUE}
)
Step = Callable[[Database, TaskRepository, list[TaskRow], dict[str, object]], object]


@pytest.fixture
def database(own_database_url: str) -> Iterator[Database]:
    database = Database(own_database_url)
    yield database
    database.close()


@pytest.fixture
def repository(database: Database) -> TaskRepository:
    return TaskRepository(database)


def counted(database: Database) -> tuple[list[tuple[int, ...]], int]:
    """Count all tasks."""
    return sorted(database.read(COUNT)), database.read(OVERDUE)[0][0]


def kept(repository: TaskRepository) -> tuple[list[StatusPriorityCount], int]:
    """Return what the counters say."""
    stats = repository.stats()
    return sorted(stats.counts), stats.overdue


def _create(
    _: Database, tasks: TaskRepository, rows: list[TaskRow], fields: dict[str, object]
) -> None:
    create(tasks, 1 + len(rows) % 3, **fields)


def _update(
    _: Database, tasks: TaskRepository, rows: list[TaskRow], fields: dict[str, object]
) -> None:
    living = [row for row in rows if row.deleted_at is None]
    tasks.update([change(row, **fields) for row in living], SOME_ORIGIN)


def _delete(_: Database, tasks: TaskRepository, rows: list[TaskRow], __: dict[str, object]) -> None:
    delete(tasks, [row for row in rows if row.deleted_at is None])


def _undelete(
    _: Database, tasks: TaskRepository, rows: list[TaskRow], __: dict[str, object]
) -> None:
    undelete(tasks, [row for row in rows if row.deleted_at is not None])


def _purge(_: Database, tasks: TaskRepository, rows: list[TaskRow], __: dict[str, object]) -> None:
    tasks.purge(ALL)


def _by_hand(
    database: Database, _: TaskRepository, rows: list[TaskRow], __: dict[str, object]
) -> None:
    """Write as another program might: a row that is not deleted is removed, others are changed."""
    database.write(text("UPDATE tasks SET priority = 5 - priority, due_date = now()"))
    database.write(text("DELETE FROM tasks WHERE id = (SELECT min(id::text)::uuid FROM tasks)"))


STEPS = st.sampled_from([_create, _create, _update, _delete, _undelete, _purge, _by_hand])


@given(steps=st.lists(st.tuples(STEPS, FIELDS, st.integers(0, 7)), max_size=12))
def test_the_counters_are_a_full_count_after_any_writes(
    database: Database, repository: TaskRepository, steps: list[tuple[Step, dict[str, object], int]]
) -> None:
    database.write(text("TRUNCATE tasks"))
    for step, fields, chosen in steps:
        rows = [
            row
            for n, row in enumerate(repository.page(limit=100, show_deleted=True))
            if chosen & (1 << n % 3)
        ]
        due = fields["due_date"]
        due_date = database.now() + due if isinstance(due, dt.timedelta) else None
        step(database, repository, rows, fields | {"due_date": due_date})
    assert kept(repository) == counted(database)
    assert repository.repair_counters() == 0
    assert kept(repository) == counted(database)


def test_truncated_tasks_are_not_counted(database: Database, repository: TaskRepository) -> None:
    create(repository, 3, due_date=database.now() - HOUR)
    database.write(text("TRUNCATE tasks"))
    assert kept(repository) == ([], 0)


def test_a_write_that_is_rolled_back_is_not_counted(repository: TaskRepository) -> None:
    repository.create([new_task()], SOME_ORIGIN, commit=False)
    assert kept(repository) == ([], 0)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE task_counters SET total = total + 7",
        "DELETE FROM task_counters",
        "INSERT INTO task_counters VALUES (3, 4, 4, -2)",
        "UPDATE due_counters SET total = total - 1",
        "DELETE FROM due_counters",
        "INSERT INTO due_counters VALUES (3, '2020-01-01Z', 5)",
    ],
)
def test_wrong_counters_are_repaired(
    damage: str, database: Database, repository: TaskRepository
) -> None:
    for hours in (-30, -1, 30):
        create(repository, 2, due_date=database.now() + hours * HOUR)
    database.write(text(damage))
    assert repository.repair_counters() > 0
    assert kept(repository) == counted(database)
    assert repository.repair_counters() == 0


def test_an_hour_that_has_passed_needs_no_counter_of_its_own(
    database: Database, repository: TaskRepository
) -> None:
    create(repository, 3, due_date=database.now() - HOUR)
    passed = "UPDATE due_counters SET hour = date_trunc('hour', now() - interval '{} hours', 'UTC')"
    database.write(text(passed.format(1)))
    create(repository, 2, due_date=database.now() - HOUR)
    assert kept(repository) == counted(database)
    assert repository.repair_counters() == 0
    hours = database.read(text("SELECT hour::text, sum(total) FROM due_counters GROUP BY 1"))
    assert hours == [("-infinity", 5)]


def test_concurrent_writers_and_repairs_keep_the_count(
    database: Database, repository: TaskRepository
) -> None:
    def write(number: int) -> None:
        for n in range(20):
            row = create(repository, status=1 + n % 2, due_date=database.now() - HOUR)[0]
            repository.update([change(row, status=1 + (n + number) % 4)], SOME_ORIGIN)

    with ThreadPoolExecutor(8) as threads:
        writers = [threads.submit(write, number) for number in range(8)]
        drifts = [repository.repair_counters() for _ in range(10)]
        for writer in writers:
            writer.result()
    assert drifts == [0] * 10
    assert kept(repository) == counted(database)
    assert sum(total for _, _, total in counted(database)[0]) == 160


def test_the_migration_counts_what_was_there(own_database_url: str) -> None:
    downgrade(own_database_url, "0004")
    for status in (1, 2, 4):
        execute(
            own_database_url,
            "INSERT INTO tasks (id, title, status, priority, due_date, created_by) "
            "SELECT gen_random_uuid(), 'old', :status, 2, now() + n * interval '7 hours', 'ann' "
            "FROM generate_series(-5, 5) AS n",
            status=status,
        )
    schema.upgrade(own_database_url)
    database = Database(own_database_url)
    assert (
        kept(TaskRepository(database)) == counted(database) == ([(n, 2, 11) for n in (1, 2, 4)], 12)
    )
    assert TaskRepository(database).repair_counters() == 0
    database.close()


def test_statistics_with_a_filter_agree_with_the_counters(
    database: Database, repository: TaskRepository
) -> None:
    for status in (1, 2, 4):
        create(repository, 2, status=status, due_date=database.now() - HOUR)
    every, some = repository.stats(ALL), repository.stats(Comparison("status", "=", PENDING))
    assert (sorted(every.counts), every.overdue) == kept(repository)
    assert (some.counts, some.overdue) == ([(PENDING, 2, 2)], 2)
    assert Counter(every.counts) != Counter(some.counts)


def test_the_counters_of_ended_sessions_are_folded_into_one(
    own_database_url: str, repository: TaskRepository, database: Database
) -> None:
    other = Database(own_database_url)
    for year in (2000, 2100):
        create(TaskRepository(other), 2, due_date=dt.datetime(year, 1, 1, tzinfo=dt.UTC))
    other.close()
    slots = text("SELECT slot FROM task_counters UNION SELECT slot FROM due_counters")

    def is_folded() -> bool:
        assert repository.repair_counters() == 0
        return database.read(slots) == [(0,)]

    wait_until(is_folded, "the session has ended and its counters are folded")
    assert kept(repository) == counted(database)


def test_neither_writes_nor_repairs_wait_for_an_open_transaction(
    database: Database, repository: TaskRepository
) -> None:
    create(repository, 3, due_date=database.now() - HOUR)
    with database.transaction(commits=False) as transaction:
        transaction.write(text("UPDATE tasks SET priority = 5 - priority, due_date = now()"))
        create(repository, 2)
        assert repository.repair_counters() == 0
    assert kept(repository) == counted(database)
