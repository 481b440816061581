"""The repository on a real PostgreSQL: what each method does, refuses, and leaves alone."""

from __future__ import annotations

import datetime as dt
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
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
from storage.query import Comparison, Filter, HasTag, Sort, cursor_at
from storage.repository import RequestRecord, StatusPriorityCount, TaskRepository
from storage.tables import TaskRow, requests, tasks

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

T = TypeVar("T")


def new_id() -> str:
    return str(uuid.uuid4())


def new_task(**fields: object) -> dict[str, Any]:
    """The values of a task to create."""
    return {"id": new_id(), "created_by": "somebody", **CONTENT, **fields}


def changed(row: TaskRow, **fields: object) -> dict[str, Any]:
    """The values of a task to update: its own but for these."""
    return {name: getattr(row, name) for name in CONTENT} | fields


def new_request(fingerprint: bytes = b"one body") -> RequestRecord:
    return RequestRecord("somebody", new_id(), fingerprint)


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


def test_create_stores_every_value(repository: TaskRepository) -> None:
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


def test_create_returns_what_it_stored(repository: TaskRepository) -> None:
    row = repository.create(new_task(status=COMPLETED))
    assert row == repository.get(row.id)


def test_a_new_task_begins_at_version_one_undeleted(repository: TaskRepository) -> None:
    row = repository.create(new_task())
    assert (row.version, row.deleted_at, row.updated_at) == (1, None, row.created_at)


@pytest.mark.parametrize("due_date", [FIRST, LAST], ids=["first", "last"])
def test_every_time_of_the_contract_can_be_stored(
    due_date: dt.datetime, repository: TaskRepository
) -> None:
    """The contract allows the years 1 to 9999."""
    assert repository.create(new_task(due_date=due_date)).due_date == due_date


def test_create_with_a_taken_id_is_refused(repository: TaskRepository) -> None:
    row = repository.create(new_task())
    with pytest.raises(TaskExistsError, match=row.id):
        repository.create(new_task(id=row.id))


def test_create_with_a_taken_id_leaves_the_task_alone(repository: TaskRepository) -> None:
    row = repository.create(new_task(title="first"))
    with pytest.raises(TaskExistsError):
        repository.create(new_task(id=row.id, title="second"))
    assert repository.get(row.id) == row


def test_create_with_the_id_of_a_deleted_task_is_refused(repository: TaskRepository) -> None:
    row = repository.create(new_task())
    repository.delete(row.id)
    with pytest.raises(TaskExistsError):
        repository.create(new_task(id=row.id))


def test_create_that_breaks_another_rule_does_not_say_that_the_id_is_taken(
    repository: TaskRepository,
) -> None:
    """A CHECK constraint is no reason to tell a caller that somebody has this id."""
    with pytest.raises(ConstraintError, match="ck_tasks_title_length"):
        repository.create(new_task(title=""))


def test_create_without_commit_returns_the_task(repository: TaskRepository) -> None:
    assert repository.create(new_task(title="perhaps"), commit=False).title == "perhaps"


def test_create_without_commit_stores_neither_task_nor_request(
    repository: TaskRepository,
) -> None:
    request = new_request()
    row = repository.create(new_task(), request, commit=False)
    assert repository.find_replay(request) is None
    with pytest.raises(TaskNotFoundError):
        repository.get(row.id)


def test_create_without_commit_still_finds_that_the_id_is_taken(repository: TaskRepository) -> None:
    row = repository.create(new_task())
    with pytest.raises(TaskExistsError):
        repository.create(new_task(id=row.id), commit=False)


# create with a request


def test_a_repeated_create_returns_the_first_task(repository: TaskRepository) -> None:
    request = new_request()
    row = repository.create(new_task(), request)
    assert repository.create(new_task(), request) == row


