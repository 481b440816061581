"""Pages: a walk through them is the whole list, whatever else is written meanwhile."""

from __future__ import annotations

import base64
import datetime as dt
import random
import uuid
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, update

from server.settings import Settings
from server.tasks.filters import SORTABLE
from server.tasks.page_tokens import Tokens
from server.tasks.validation import FieldError
from storage.database import Database
from storage.tables import tasks as tasks_table
from taskservice.v1.task_pb2 import TASK_STATUS_COMPLETED, Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    ListTasksRequest,
    ListTasksResponse,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import fails
from tests.support.workers import running_worker

DAY = dt.timedelta(days=1)
TODAY = dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC)


def store(database: Database, rows: list[dict[str, object]]) -> None:
    """Stores tasks directly, for what no call can set: ids in any order, equal times."""
    defaults = {
        "title": "a task",
        "description": "",
        "status": 1,
        "priority": 2,
        "assigned_to": "",
        "due_date": None,
        "created_by": "",
        "created_at": TODAY,
        "updated_at": TODAY,
        "completed_at": None,
        "deleted_at": None,
    }
    complete = [{"id": str(uuid.uuid4()), **defaults, **row} for row in rows]
    with database.engine.connect() as connection:
        connection.execute(insert(tasks_table), complete)


def tied_rows(count: int, chance: random.Random) -> list[dict[str, object]]:
    """Tasks with few different values, so that every order has many ties, and some NULLs."""
    statuses = [chance.randint(1, 4) for _ in range(count)]
    return [
        {
            "id": str(uuid.UUID(int=chance.getrandbits(128))),
            "title": chance.choice("abc"),
            "assigned_to": chance.choice(["", "ana", "bob"]),
            "status": status,
            "priority": chance.randint(1, 4),
            "due_date": chance.choice([None, None, TODAY, TODAY + DAY]),
            "created_at": TODAY - chance.randint(0, 3) * DAY,
            "updated_at": TODAY + chance.randint(0, 2) * DAY,
            "completed_at": TODAY if status == TASK_STATUS_COMPLETED else None,
        }
        for status in statuses
    ]


def pages(
    stub: TaskServiceStub, request: ListTasksRequest, sizes: Iterator[int] | None = None
) -> Iterator[ListTasksResponse]:
    """Walks through the pages, each of the next size where sizes are given."""
    request = ListTasksRequest.FromString(request.SerializeToString())
    for _ in range(200):
        if sizes is not None:
            request.page_size = next(sizes)
        page = stub.ListTasks(request)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
    pytest.fail("the walk does not end")


def ids(page: ListTasksResponse) -> list[str]:
    return [task.id for task in page.tasks]


def walk(stub: TaskServiceStub, request: ListTasksRequest) -> list[str]:
    """The ids of all pages, in turn."""
    return [id_ for page in pages(stub, request) for id_ in ids(page)]


