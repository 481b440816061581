"""The repository on a real PostgreSQL: what each method does, refuses, and leaves alone."""

from __future__ import annotations

import datetime as dt
import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg2 import Error
from sqlalchemy import CheckConstraint, insert, text
from sqlalchemy.exc import IntegrityError

from storage.database import Database
from storage.errors import (
    ConstraintError,
    RequestIdReusedError,
    StorageError,
    TaskExistsError,
    TaskNotDeletedError,
    TaskNotFoundError,
    VersionMismatchError,
)
from storage.query import Comparison, Filter, HasTag, Present, Sort, cursor_at
from storage.repository import (
    Change,
    Creation,
    Origin,
    RequestRecord,
    StatusPriorityCount,
    Target,
    TaskRepository,
)
from storage.tables import TaskRow, requests, tasks
from tests.support.service import wait_until

PENDING, IN_PROGRESS, COMPLETED, CANCELLED = 1, 2, 3, 4
LOW, MEDIUM, HIGH, URGENT = 1, 2, 3, 4
NOON = dt.datetime(2030, 6, 1, 12, tzinfo=dt.UTC)
MOMENT = dt.timedelta(microseconds=1)
FIRST = dt.datetime.min.replace(tzinfo=dt.UTC)
LAST = dt.datetime.max.replace(tzinfo=dt.UTC)

CONTENT = {
    "title": "a task",
    "description": "",
    "status": PENDING,
    "priority": MEDIUM,
    "assigned_to": "",
    "due_date": None,
    "tags": [],
}

SOME_ORIGIN = Origin("ann")

T = TypeVar("T")


def new_id() -> str:
    return str(uuid.uuid4())


def new_task(**fields: object) -> dict[str, Any]:
    """The values of a task to create."""
    return {"id": new_id(), "created_by": "ann", **CONTENT, **fields}


def changed(row: TaskRow, **fields: object) -> dict[str, Any]:
    """The values of a task to update: its own but for these."""
    return {name: getattr(row, name) for name in CONTENT} | fields


def new_request(fingerprint: bytes = b"one body") -> RequestRecord:
    return RequestRecord(new_id(), fingerprint)


class OneByOne:
    """Write one task at a time, as SOME_ORIGIN; `many` is the repository itself."""

    def __init__(self, database: Database, origin: Origin = SOME_ORIGIN) -> None:
        self.many = many = TaskRepository(database)
        self._origin = origin
        self.get, self.page, self.count, self.stats = many.get, many.page, many.count, many.stats
        self.forget_requests = many.forget_requests

    def create(
        self, values: dict[str, Any], request: RequestRecord | None = None, *, commit: bool = True
    ) -> TaskRow:
        (row,) = self.many.create([Creation(values, request)], self._origin, commit=commit)
        return row

    def update(
        self,
        row: TaskRow,
        values: dict[str, Any],
        request: RequestRecord | None = None,
        *,
        commit: bool = True,
    ) -> TaskRow:
        (row,) = self.many.update([Change(row, values, request)], self._origin, commit=commit)
        return row

    def delete(self, task_id: str, version: int | None = None) -> TaskRow:
        (row,) = self.many.delete([Target(task_id, version)], self._origin)
        return row

    def undelete(self, task_id: str, version: int | None = None) -> TaskRow:
        (row,) = self.many.undelete([Target(task_id, version)], self._origin)
        return row

    def find_replay(self, request: RequestRecord) -> TaskRow | None:
        return self.many.find_replays([request], self._origin)[0]


@pytest.fixture
def repository(database: Database) -> OneByOne:
    return OneByOne(database)


def scalar(database: Database, statement: str) -> Any:
    return database.read(text(statement))[0][0]


