"""Updates on a real PostgreSQL: what they store and refuse, their requests, and completed_at."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest

from storage.errors import VersionMismatchError
from storage.query import Present
from storage.tables import TaskRow
from tests.support.repository import (
    CANCELLED,
    COMPLETED,
    HIGH,
    IN_PROGRESS,
    NOON,
    PENDING,
    OneByOne,
    all_at_once,
    changed,
    new_request,
    new_task,
)

# update


def test_update_stores_every_value(repository: OneByOne) -> None:
    row = repository.create(new_task())
    values = {
        "title": "renamed",
        "description": "described",
        "status": CANCELLED,
        "priority": HIGH,
        "assigned_to": "anna",
        "due_date": NOON,
        "tags": ["new"],
    }
    repository.update(row, values)
    stored = repository.get(row.id)._asdict()
    assert {name: stored[name] for name in values} == values


def test_update_returns_what_it_stored(repository: OneByOne) -> None:
    row = repository.create(new_task())
    assert repository.update(row, changed(row, title="renamed")) == repository.get(row.id)


def test_every_write_gives_a_version_that_was_never_there(repository: OneByOne) -> None:
    """Also when the same task is made again after a purge."""
    values = new_task()
    versions = []
    for _ in range(3):
        row = repository.create(values)
        updated = repository.update(row, changed(row, title="renamed"))
        again = repository.update(updated, changed(row))
        deleted = repository.delete(row.id)
        undeleted = repository.undelete(row.id)
        last = repository.delete(row.id)
        versions += [row.version for row in (row, updated, again, deleted, undeleted, last)]
        repository.many.purge(Present("deleted_at"))
    assert len(set(versions)) == len(versions)


def test_update_moves_updated_at_and_not_created_at(repository: OneByOne) -> None:
    row = repository.create(new_task())
    updated = repository.update(row, changed(row, title="renamed"))
    assert updated.updated_at > row.updated_at
    assert updated.created_at == row.created_at


def test_update_of_a_row_that_was_written_since_is_refused(repository: OneByOne) -> None:
    row = repository.create(new_task())
    repository.update(row, changed(row, title="second"))
    with pytest.raises(VersionMismatchError, match=row.id):
        repository.update(row, changed(row, title="third"))


def test_a_refused_update_leaves_the_task_alone(repository: OneByOne) -> None:
    row = repository.create(new_task())
    second = repository.update(row, changed(row, title="second"))
    with pytest.raises(VersionMismatchError):
        repository.update(row, changed(row, title="third"))
    assert repository.get(row.id) == second


def test_a_refused_update_records_no_request(repository: OneByOne) -> None:
    row, request = repository.create(new_task()), new_request()
    repository.update(row, changed(row, title="second"))
    with pytest.raises(VersionMismatchError):
        repository.update(row, changed(row, title="third"), request)
    assert repository.find_replay(request) is None


def test_a_deleted_task_is_not_updated(repository: OneByOne) -> None:
    deleted = repository.delete(repository.create(new_task()).id)
    with pytest.raises(VersionMismatchError):
        repository.update(deleted, changed(deleted, title="renamed"))


def test_of_many_updates_of_one_version_one_wins(repository: OneByOne) -> None:
    row = repository.create(new_task())
    results = all_at_once(
        [partial(repository.update, row, changed(row, title=f"writer {n}")) for n in range(100)]
    )
    assert Counter(type(result) for result in results) == {TaskRow: 1, VersionMismatchError: 99}


def test_update_that_changes_nothing_leaves_the_row_alone(repository: OneByOne) -> None:
    row = repository.create(new_task(tags=["a"], due_date=NOON))
    repository.update(row, changed(row))
    assert repository.get(row.id) == row


def test_update_that_changes_nothing_records_its_request(repository: OneByOne) -> None:
    """Else the request's repetition could change something, after another write."""
    row, request = repository.create(new_task()), new_request()
    repository.update(row, changed(row), request)
    assert repository.find_replay(request) == row


def test_update_with_a_request_that_changes_nothing_leaves_the_row_alone(
    repository: OneByOne,
) -> None:
    row = repository.create(new_task())
    assert repository.update(row, changed(row), new_request()) == repository.get(row.id) == row