# --- The size of a page ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page_size", "length"),
    [(0, 50), (1, 1), (51, 51), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)],
)
def test_a_page_has_the_size_asked_for_within_bounds(
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
    """Nobody is sent to fetch a page that is empty."""
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
    """A client refuses messages of more than 4 MiB unless it is told otherwise; these are 8 MB."""
    store(database, [{"description": "😀" * 2000}] * 1000)
    walked = walk(stub, ListTasksRequest(page_size=1000))
    assert len(walked) == len(set(walked)) == 1000


# --- The whole size -------------------------------------------------------------------------------


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
def test_the_total_size_counts_what_matches_and_only_if_asked(
    stub: TaskServiceStub, database: Database, request_: ListTasksRequest, total_size: int
) -> None:
    store(database, [{}, {}, {"title": "b"}, {"title": "b", "deleted_at": TODAY}])
    assert stub.ListTasks(request_).total_size == total_size


def test_the_total_size_may_be_asked_for_on_a_later_page(
    stub: TaskServiceStub, database: Database
) -> None:
    store(database, [{}] * 3)
    token = stub.ListTasks(ListTasksRequest(page_size=2)).next_page_token
    last = stub.ListTasks(ListTasksRequest(page_token=token, include_total_size=True))
    assert last.total_size == 3


# --- Deleted tasks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("show_deleted", "titles"), [(False, ["b", "d"]), (True, ["a", "b", "c", "d"])]
)
def test_deleted_tasks_are_listed_only_if_asked_for(
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


# --- Orders ---------------------------------------------------------------------------------------

ORDERS = st.lists(
    st.tuples(st.sampled_from(sorted(SORTABLE)), st.sampled_from(["", " asc", " desc"])),
    min_size=1,
    max_size=3,
    unique_by=lambda term: term[0],
)
on_the_service = hypothesis_settings(
    max_examples=60,
    deadline=None,
    # The tasks that a fixture stores are only read, or made anew by the test.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def text_of(order: list[tuple[str, str]]) -> str:
    return ", ".join(field + direction for field, direction in order)


@pytest.fixture
def tied_tasks(stub: TaskServiceStub, database: Database) -> list[Task]:
    store(database, tied_rows(60, random.Random(1)))  # noqa: S311
    return list(stub.ListTasks(ListTasksRequest(page_size=1000)).tasks)


def test_the_newest_task_comes_first_unless_another_order_is_asked_for(
    stub: TaskServiceStub, tied_tasks: list[Task]
) -> None:
    assert walk(stub, ListTasksRequest()) == walk(
        stub, ListTasksRequest(order_by="created_at desc")
    )


@on_the_service
@given(order=ORDERS)
def test_tasks_come_in_the_order_asked_for(
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


@on_the_service
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


# --- Writes between pages -------------------------------------------------------------------------

WRITES = st.sampled_from(["create", "edit", "move", "delete", "undelete"])


@on_the_service
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
    """Whatever comes, goes or moves, a task that stays in its place is seen once, in its turn."""
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


# --- Page tokens ----------------------------------------------------------------------------------


@pytest.fixture
def request_(stub: TaskServiceStub, database: Database) -> ListTasksRequest:
    """Asks for the second page of a list."""
    store(database, [{}, {}, {}])
    request = ListTasksRequest(filter="title:task", order_by="priority desc, due_date", page_size=1)
    request.page_token = stub.ListTasks(request).next_page_token
    return request


def refused(stub: TaskServiceStub, request: ListTasksRequest) -> bool:
    with fails(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST") as failure:
        stub.ListTasks(request)
    return failure.violations == {"page_token": "PAGE_TOKEN_INVALID"}


def test_a_token_may_be_used_again(stub: TaskServiceStub, request_: ListTasksRequest) -> None:
    """A client that lost the answer asks for the same page once more."""
    assert ids(stub.ListTasks(request_)) == ids(stub.ListTasks(request_))


@pytest.mark.parametrize(
    "others",
    [
        {"filter": ""},
        {"filter": "title:task "},
        {"filter": "title:a"},
        {"order_by": ""},
        {"order_by": "priority desc, due_date desc"},
        {"order_by": "priority desc, created_at"},
        {"show_deleted": True},
    ],
)
def test_a_token_belongs_to_what_was_asked(
    stub: TaskServiceStub, request_: ListTasksRequest, others: dict[str, str | bool]
) -> None:
    """With another filter or order its place would be somewhere else, and tasks be skipped."""
    for field, value in others.items():
        setattr(request_, field, value)
    assert refused(stub, request_)


def test_a_token_with_any_character_changed_is_refused(
    stub: TaskServiceStub, request_: ListTasksRequest
) -> None:
    token = request_.page_token
    for place, character in enumerate(token):
        changed = "A" if character != "A" else "B"
        request_.page_token = token[:place] + changed + token[place + 1 :]
        assert refused(stub, request_), place


def test_a_token_that_was_cut_is_refused(stub: TaskServiceStub, request_: ListTasksRequest) -> None:
    token = request_.page_token
    for length in range(1, len(token)):
        request_.page_token = token[:length]
        assert refused(stub, request_), length


@pytest.mark.parametrize("spelling", ["{}=", "{}==", " {}", "{}\n", "{}A", "{0}{0}", "{}é"])
def test_a_token_has_one_spelling(
    stub: TaskServiceStub, request_: ListTasksRequest, spelling: str
) -> None:
    request_.page_token = spelling.format(request_.page_token)
    assert refused(stub, request_)


@pytest.mark.parametrize("token", ["x", "1", "AAAA", "e30", "\0", "😀", "A" * 4096])
def test_what_never_was_a_token_is_refused(
    stub: TaskServiceStub, request_: ListTasksRequest, token: str
) -> None:
    request_.page_token = token
    assert refused(stub, request_)


def test_a_token_is_good_for_every_process_with_the_same_key(
    request_: ListTasksRequest, settings: Settings, database_url: str
) -> None:
    """The next page may be asked of another process, another pod, or after a restart."""
    with running_worker(settings, database_url) as channel:
        assert TaskServiceStub(channel).ListTasks(request_).tasks


def test_a_token_of_another_key_is_refused(
    request_: ListTasksRequest, settings: Settings, database_url: str, tmp_path: Path
) -> None:
    others = settings.model_copy(update={"data_dir": tmp_path})
    with running_worker(others, database_url) as channel:
        assert refused(TaskServiceStub(channel), request_)


@pytest.mark.parametrize("character", ["😀", "\x01", "\\", "é"])
def test_the_token_of_the_longest_texts_is_accepted(
    stub: TaskServiceStub, database: Database, character: str
) -> None:
    """It holds the place, so that long titles make long tokens; the contract allows 4096."""
    longest = {"title": character * 199 + "a", "assigned_to": character * 200}
    store(database, [longest | {"due_date": TODAY}] * 3)
    request = ListTasksRequest(order_by="title, assigned_to, due_date", page_size=1)
    assert len(walk(stub, request)) == 3


CURSORS = st.lists(
    st.none()
    | st.integers(-(2**31), 2**31)
    | st.text(max_size=30)
    | st.datetimes(timezones=st.just(dt.UTC)),
    max_size=6,
).map(tuple)
BINDINGS = st.lists(st.text(max_size=10) | st.booleans(), max_size=4).map(tuple)


@hypothesis_settings(max_examples=100, deadline=None)
@given(cursor=CURSORS, binding=BINDINGS)
def test_a_place_survives_its_token(
    cursor: tuple[object, ...], binding: tuple[object, ...]
) -> None:
    tokens = Tokens([b"key"], "page")
    assert tokens.open(tokens.seal(cursor, *binding), *binding) == cursor  # type: ignore[arg-type]


@hypothesis_settings(max_examples=100, deadline=None)
@given(binding=BINDINGS, other=BINDINGS)
def test_a_token_opens_with_its_own_binding_only(
    binding: tuple[object, ...], other: tuple[object, ...]
) -> None:
    if binding == other:
        return
    tokens = Tokens([b"key"], "page")
    with pytest.raises(FieldError):
        tokens.open(tokens.seal(("a",), *binding), *other)


def test_a_token_is_of_one_purpose() -> None:
    """Where a list goes on is not where a stream does."""
    token = Tokens([b"key"], "page").seal(("a",), "filter")
    with pytest.raises(FieldError) as refused:
        Tokens([b"key"], "resume").open(token, "filter")
    assert refused.value.reason == "RESUME_TOKEN_INVALID"


def test_a_token_with_any_bit_changed_does_not_open() -> None:
    tokens = Tokens([b"key"], "page")
    sealed = base64.urlsafe_b64decode(tokens.seal(("a title", TODAY), "filter") + "==")
    for bit in range(len(sealed) * 8):
        changed = bytearray(sealed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FieldError):
            tokens.open(base64.urlsafe_b64encode(changed).decode().rstrip("="), "filter")


def test_a_token_does_not_show_what_it_holds() -> None:
    """Clients must not come to rely on it, nor read the title of a task they cannot see."""
    token = Tokens([b"key"], "page").seal(("a title",), "filter")
    assert b"title" not in base64.urlsafe_b64decode(token + "==")


def test_no_two_tokens_of_a_place_are_alike() -> None:
    """AES-GCM falls to whoever sees one nonce twice."""
    tokens = Tokens([b"key"], "page")
    assert len({tokens.seal(("a",), "filter") for _ in range(100)}) == 100
