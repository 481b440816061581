"""Requests on a real PostgreSQL: how they are found again, and when they are removed."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from sqlalchemy import text

from storage.database import Database
from storage.errors import RequestIdReusedError, TaskNotFoundError
from storage.repository import Origin
from storage.tables import requests, tasks
from tests.support.repository import SOME_ORIGIN, OneByOne, new_request, new_task, scalar


def test_without_requests_no_replays_are_found(repository: OneByOne) -> None:
    assert repository.many.find_replays([None, None], SOME_ORIGIN) == [None, None]


def test_the_replays_of_many_requests_are_found_by_their_ids(repository: OneByOne) -> None:
    first, second = new_request(), new_request()
    row = repository.create(new_task(), first)
    assert repository.many.find_replays([second, None, first], SOME_ORIGIN) == [None, None, row]


def test_a_replay_is_not_found_by_another_principal(
    repository: OneByOne, database: Database
) -> None:
    request = new_request()
    repository.create(new_task(), request)
    assert OneByOne(database, Origin("bob")).find_replay(request) is None


def test_find_replay_of_an_unknown_request_finds_nothing(repository: OneByOne) -> None:
    assert repository.find_replay(new_request()) is None


def test_find_replay_of_another_body_is_refused(repository: OneByOne) -> None:
    request = new_request()
    repository.create(new_task(), request)
    with pytest.raises(RequestIdReusedError):
        repository.find_replay(request._replace(fingerprint=b"another body"))


def test_find_replay_of_a_task_that_is_gone_is_not_found(
    repository: OneByOne, database: Database
) -> None:
    """Purged since: the write took place, so it must not take place again."""
    request = new_request()
    row = repository.create(new_task(), request)
    with database.engine.connect() as connection:
        connection.execute(tasks.delete())
    with pytest.raises(TaskNotFoundError, match=row.id):
        repository.find_replay(request)


def add_requests(database: Database, number: int, *, age: str) -> None:
    statement = text(
        "INSERT INTO requests (principal, request_id, fingerprint, task_id, created_at) "
        "SELECT 'ann', gen_random_uuid(), '\\x00', gen_random_uuid(), now() - :age ::interval "
        "FROM generate_series(1, :number)"
    )
    with database.engine.connect() as connection:
        connection.execute(statement, {"age": age, "number": number})


def test_forget_requests_removes_the_old_and_keeps_the_others(
    repository: OneByOne, database: Database
) -> None:
    add_requests(database, 3, age="25 hours")
    add_requests(database, 2, age="23 hours")
    assert repository.forget_requests(older_than=dt.timedelta(hours=24)) == 3
    assert scalar(database, "SELECT count(*) FROM requests") == 2


def test_a_forgotten_request_can_be_made_anew(repository: OneByOne) -> None:
    request = new_request()
    repository.create(new_task(), request)
    repository.forget_requests(older_than=-dt.timedelta(hours=1))
    repository.create(new_task(), request)
    assert repository.count() == 2


def test_forget_requests_removes_no_more_than_its_limit(
    repository: OneByOne, database: Database
) -> None:
    """Even if PostgreSQL estimates one row, and plans accordingly."""
    add_requests(database, 1, age="2 days")
    with database.engine.connect() as connection:
        connection.execute(text("ANALYZE requests"))
    add_requests(database, 9, age="2 days")
    forgotten = repository.forget_requests(older_than=dt.timedelta(hours=24), limit=4)
    assert (forgotten, scalar(database, "SELECT count(*) FROM requests")) == (4, 6)


def test_several_processes_forget_each_request_once(
    repository: OneByOne, database: Database
) -> None:
    add_requests(database, 500, age="2 days")

    def forget_all() -> int:
        batch = partial(repository.forget_requests, older_than=dt.timedelta(hours=24), limit=20)
        return sum(iter(batch, 0))

    with ThreadPoolExecutor(4) as pool:
        forgotten = [pool.submit(forget_all) for _ in range(4)]
    assert sum(future.result() for future in forgotten) == 500
    assert scalar(database, "SELECT count(*) FROM requests") == 0


def test_forget_requests_does_not_wait_for_a_record_that_another_removes(
    repository: OneByOne, database: Database
) -> None:
    add_requests(database, 2, age="2 days")
    with database.engine.connect() as other:
        other.execution_options(isolation_level="READ COMMITTED")
        one = requests.select().limit(1).with_for_update()
        other.execute(one)
        assert repository.forget_requests(older_than=dt.timedelta(hours=24)) == 1