def all_at_once(calls: Sequence[Callable[[], T]]) -> list[T | StorageError]:
    """The calls' results, or what they raised on purpose; they begin together."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], T]) -> T | StorageError:
        barrier.wait()
        try:
            return call()
        except StorageError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


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


# get


def test_get_of_an_unknown_task_is_not_found(repository: OneByOne) -> None:
    unknown = new_id()
    with pytest.raises(TaskNotFoundError, match=unknown):
        repository.get(unknown)


def test_get_returns_deleted_tasks_too(repository: OneByOne) -> None:
    row = repository.create(new_task())
    deleted = repository.delete(row.id)
    assert repository.get(row.id) == deleted


# page and count


def test_a_page_has_no_more_than_its_limit(repository: OneByOne) -> None:
    for _ in range(3):
        repository.create(new_task())
    assert len(repository.page(limit=2)) == 2


def test_a_page_begins_with_the_newest(repository: OneByOne) -> None:
    rows = [repository.create(new_task()) for _ in range(3)]
    assert repository.page(limit=3) == rows[::-1]


def test_a_page_goes_on_after_its_cursor(repository: OneByOne) -> None:
    first, second, third = (repository.create(new_task()) for _ in range(3))
    order = (Sort("created_at"),)
    assert repository.page(limit=3, order=order, cursor=cursor_at(first, order)) == [second, third]


@pytest.mark.parametrize("show_deleted", [False, True])
def test_deleted_tasks_are_listed_and_counted_only_when_asked_for(
    show_deleted: bool, repository: OneByOne
) -> None:
    repository.delete(repository.create(new_task()).id)
    listed = len(repository.page(limit=10, show_deleted=show_deleted))
    counted = repository.count(show_deleted=show_deleted)
    assert (listed, counted) == (show_deleted, show_deleted)


@pytest.mark.parametrize(
    ("filter_", "titles"),
    [
        (None, {"one", "two"}),
        (HasTag("billing"), {"one"}),
        (Comparison("priority", ">", LOW), {"two"}),
        (Comparison("title", "=", "three"), set()),
    ],
)
def test_page_and_count_agree_on_what_matches(
    filter_: Filter | None, titles: set[str], repository: OneByOne
) -> None:
    repository.create(new_task(title="one", priority=LOW, tags=["billing"]))
    repository.create(new_task(title="two", priority=HIGH))
    assert {row.title for row in repository.page(limit=10, filter_=filter_)} == titles
    assert repository.count(filter_) == len(titles)


times = st.sampled_from([NOON - MOMENT, NOON, NOON + MOMENT])
task_lists = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.uuids().map(str),
            "created_by": st.just("ann"),
            "title": st.sampled_from("ab"),
            "description": st.just(""),
            "status": st.integers(PENDING, CANCELLED),
            "priority": st.integers(LOW, URGENT),
            "assigned_to": st.sampled_from(["", "a", "b"]),
            "due_date": st.none() | times,
            "tags": st.just([]),
            "created_at": times,
            "updated_at": times,
            "deleted_at": st.none() | st.just(NOON),
        }
    ).map(lambda task: task | {"completed_at": NOON if task["status"] == COMPLETED else None}),
    unique_by=lambda task: str(task["id"]),
    max_size=12,
)
orders = st.lists(
    st.builds(
        Sort,
        st.sampled_from(
            ["created_at", "updated_at", "due_date", "priority", "status", "assigned_to", "title"]
        ),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda sort: sort.field,
).map(tuple)

# Each example empties the tables itself; the fixture stands for all of them.
on_the_database = hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def replace_tasks(database: Database, rows: Sequence[dict[str, Any]]) -> None:
    with database.engine.connect() as connection:
        connection.execute(text("TRUNCATE tasks, task_events"))
        if rows:
            connection.execute(insert(tasks), rows)


def sorted_ids(rows: Sequence[dict[str, Any]], order: Sequence[Sort]) -> list[str]:
    """The order as a caller understands it: ties by creation and id, no due date is the last."""
    last = order[-1].descending
    result = sorted(rows, key=lambda row: (row["created_at"], row["id"]), reverse=last)
    for field, descending in ((sort.field, sort.descending) for sort in reversed(order)):
        result.sort(key=partial(sort_key, field, descending), reverse=descending)
    return [row["id"] for row in result]


def sort_key(field: str, descending: bool, row: dict[str, Any]) -> Any:
    """What is absent is the last in both directions."""
    return ((row[field] is None) != descending, LAST if row[field] is None else row[field])


@on_the_database
@given(rows=task_lists, order=orders, size=st.integers(1, 5), show_deleted=st.booleans())
def test_the_pages_of_any_order_are_the_whole_list(
    repository: OneByOne,
    *,
    database: Database,
    rows: list[dict[str, Any]],
    order: tuple[Sort, ...],
    size: int,
    show_deleted: bool,
) -> None:
    """No task is skipped or repeated, whatever ties, absent dates and directions there are."""
    replace_tasks(database, rows)
    page_of = partial(repository.page, limit=size, order=order, show_deleted=show_deleted)
    page, seen = page_of(), list[str]()
    while page and len(seen) <= len(rows):
        seen += [row.id for row in page]
        page = page_of(cursor=cursor_at(page[-1], order))
    visible = [row for row in rows if show_deleted or row["deleted_at"] is None]
    assert seen == sorted_ids(visible, order)


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
        versions += [it.version for it in (row, updated, again, deleted, undeleted, last)]
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


def test_update_that_changes_nothing_of_a_stale_row_took_place_when_that_was_read(
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


def test_an_update_that_changes_nothing_is_refused_too_when_its_request_came_first(
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


# Batches that overlap


def deadlocks(database: Database) -> int:
    """How many there were in the database; a connection tells of its own at its end."""
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
    rows = database.read(text("SELECT count(*) AS size FROM task_events GROUP BY written_by"))
    return Counter(row.size for row in rows)


def sizes(results: Iterable[Sequence[TaskRow] | StorageError]) -> Counter[int]:
    return Counter(len(result) for result in results if not isinstance(result, StorageError))


def test_batches_that_overlap_are_written_wholly_or_not_at_all_and_never_in_a_deadlock(
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
def test_creations_that_overlap_take_place_wholly_or_not_at_all_and_never_in_a_deadlock(
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


def test_batches_with_the_same_requests_take_place_once_and_never_in_a_deadlock(
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
    batches = [[Creation(new_task(), it) for it in chance.sample(asked, 20)] for _ in range(6)]
    results = all_at_once([partial(many.create, batch, SOME_ORIGIN) for batch in batches])
    answers = {frozenset(row.id for row in rows) for rows in results}  # type: ignore[union-attr]
    assert answers == {frozenset(row.id for row in many.page(limit=100))}
    assert many.count() == 20


# stats


@on_the_database
@given(rows=task_lists, pending_only=st.booleans())
def test_stats_are_what_counting_one_by_one_gives(
    database: Database,
    repository: OneByOne,
    rows: list[dict[str, Any]],
    pending_only: bool,
) -> None:
    replace_tasks(database, rows)
    stats = repository.stats(Comparison("status", "=", PENDING) if pending_only else None)
    totals, overdue = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for row in rows:
        group, due = (row["status"], row["priority"]), row["due_date"]
        if row["deleted_at"] is None and (row["status"] == PENDING or not pending_only):
            totals[group] += 1
            overdue[group] += due is not None and due < stats.as_of and row["status"] <= IN_PROGRESS
    assert sorted(stats.counts) == sorted(
        StatusPriorityCount(*group, total, overdue[group]) for group, total in totals.items()
    )


@pytest.mark.parametrize(("ahead", "overdue"), [(-MOMENT, 1), (dt.timedelta(minutes=1), 0)])
def test_a_task_is_overdue_once_its_due_date_has_passed(
    ahead: dt.timedelta, overdue: int, repository: OneByOne, database: Database
) -> None:
    repository.create(new_task(due_date=database.now() + ahead))
    assert repository.stats().counts == [StatusPriorityCount(PENDING, MEDIUM, 1, overdue)]


@pytest.mark.parametrize("status", [COMPLETED, CANCELLED])
def test_a_closed_task_is_never_overdue(status: int, repository: OneByOne) -> None:
    repository.create(new_task(due_date=NOON, status=status))
    assert repository.stats().counts == [StatusPriorityCount(status, MEDIUM, 1, 0)]


# requests


def test_without_requests_no_replays_are_found(repository: OneByOne) -> None:
    assert repository.many.find_replays([None, None], SOME_ORIGIN) == [None, None]


def test_the_replays_of_many_requests_are_found_by_their_ids(repository: OneByOne) -> None:
    first, second = new_request(), new_request()
    row = repository.create(new_task(), first)
    assert repository.many.find_replays([second, None, first], SOME_ORIGIN) == [None, None, row]


def test_nobody_finds_the_replay_of_another_principal(
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
    """Even where PostgreSQL believes that there is one row, and plans accordingly."""
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


# The tables' own rules

BROKEN = {
    "UPDATE tasks SET title = ''": "title_length",
    "UPDATE tasks SET title = repeat('ü', 201)": "title_length",
    "UPDATE tasks SET description = repeat('ü', 2001)": "description_length",
    "UPDATE tasks SET assigned_to = repeat('ü', 201)": "assigned_to_length",
    "UPDATE tasks SET status = 0": "status_known",
    "UPDATE tasks SET status = 5": "status_known",
    "UPDATE tasks SET priority = 0": "priority_known",
    "UPDATE tasks SET priority = 5": "priority_known",
    "UPDATE tasks SET tags = array_fill('x'::text, ARRAY[11])": "tags_count",
    "UPDATE tasks SET status = 3": "completed_at_follows_status",
    "UPDATE tasks SET completed_at = now()": "completed_at_follows_status",
    "UPDATE tasks SET version = 0": "version_positive",
}


@pytest.mark.parametrize(("statement", "constraint"), BROKEN.items())
def test_a_row_that_breaks_a_rule_cannot_exist(
    statement: str, constraint: str, repository: OneByOne, database: Database
) -> None:
    repository.create(new_task())
    with database.engine.connect() as connection, pytest.raises(IntegrityError) as raised:
        connection.execute(text(statement))
    assert isinstance(raised.value.orig, Error)
    assert raised.value.orig.diag.constraint_name == f"ck_tasks_{constraint}"


def test_every_rule_of_the_tables_is_broken_above() -> None:
    rules = {str(rule.name) for rule in tasks.constraints if isinstance(rule, CheckConstraint)}
    assert rules == {f"ck_tasks_{constraint}" for constraint in BROKEN.values()}


def test_the_longest_values_of_the_contract_can_be_stored(repository: OneByOne) -> None:
    """Lengths are characters, not bytes."""
    values = new_task(
        title="💶" * 200, description="💶" * 2000, assigned_to="💶" * 200, tags=["💶" * 50] * 10
    )
    stored = repository.create(values)._asdict()
    assert {name: stored[name] for name in values} == values