def test_a_stale_update_that_changes_nothing_is_recorded_and_not_refused(
    repository: OneByOne,
) -> None:
    row, request = repository.create(new_task()), new_request()
    renamed = repository.update(row, changed(row, title="second"))
    assert repository.update(row, changed(row), request) == row
    assert repository.find_replay(request) == renamed == repository.get(row.id)


def test_update_records_its_request(repository: OneByOne) -> None:
    row, request = repository.create(new_task()), new_request()
    updated = repository.update(row, changed(row, title="renamed"), request)
    assert repository.find_replay(request) == updated


@pytest.mark.parametrize("fingerprint", [b"one body", b"another body"])
@pytest.mark.parametrize("stale", [True, False])
def test_an_update_whose_request_came_first_is_refused(
    repository: OneByOne, fingerprint: bytes, stale: bool
) -> None:
    """A repetition looks for replays, and finds the first request or that the id was reused."""
    row, request = repository.create(new_task()), new_request()
    updated = repository.update(row, changed(row, title="renamed"), request)
    again = changed(row, title="renamed again")
    with pytest.raises(VersionMismatchError, match=row.id):
        repository.update(
            row if stale else updated, again, request._replace(fingerprint=fingerprint)
        )
    assert repository.find_replay(request) == updated == repository.get(row.id)


def test_an_update_without_changes_is_refused_if_its_request_came_first(
    repository: OneByOne,
) -> None:
    row, request = repository.create(new_task()), new_request()
    repository.create(new_task(), request)
    with pytest.raises(VersionMismatchError, match=row.id):
        repository.update(row, changed(row), request)


def test_of_concurrent_updates_with_one_request_one_wins_and_all_find_it(
    repository: OneByOne,
) -> None:
    """A client that timed out asks again while the first call is still at work."""
    row, request = repository.create(new_task()), new_request()
    update = partial(repository.update, row, changed(row, title="renamed"), request)
    results = all_at_once([update] * 8)
    assert Counter(type(result) for result in results) == {TaskRow: 1, VersionMismatchError: 7}
    assert repository.find_replay(request) == repository.get(row.id)
    assert repository.get(row.id).title == "renamed"


def test_update_without_commit_returns_what_it_would_store(repository: OneByOne) -> None:
    row = repository.create(new_task())
    updated = repository.update(row, changed(row, title="renamed"), commit=False)
    assert updated.title == "renamed"


def test_update_without_commit_stores_neither_task_nor_request(repository: OneByOne) -> None:
    row, request = repository.create(new_task()), new_request()
    repository.update(row, changed(row, title="renamed"), request, commit=False)
    assert (repository.get(row.id), repository.find_replay(request)) == (row, None)


# completed_at follows the status


def test_a_task_created_as_completed_was_completed_then(repository: OneByOne) -> None:
    row = repository.create(new_task(status=COMPLETED))
    assert row.completed_at == row.created_at


@pytest.mark.parametrize("status", [PENDING, IN_PROGRESS, CANCELLED])
def test_a_task_created_otherwise_was_not_completed(status: int, repository: OneByOne) -> None:
    assert repository.create(new_task(status=status)).completed_at is None


def test_completing_a_task_sets_completed_at(repository: OneByOne) -> None:
    row = repository.create(new_task())
    row = repository.update(row, changed(row, status=COMPLETED))
    assert row.completed_at == row.updated_at


def test_writing_a_completed_task_keeps_completed_at(repository: OneByOne) -> None:
    row = repository.create(new_task(status=COMPLETED))
    assert repository.update(row, changed(row, title="x")).completed_at == row.completed_at


@pytest.mark.parametrize("status", [PENDING, IN_PROGRESS, CANCELLED])
def test_reopening_a_task_clears_completed_at(status: int, repository: OneByOne) -> None:
    row = repository.create(new_task(status=COMPLETED))
    assert repository.update(row, changed(row, status=status)).completed_at is None


def test_deleting_and_undeleting_a_completed_task_keeps_completed_at(
    repository: OneByOne,
) -> None:
    row = repository.create(new_task(status=COMPLETED))
    repository.delete(row.id)
    assert repository.undelete(row.id).completed_at == row.completed_at