def test_a_repeated_create_returns_the_task_as_it_is_now(repository: TaskRepository) -> None:
    request = new_request()
    row = repository.create(new_task(), request)
    renamed = repository.update(row, changed(row, title="renamed"))
    assert repository.create(new_task(), request) == renamed


def test_a_repeated_create_makes_no_second_task(repository: TaskRepository) -> None:
    request = new_request()
    for _ in range(2):
        repository.create(new_task(), request)
    assert repository.count() == 1


def test_a_repeated_create_of_a_chosen_id_returns_the_task(repository: TaskRepository) -> None:
    """Both the id and the request are taken: that the request is comes first."""
    request, values = new_request(), new_task()
    row = repository.create(values, request)
    assert repository.create(values, request) == row


def test_a_request_id_used_for_another_body_is_refused(repository: TaskRepository) -> None:
    request = new_request()
    repository.create(new_task(), request)
    with pytest.raises(RequestIdReusedError, match=request.request_id):
        repository.create(new_task(), request._replace(fingerprint=b"another body"))


def test_a_create_refused_for_its_request_id_stores_no_task(repository: TaskRepository) -> None:
    request = new_request()
    repository.create(new_task(), request)
    with pytest.raises(RequestIdReusedError):
        repository.create(new_task(), request._replace(fingerprint=b"another body"))
    assert repository.count() == 1


def test_a_create_refused_for_its_id_records_no_request(repository: TaskRepository) -> None:
    row, request = repository.create(new_task()), new_request()
    with pytest.raises(TaskExistsError):
        repository.create(new_task(id=row.id), request)
    assert repository.find_replay(request) is None


def test_two_principals_may_use_the_same_request_id(repository: TaskRepository) -> None:
    request = new_request()
    repository.create(new_task(), request)
    repository.create(new_task(), request._replace(principal="somebody else"))
    assert repository.count() == 2


def test_concurrent_creates_with_one_request_make_one_task(repository: TaskRepository) -> None:
    """A client that timed out asks again while the first call is still at work."""
    request = new_request()
    rows = all_at_once([partial(repository.create, new_task(), request) for _ in range(8)])
    assert rows == [repository.page(limit=10)[0]] * 8


def test_concurrent_creates_of_one_id_make_one_task(repository: TaskRepository) -> None:
    values = new_task()
    results = all_at_once([partial(repository.create, values) for _ in range(8)])
    assert Counter(type(result) for result in results) == {TaskRow: 1, TaskExistsError: 7}


# get


def test_get_of_an_unknown_task_is_not_found(repository: TaskRepository) -> None:
    unknown = new_id()
    with pytest.raises(TaskNotFoundError, match=unknown):
        repository.get(unknown)


def test_get_returns_deleted_tasks_too(repository: TaskRepository) -> None:
    row = repository.create(new_task())
    deleted = repository.delete(row.id)
    assert repository.get(row.id) == deleted


# page and count


def test_a_page_has_no_more_than_its_limit(repository: TaskRepository) -> None:
    for _ in range(3):
        repository.create(new_task())
    assert len(repository.page(limit=2)) == 2


def test_a_page_begins_with_the_newest(repository: TaskRepository) -> None:
    rows = [repository.create(new_task()) for _ in range(3)]
    assert repository.page(limit=3) == rows[::-1]


def test_a_page_goes_on_after_its_cursor(repository: TaskRepository) -> None:
    first, second, third = (repository.create(new_task()) for _ in range(3))
    order = (Sort("created_at"),)
    assert repository.page(limit=3, order=order, cursor=cursor_at(first, order)) == [second, third]


