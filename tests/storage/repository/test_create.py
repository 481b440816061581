"""Creation on a real PostgreSQL: what is stored, what is refused, and repeated requests."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from functools import partial

import pytest

from storage.database import Database
from storage.errors import ConstraintError, RequestIdReusedError, TaskExistsError, TaskNotFoundError
from storage.repository import Origin
from storage.tables import TaskRow
from tests.support.repository import (
    COMPLETED,
    FIRST,
    IN_PROGRESS,
    LAST,
    NOON,
    URGENT,
    OneByOne,
    all_at_once,
    changed,
    new_request,
    new_task,
)

# create


def test_create_stores_every_value(repository: OneByOne) -> None:
    values = new_task(
        title="Überweisung 💶",
        description="two\nlines",
        status=IN_PROGRESS,
        priority=URGENT,
        assigned_to="anna@example.com",
        due_date=NOON,
        tags=["billing", "it's", "{a,b}"],
    )
    repository.create(values)
    stored = repository.get(values["id"])._asdict()
    assert {name: stored[name] for name in values} == values


def test_create_returns_what_it_stored(repository: OneByOne) -> None:
    row = repository.create(new_task(status=COMPLETED))
    assert row == repository.get(row.id)


def test_a_new_task_begins_undeleted_with_a_version(repository: OneByOne) -> None:
    row = repository.create(new_task())
    assert (row.version > 0, row.deleted_at, row.updated_at) == (True, None, row.created_at)


@pytest.mark.parametrize("due_date", [FIRST, LAST], ids=["first", "last"])
def test_every_time_of_the_contract_can_be_stored(
    due_date: dt.datetime, repository: OneByOne
) -> None:
    """The contract allows the years 1 to 9999."""
    assert repository.create(new_task(due_date=due_date)).due_date == due_date


def test_create_with_a_taken_id_is_refused(repository: OneByOne) -> None:
    row = repository.create(new_task())
    with pytest.raises(TaskExistsError, match=row.id):
        repository.create(new_task(id=row.id))


def test_create_with_a_taken_id_leaves_the_task_alone(repository: OneByOne) -> None:
    row = repository.create(new_task(title="first"))
    with pytest.raises(TaskExistsError):
        repository.create(new_task(id=row.id, title="second"))
    assert repository.get(row.id) == row


def test_create_with_the_id_of_a_deleted_task_is_refused(repository: OneByOne) -> None:
    row = repository.create(new_task())
    repository.delete(row.id)
    with pytest.raises(TaskExistsError):
        repository.create(new_task(id=row.id))


def test_create_that_breaks_another_rule_does_not_say_that_the_id_is_taken(
    repository: OneByOne,
) -> None:
    """A violated CHECK constraint is not reported as a taken id."""
    with pytest.raises(ConstraintError, match="ck_tasks_title_length"):
        repository.create(new_task(title=""))


def test_create_without_commit_returns_the_task(repository: OneByOne) -> None:
    assert repository.create(new_task(title="perhaps"), commit=False).title == "perhaps"


def test_create_without_commit_stores_neither_task_nor_request(
    repository: OneByOne,
) -> None:
    request = new_request()
    row = repository.create(new_task(), request, commit=False)
    assert repository.find_replay(request) is None
    with pytest.raises(TaskNotFoundError):
        repository.get(row.id)


def test_create_without_commit_still_finds_that_the_id_is_taken(repository: OneByOne) -> None:
    row = repository.create(new_task())
    with pytest.raises(TaskExistsError):
        repository.create(new_task(id=row.id), commit=False)


# create with a request


def test_a_repeated_create_returns_the_first_task(repository: OneByOne) -> None:
    request = new_request()
    row = repository.create(new_task(), request)
    assert repository.create(new_task(), request) == row


def test_a_repeated_create_returns_the_task_as_it_is_now(repository: OneByOne) -> None:
    request = new_request()
    row = repository.create(new_task(), request)
    renamed = repository.update(row, changed(row, title="renamed"))
    assert repository.create(new_task(), request) == renamed


def test_a_repeated_create_makes_no_second_task(repository: OneByOne) -> None:
    request = new_request()
    for _ in range(2):
        repository.create(new_task(), request)
    assert repository.count() == 1


def test_a_repeated_create_of_a_chosen_id_returns_the_task(repository: OneByOne) -> None:
    """Both the id and the request are taken: that the request is comes first."""
    request, values = new_request(), new_task()
    row = repository.create(values, request)
    assert repository.create(values, request) == row


def test_a_request_id_used_for_another_body_is_refused(repository: OneByOne) -> None:
    request = new_request()
    repository.create(new_task(), request)
    with pytest.raises(RequestIdReusedError, match=request.request_id):
        repository.create(new_task(), request._replace(fingerprint=b"another body"))


def test_a_create_refused_for_its_request_id_stores_no_task(repository: OneByOne) -> None:
    request = new_request()
    repository.create(new_task(), request)
    with pytest.raises(RequestIdReusedError):
        repository.create(new_task(), request._replace(fingerprint=b"another body"))
    assert repository.count() == 1


def test_a_create_refused_for_its_id_records_no_request(repository: OneByOne) -> None:
    row, request = repository.create(new_task()), new_request()
    with pytest.raises(TaskExistsError):
        repository.create(new_task(id=row.id), request)
    assert repository.find_replay(request) is None


def test_two_principals_may_use_the_same_request_id(
    repository: OneByOne, database: Database
) -> None:
    request = new_request()
    repository.create(new_task(), request)
    OneByOne(database, Origin("bob")).create(new_task(), request)
    assert repository.count() == 2


def test_concurrent_creates_with_one_request_make_one_task(repository: OneByOne) -> None:
    """A client that timed out asks again while the first call is still at work."""
    request = new_request()
    rows = all_at_once([partial(repository.create, new_task(), request) for _ in range(8)])
    assert rows == [repository.page(limit=10)[0]] * 8


def test_concurrent_creates_of_one_id_make_one_task(repository: OneByOne) -> None:
    values = new_task()
    results = all_at_once([partial(repository.create, values) for _ in range(8)])
    assert Counter(type(result) for result in results) == {TaskRow: 1, TaskExistsError: 7}
