"""Pages: a walk through them is the whole list, in every order, during writes."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, update

from server.tasks.fields import SORTABLE
from storage.database import Database
from storage.tables import tasks as tasks_table
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    ListTasksRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import fails
from tests.support.pages import DAY, TODAY, ids, pages, store, tied_rows, walk


@pytest.mark.parametrize(
    ("page_size", "length"),
    [(0, 50), (1, 1), (51, 51), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)],
)
def test_a_page_has_the_requested_size_within_bounds(
    stub: TaskServiceStub, database: Database, page_size: int, length: int
) -> None:
    store(database, [{}] * 1001)
    page = stub.ListTasks(ListTasksRequest(page_size=page_size))
    assert len(page.tasks) == length


@pytest.mark.parametrize("page_size", [-1, -(2**31)])
def test_a_negative_page_size_is_refused(stub: TaskServiceStub, page_size: int) -> None:
    with fails(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST") as failure:
        stub.ListTasks(ListTasksRequest(page_size=page_size))
    assert failure.violations == {"page_size": "INT32_GTE"}


@pytest.mark.parametrize(
    ("count", "lengths"), [(0, [0]), (1, [1]), (3, [3]), (4, [3, 1]), (6, [3, 3])]
)
def test_the_last_page_is_the_one_without_a_token(
    stub: TaskServiceStub, database: Database, count: int, lengths: list[int]
) -> None:
    """No token leads to an empty page."""
    if count:
        store(database, [{}] * count)
    walked = pages(stub, ListTasksRequest(page_size=3))
    assert [len(page.tasks) for page in walked] == lengths


def test_the_page_size_may_change_between_pages(stub: TaskServiceStub, database: Database) -> None:
    store(database, [{}] * 20)
    walked = list(pages(stub, ListTasksRequest(), iter([3, 10, 1, 50])))
    assert [len(page.tasks) for page in walked] == [3, 10, 1, 6]
    assert len({id_ for page in walked for id_ in ids(page)}) == 20


def test_large_tasks_come_on_pages_that_a_client_takes(
    stub: TaskServiceStub, database: Database
) -> None:
    """A client refuses messages of more than 4 MiB by default; these are 8 MB."""
    store(database, [{"description": "😀" * 2000}] * 1000)
    walked = walk(stub, ListTasksRequest(page_size=1000))
    assert len(walked) == len(set(walked)) == 1000


def test_the_total_size_counts_all_pages(stub: TaskServiceStub, database: Database) -> None:
    store(database, [{}] * 5)
    walked = pages(stub, ListTasksRequest(page_size=2, include_total_size=True))
    assert [page.total_size for page in walked] == [5, 5, 5]


@pytest.mark.parametrize(
    ("request_", "total_size"),
    [
        (ListTasksRequest(), 0),
        (ListTasksRequest(include_total_size=True), 3),
        (ListTasksRequest(include_total_size=True, show_deleted=True), 4),
        (ListTasksRequest(include_total_size=True, filter="title = b"), 1),
        (ListTasksRequest(include_total_size=True, filter="title = c"), 0),
    ],
)
def test_the_total_size_counts_matches_and_only_on_request(
    stub: TaskServiceStub, database: Database, request_: ListTasksRequest, total_size: int
) -> None:
    store(database, [{}, {}, {"title": "b"}, {"title": "b", "deleted_at": TODAY}])
    assert stub.ListTasks(request_).total_size == total_size


def test_the_total_size_may_be_requested_on_a_later_page(
    stub: TaskServiceStub, database: Database
) -> None:
    store(database, [{}] * 3)
    token = stub.ListTasks(ListTasksRequest(page_size=2)).next_page_token
    last = stub.ListTasks(ListTasksRequest(page_token=token, include_total_size=True))
    assert last.total_size == 3


@pytest.mark.parametrize(
    ("show_deleted", "titles"), [(False, ["b", "d"]), (True, ["a", "b", "c", "d"])]
)
def test_deleted_tasks_are_listed_only_on_request(
    stub: TaskServiceStub, database: Database, show_deleted: bool, titles: list[str]
) -> None:
    store(database, [{"title": title, "deleted_at": TODAY} for title in "ac"])
    store(database, [{"title": title} for title in "bd"])
    request = ListTasksRequest(show_deleted=show_deleted, order_by="title", page_size=1)
    assert [task.title for page in pages(stub, request) for task in page.tasks] == titles


def test_without_show_deleted_no_filter_finds_a_deleted_task(
    stub: TaskServiceStub, database: Database
) -> None:
    store(database, [{"deleted_at": TODAY}])
    assert not stub.ListTasks(ListTasksRequest(filter="deleted_at:*")).tasks


ORDERS = st.lists(
    st.tuples(st.sampled_from(sorted(SORTABLE)), st.sampled_from(["", " asc", " desc"])),
    min_size=1,
    max_size=3,
    unique_by=lambda term: term[0],
)


def text_of(order: list[tuple[str, str]]) -> str:
    return ", ".join(field + direction for field, direction in order)


@pytest.fixture
def tied_tasks(stub: TaskServiceStub, database: Database) -> list[Task]:
    store(database, tied_rows(60, random.Random(1)))  # noqa: S311
    return list(stub.ListTasks(ListTasksRequest(page_size=1000)).tasks)


def test_the_newest_task_comes_first_by_default(
    stub: TaskServiceStub, tied_tasks: list[Task]
) -> None:
    assert walk(stub, ListTasksRequest()) == walk(
        stub, ListTasksRequest(order_by="created_at desc")
    )


@given(order=ORDERS)
def test_tasks_come_in_the_requested_order(
    stub: TaskServiceStub, tied_tasks: list[Task], order: list[tuple[str, str]]
) -> None:
    """Ties are ordered by created_at and id, in the last direction; no due date is the last."""
    last = order[-1][1]
    named = {field for field, _ in order}
    ties = [(field, last) for field in ("created_at", "id") if field not in named]
    expected = tied_tasks
    for field, direction in reversed(order + ties):
        expected = sorted(expected, key=_sort_key(field, direction), reverse=direction == " desc")
    request = ListTasksRequest(order_by=text_of(order), page_size=1000)
    assert ids(stub.ListTasks(request)) == [task.id for task in expected]


def _sort_key(field: str, direction: str) -> Callable[[Task], Any]:
    if field in {"created_at", "updated_at", "due_date"}:
        return lambda task: (
            task.HasField(field) == (direction == " desc"),  # type: ignore[arg-type]
            getattr(task, field).ToNanoseconds(),
        )
    return attrgetter(field)


@given(
    order=ORDERS,
    page_size=st.integers(1, 25),
    filter_=st.sampled_from(["", "priority >= HIGH OR NOT due_date:*", "title != b"]),
)
def test_the_pages_together_are_the_list(
    stub: TaskServiceStub,
    tied_tasks: list[Task],
    order: list[tuple[str, str]],
    page_size: int,
    filter_: str,
) -> None:
    request = ListTasksRequest(order_by=text_of(order), filter=filter_, page_size=1000)
    whole = ids(stub.ListTasks(request))
    request.page_size = page_size
    assert walk(stub, request) == whole


@pytest.mark.parametrize("direction", ["", " desc"])
def test_a_page_may_end_among_tasks_without_a_due_date(
    stub: TaskServiceStub, database: Database, direction: str
) -> None:
    store(database, [{"due_date": due} for due in [None, None, None, TODAY, TODAY]])
    request = ListTasksRequest(order_by=f"due_date{direction}", page_size=1)
    assert len(set(walk(stub, request))) == len(walk(stub, request)) == 5


WRITES = st.sampled_from(["create", "edit", "move", "delete", "undelete"])


@given(
    order=ORDERS,
    page_size=st.integers(1, 8),
    writes=st.lists(st.lists(WRITES, max_size=4), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
)
def test_writes_between_pages_neither_skip_nor_repeat_a_task(
    stub: TaskServiceStub,
    database: Database,
    *,
    order: list[tuple[str, str]],
    page_size: int,
    writes: list[list[str]],
    seed: int,
) -> None:
    """Whatever else is written, a task that keeps its position is seen once, in order."""
    chance = random.Random(seed)  # noqa: S311
    with database.engine.connect() as connection:
        connection.execute(delete(tasks_table))
    store(database, tied_rows(24, chance))
    request = ListTasksRequest(order_by=text_of(order), page_size=1000)
    before = ids(stub.ListTasks(request))
    request.page_size = page_size
    moved: set[str] = set()
    seen: list[str] = []
    for number, page in enumerate(pages(stub, request)):
        seen += ids(page)
        for write in writes[number] if number < len(writes) else []:
            # The task where the page ends is the one to whose place the token points.
            target = chance.choice([*before, *ids(page)[-1:] * 12])
            moved |= _write(stub, database, write, target, order)
    stayed = [id_ for id_ in before if id_ not in moved]
    assert [id_ for id_ in seen if id_ in set(stayed)] == stayed


def _write(
    stub: TaskServiceStub,
    database: Database,
    write: str,
    target: str,
    order: list[tuple[str, str]],
) -> set[str]:
    """Writes something; returns the tasks that are no longer where they were."""
    match write:
        case "create":
            stub.CreateTask(CreateTaskRequest(task=Task(title="b")))
            return set()
        case "edit":
            task = Task(id=target, description=str(uuid.uuid4()))
            stub.UpdateTask.future(UpdateTaskRequest(task=task)).code()
            return {target} if "updated_at" in {field for field, _ in order} else set()
        case "move":
            with database.engine.connect() as connection:
                connection.execute(
                    update(tasks_table)
                    .where(tasks_table.c.id == target)
                    .values(title="d", priority=4, assigned_to="zoe", due_date=TODAY + 2 * DAY)
                )
        case "delete":
            stub.DeleteTask(DeleteTaskRequest(id=target, allow_missing=True))
        case "undelete":
            with database.engine.connect() as connection:
                connection.execute(update(tasks_table).values(deleted_at=None))
            return set()
    return {target}