@pytest.mark.parametrize("show_deleted", [False, True])
def test_deleted_tasks_are_listed_and_counted_only_when_asked_for(
    show_deleted: bool, repository: TaskRepository
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
    filter_: Filter | None, titles: set[str], repository: TaskRepository
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
            "created_by": st.just("somebody"),
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
        connection.execute(text("TRUNCATE tasks"))
        if rows:
            connection.execute(insert(tasks), rows)


def sorted_ids(rows: Sequence[dict[str, Any]], order: Sequence[Sort]) -> list[str]:
    """The order as a caller understands it: ties by creation and id, no due date is the last."""
    last = order[-1].descending
    result = sorted(rows, key=lambda row: (row["created_at"], row["id"]), reverse=last)
    for field, descending in ((sort.field, sort.descending) for sort in reversed(order)):
        result.sort(key=partial(sort_key, field), reverse=descending)
    return [row["id"] for row in result]


def sort_key(field: str, row: dict[str, Any]) -> Any:
    return LAST if row[field] is None else row[field]


@on_the_database
@given(rows=task_lists, order=orders, size=st.integers(1, 5), show_deleted=st.booleans())
def test_the_pages_of_any_order_are_the_whole_list(
    repository: TaskRepository,
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


def test_update_stores_every_value(repository: TaskRepository) -> None:
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


def test_update_returns_what_it_stored(repository: TaskRepository) -> None:
    row = repository.create(new_task())
    assert repository.update(row, changed(row, title="renamed")) == repository.get(row.id)


def test_update_counts_the_version_up(repository: TaskRepository) -> None:
    row = repository.create(new_task())
    assert repository.update(row, changed(row, title="renamed")).version == 2


def test_update_moves_updated_at_and_not_created_at(repository: TaskRepository) -> None:
    row = repository.create(new_task())
    updated = repository.update(row, changed(row, title="renamed"))
    assert updated.updated_at > row.updated_at
    assert updated.created_at == row.created_at


def test_update_of_a_row_that_was_written_since_is_refused(repository: TaskRepository) -> None:
    row = repository.create(new_task())
    repository.update(row, changed(row, title="second"))
    with pytest.raises(VersionMismatchError, match=row.id):
        repository.update(row, changed(row, title="third"))


def test_a_refused_update_leaves_the_task_alone(repository: TaskRepository) -> None:
    row = repository.create(new_task())
    second = repository.update(row, changed(row, title="second"))
    with pytest.raises(VersionMismatchError):
        repository.update(row, changed(row, title="third"))
    assert repository.get(row.id) == second


def test_a_refused_update_records_no_request(repository: TaskRepository) -> None:
    row, request = repository.create(new_task()), new_request()
    repository.update(row, changed(row, title="second"))
    with pytest.raises(VersionMismatchError):
        repository.update(row, changed(row, title="third"), request)
    assert repository.find_replay(request) is None


def test_a_deleted_task_is_not_updated(repository: TaskRepository) -> None:
    deleted = repository.delete(repository.create(new_task()).id)
    with pytest.raises(VersionMismatchError):
        repository.update(deleted, changed(deleted, title="renamed"))


def test_of_many_updates_of_one_version_one_wins(repository: TaskRepository) -> None:
    row = repository.create(new_task())
    results = all_at_once(
        [partial(repository.update, row, changed(row, title=f"writer {n}")) for n in range(100)]
    )
    assert Counter(type(result) for result in results) == {TaskRow: 1, VersionMismatchError: 99}


def test_update_that_changes_nothing_leaves_the_row_alone(repository: TaskRepository) -> None:
    row = repository.create(new_task(tags=["a"], due_date=NOON))
    repository.update(row, changed(row))
    assert repository.get(row.id) == row


def test_update_that_changes_nothing_records_its_request(repository: TaskRepository) -> None:
    """Else the request's repetition could change something, after another write."""
    row, request = repository.create(new_task()), new_request()
    repository.update(row, changed(row), request)
    assert repository.find_replay(request) == row


def test_update_with_a_request_that_changes_nothing_leaves_the_row_alone(
    repository: TaskRepository,
) -> None:
    row = repository.create(new_task())
    assert repository.update(row, changed(row), new_request()) == repository.get(row.id) == row


def test_update_that_changes_nothing_of_a_stale_row_records_no_request(
    repository: TaskRepository,
) -> None:
    row, request = repository.create(new_task()), new_request()
    repository.update(row, changed(row, title="second"))
    with pytest.raises(VersionMismatchError):
        repository.update(row, changed(row), request)
    assert repository.find_replay(request) is None


def test_update_records_its_request(repository: TaskRepository) -> None:
    row, request = repository.create(new_task()), new_request()
    updated = repository.update(row, changed(row, title="renamed"), request)
    assert repository.find_replay(request) == updated


def test_a_repeated_update_returns_the_task_and_does_nothing(repository: TaskRepository) -> None:
    """The repetition may have read the row before the first one wrote it."""
    row, request = repository.create(new_task()), new_request()
    updated = repository.update(row, changed(row, title="renamed"), request)
    assert repository.update(row, changed(row, title="renamed"), request) == updated


def test_a_repeated_update_of_the_row_as_it_is_now_does_nothing(
    repository: TaskRepository,
) -> None:
    row, request = repository.create(new_task()), new_request()
    updated = repository.update(row, changed(row, title="renamed"), request)
    assert repository.update(updated, changed(row, title="renamed again"), request) == updated


def test_concurrent_updates_with_one_request_all_succeed(repository: TaskRepository) -> None:
    """A client that timed out asks again while the first call is still at work."""
    row, request = repository.create(new_task()), new_request()
    update = partial(repository.update, row, changed(row, title="renamed"), request)
    rows = all_at_once([update] * 8)
    assert rows == [repository.get(row.id)] * 8


def test_update_with_a_request_id_of_another_body_is_refused(repository: TaskRepository) -> None:
    row, request = repository.create(new_task()), new_request()
    repository.create(new_task(), request)
    with pytest.raises(RequestIdReusedError):
        repository.update(
            row, changed(row, title="renamed"), request._replace(fingerprint=b"another body")
        )
    assert repository.get(row.id) == row


def test_update_without_commit_returns_what_it_would_store(repository: TaskRepository) -> None:
    row = repository.create(new_task())
    updated = repository.update(row, changed(row, title="renamed"), commit=False)
    assert (updated.title, updated.version) == ("renamed", 2)


def test_update_without_commit_stores_neither_task_nor_request(repository: TaskRepository) -> None:
    row, request = repository.create(new_task()), new_request()
    repository.update(row, changed(row, title="renamed"), request, commit=False)
    assert (repository.get(row.id), repository.find_replay(request)) == (row, None)


# completed_at follows the status


def test_a_task_created_as_completed_was_completed_then(repository: TaskRepository) -> None:
    row = repository.create(new_task(status=COMPLETED))
    assert row.completed_at == row.created_at


@pytest.mark.parametrize("status", [PENDING, IN_PROGRESS, CANCELLED])
def test_a_task_created_otherwise_was_not_completed(
    status: int, repository: TaskRepository
) -> None:
    assert repository.create(new_task(status=status)).completed_at is None


def test_completing_a_task_sets_completed_at(repository: TaskRepository) -> None:
    row = repository.create(new_task())
    row = repository.update(row, changed(row, status=COMPLETED))
    assert row.completed_at == row.updated_at


def test_writing_a_completed_task_keeps_completed_at(repository: TaskRepository) -> None:
    row = repository.create(new_task(status=COMPLETED))
    assert repository.update(row, changed(row, title="x")).completed_at == row.completed_at


@pytest.mark.parametrize("status", [PENDING, IN_PROGRESS, CANCELLED])
def test_reopening_a_task_clears_completed_at(status: int, repository: TaskRepository) -> None:
    row = repository.create(new_task(status=COMPLETED))
    assert repository.update(row, changed(row, status=status)).completed_at is None


def test_deleting_and_undeleting_a_completed_task_keeps_completed_at(
    repository: TaskRepository,
) -> None:
    row = repository.create(new_task(status=COMPLETED))
    repository.delete(row.id)
    assert repository.undelete(row.id).completed_at == row.completed_at


# delete and undelete


def test_delete_keeps_the_task_and_says_when(repository: TaskRepository) -> None:
    row = repository.create(new_task())
    deleted = repository.delete(row.id)
    assert deleted == row._replace(
        deleted_at=deleted.updated_at, updated_at=deleted.updated_at, version=2
    )
    assert deleted.updated_at > row.updated_at


def test_undelete_brings_the_task_back(repository: TaskRepository) -> None:
    row = repository.create(new_task(title="back"))
    deleted = repository.delete(row.id)
    restored = repository.undelete(row.id)
    assert restored == row._replace(updated_at=restored.updated_at, version=3)
    assert restored.updated_at > deleted.updated_at


def test_delete_and_undelete_return_what_they_stored(repository: TaskRepository) -> None:
    row = repository.create(new_task())
    assert repository.delete(row.id, 1) == repository.get(row.id)
    assert repository.undelete(row.id, 2) == repository.get(row.id)


def test_delete_of_an_unknown_task_is_not_found(repository: TaskRepository) -> None:
    with pytest.raises(TaskNotFoundError):
        repository.delete(new_id())


@pytest.mark.parametrize("version", [None, 1, 2])
def test_delete_of_a_deleted_task_is_not_found(
    version: int | None, repository: TaskRepository
) -> None:
    row = repository.create(new_task())
    repository.delete(row.id)
    with pytest.raises(TaskNotFoundError):
        repository.delete(row.id, version)


def test_delete_of_another_version_is_refused(repository: TaskRepository) -> None:
    row = repository.create(new_task())
    with pytest.raises(VersionMismatchError):
        repository.delete(row.id, row.version + 1)
    assert repository.get(row.id) == row


def test_undelete_of_an_unknown_task_is_not_found(repository: TaskRepository) -> None:
    with pytest.raises(TaskNotFoundError):
        repository.undelete(new_id())


@pytest.mark.parametrize("version", [None, 1, 2])
def test_undelete_of_a_task_that_is_not_deleted_is_refused(
    version: int | None, repository: TaskRepository
) -> None:
    row = repository.create(new_task())
    with pytest.raises(TaskNotDeletedError):
        repository.undelete(row.id, version)


def test_undelete_of_another_version_is_refused(repository: TaskRepository) -> None:
    row = repository.create(new_task())
    deleted = repository.delete(row.id)
    with pytest.raises(VersionMismatchError):
        repository.undelete(row.id, row.version)
    assert repository.get(row.id) == deleted


def test_of_many_deletes_one_wins(repository: TaskRepository) -> None:
    row = repository.create(new_task())
    results = all_at_once([partial(repository.delete, row.id)] * 8)
    assert Counter(type(result) for result in results) == {TaskRow: 1, TaskNotFoundError: 7}


# stats


@on_the_database
@given(rows=task_lists, as_of=times, pending_only=st.booleans())
def test_stats_are_what_counting_one_by_one_gives(
    database: Database,
    repository: TaskRepository,
    rows: list[dict[str, Any]],
    as_of: dt.datetime,
    pending_only: bool,
) -> None:
    replace_tasks(database, rows)
    totals, overdue = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for row in rows:
        group, due = (row["status"], row["priority"]), row["due_date"]
        if row["deleted_at"] is None and (row["status"] == PENDING or not pending_only):
            totals[group] += 1
            overdue[group] += due is not None and due < as_of and row["status"] <= IN_PROGRESS
    filter_ = Comparison("status", "=", PENDING) if pending_only else None
    assert sorted(repository.stats(as_of, filter_)) == sorted(
        StatusPriorityCount(*group, total, overdue[group]) for group, total in totals.items()
    )


@pytest.mark.parametrize(("as_of", "overdue"), [(NOON, 0), (NOON + MOMENT, 1)])
def test_a_task_is_overdue_after_its_due_date_and_not_at_it(
    as_of: dt.datetime, overdue: int, repository: TaskRepository
) -> None:
    repository.create(new_task(due_date=NOON))
    assert repository.stats(as_of) == [StatusPriorityCount(PENDING, MEDIUM, 1, overdue)]


@pytest.mark.parametrize("status", [COMPLETED, CANCELLED])
def test_a_closed_task_is_never_overdue(status: int, repository: TaskRepository) -> None:
    repository.create(new_task(due_date=NOON, status=status))
    assert repository.stats(LAST) == [StatusPriorityCount(status, MEDIUM, 1, 0)]


# requests


def test_find_replay_without_a_request_finds_nothing(repository: TaskRepository) -> None:
    assert repository.find_replay(None) is None


def test_find_replay_of_an_unknown_request_finds_nothing(repository: TaskRepository) -> None:
    assert repository.find_replay(new_request()) is None


def test_find_replay_of_another_body_is_refused(repository: TaskRepository) -> None:
    request = new_request()
    repository.create(new_task(), request)
    with pytest.raises(RequestIdReusedError):
        repository.find_replay(request._replace(fingerprint=b"another body"))


def test_find_replay_of_a_task_that_is_gone_is_not_found(
    repository: TaskRepository, database: Database
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
        "SELECT 'somebody', gen_random_uuid(), '\\x00', gen_random_uuid(), now() - :age ::interval "
        "FROM generate_series(1, :number)"
    )
    with database.engine.connect() as connection:
        connection.execute(statement, {"age": age, "number": number})


def test_forget_requests_removes_the_old_and_keeps_the_others(
    repository: TaskRepository, database: Database
) -> None:
    add_requests(database, 3, age="25 hours")
    add_requests(database, 2, age="23 hours")
    assert repository.forget_requests(older_than=dt.timedelta(hours=24)) == 3
    assert scalar(database, "SELECT count(*) FROM requests") == 2


def test_a_forgotten_request_can_be_made_anew(repository: TaskRepository) -> None:
    request = new_request()
    repository.create(new_task(), request)
    repository.forget_requests(older_than=-dt.timedelta(hours=1))
    repository.create(new_task(), request)
    assert repository.count() == 2


def test_forget_requests_removes_no_more_than_its_limit(
    repository: TaskRepository, database: Database
) -> None:
    """Even where PostgreSQL believes that there is one row, and plans accordingly."""
    add_requests(database, 1, age="2 days")
    with database.engine.connect() as connection:
        connection.execute(text("ANALYZE requests"))
    add_requests(database, 9, age="2 days")
    forgotten = repository.forget_requests(older_than=dt.timedelta(hours=24), limit=4)
    assert (forgotten, scalar(database, "SELECT count(*) FROM requests")) == (4, 6)


def test_several_processes_forget_each_request_once(
    repository: TaskRepository, database: Database
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
    repository: TaskRepository, database: Database
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
    statement: str, constraint: str, repository: TaskRepository, database: Database
) -> None:
    repository.create(new_task())
    with database.engine.connect() as connection, pytest.raises(IntegrityError) as raised:
        connection.execute(text(statement))
    assert isinstance(raised.value.orig, Error)
    assert raised.value.orig.diag.constraint_name == f"ck_tasks_{constraint}"


def test_every_rule_of_the_tables_is_broken_above() -> None:
    rules = {str(rule.name) for rule in tasks.constraints if isinstance(rule, CheckConstraint)}
    assert rules == {f"ck_tasks_{constraint}" for constraint in BROKEN.values()}


def test_the_longest_values_of_the_contract_can_be_stored(repository: TaskRepository) -> None:
    """Lengths are characters, not bytes."""
    values = new_task(
        title="💶" * 200, description="💶" * 2000, assigned_to="💶" * 200, tags=["💶" * 50] * 10
    )
    stored = repository.create(values)._asdict()
    assert {name: stored[name] for name in values} == values
