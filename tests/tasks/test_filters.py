"""Filters and orders: what a text means as a tree, and which tasks the tree selects."""

from __future__ import annotations

import datetime as dt
import re
import uuid
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import NamedTuple

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import NullPool, create_engine, delete, insert

from server.calls.text import is_blank
from server.limits import CONTRACT
from server.tasks.filters import SORTABLE, parse_filter, parse_order
from server.tasks.validation import FieldError
from storage.query import (
    COMPARISONS,
    NEWEST_FIRST,
    And,
    Comparison,
    Filter,
    HasTag,
    HasWords,
    Not,
    Or,
    Present,
    Sort,
    Value,
)
from storage.tables import tasks as tasks_table
from taskservice.v1.task_pb2 import TASK_STATUS_COMPLETED, Task
from taskservice.v1.task_service_pb2 import GetTaskStatsRequest, ListTasksRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import fails

ANY = "tags:any"  # A term that searches for no words: of these there may be fewer.
A, B, C, D = (HasWords(letter) for letter in "abcd")
UUID = "0198c0de-0000-7000-8000-000000000001"
NOON = dt.datetime(2027, 1, 31, 12, tzinfo=dt.UTC)
TIMES = ("due_date", "created_at", "updated_at", "completed_at", "deleted_at")
TEXTS = ("title", "description", "assigned_to", "created_by")


# --- From text to tree ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        # How terms are combined.
        ("", None),
        (" \t\n", None),
        ("a", A),
        ("a AND b", And((A, B))),
        ("a AND b AND c", And((A, B, C))),
        ("a OR b", Or((A, B))),
        ("a OR b OR c", Or((A, B, C))),
        ("a b", And((A, B))),
        ("a b AND c", And((And((A, B)), C))),
        ("a AND b OR c", And((A, Or((B, C))))),
        ("a OR b AND c", And((Or((A, B)), C))),
        ("a OR b c OR d", And((Or((A, B)), Or((C, D))))),
        ("(a AND b) OR c", Or((And((A, B)), C))),
        ("(a)(b)", And((A, B))),
        ("((a))", A),
        (" ( a )\n", A),
        ("NOT a", Not(A)),
        ("NOT(a)", Not(A)),
        ('NOT"a"', Not(A)),
        ("-a", Not(A)),
        ('-"a"', Not(A)),
        ("a -b", And((A, Not(B)))),
        ("NOT a OR b", Or((Not(A), B))),
        ("NOT a AND b", And((Not(A), B))),
        ("NOT (a OR b)", Not(Or((A, B)))),
        ("-(NOT a)", Not(Not(A))),
        ('a AND"b"', And((A, B))),
        # Words and what is only like a keyword.
        ('"a b"', HasWords("a b")),
        ("a-b", HasWords("a-b")),
        ("a*", HasWords("a", is_prefix=True)),
        ('"a b*"', HasWords("a b", is_prefix=True)),
        ('"a\\*"', HasWords("a*")),
        ("ANDROID NOTE ORDER", And((HasWords("ANDROID"), HasWords("NOTE"), HasWords("ORDER")))),
        ('"AND"', HasWords("AND")),
        ("2027-01-31T12:00:00Z", HasWords("2027-01-31T12:00:00Z")),
        ("Übung 日本", And((HasWords("Übung"), HasWords("日本")))),
        # Quoting.
        ("title = 'a b'", Comparison("title", "=", "a b")),
        ("title='it\\'s'", Comparison("title", "=", "it's")),
        ('title="say \\"a\\""', Comparison("title", "=", 'say "a"')),
        ('title="it\'s"', Comparison("title", "=", "it's")),
        ('title="a\\\\b"', Comparison("title", "=", "a\\b")),
        ('title="a\nb"', Comparison("title", "=", "a\nb")),
        ('title="\\a\\\n"', Comparison("title", "=", "a\n")),
        ('title="(a) AND <b>"', Comparison("title", "=", "(a) AND <b>")),
        ('assigned_to = ""', Comparison("assigned_to", "=", "")),
        ('title = "\\*a\\*"', Comparison("title", "=", "*a*")),
        ("title = a*b", Comparison("title", "=", "a*b")),
        # Each field with what may be asked of it.
        (f"id = {UUID}", Comparison("id", "=", UUID)),
        (f'id != "{UUID}"', Comparison("id", "!=", UUID)),
        ("id:*", Present("id")),
        *((f"{field} = x", Comparison(field, "=", "x")) for field in TEXTS),
        *((f"{field} != x", Comparison(field, "!=", "x")) for field in TEXTS),
        *((f"{field}:*", Present(field)) for field in (*TEXTS, "tags", *TIMES)),
        ("title:word", HasWords("word", "title")),
        ('description:"two words"', HasWords("two words", "description")),
        ("title:word*", HasWords("word", "title", is_prefix=True)),
        ("tags:billing", HasTag("billing")),
        ('tags:"\\*"', HasTag("*")),
        ("status = PENDING", Comparison("status", "=", 1)),
        ("status = TASK_STATUS_IN_PROGRESS", Comparison("status", "=", 2)),
        ('status != "COMPLETED"', Comparison("status", "!=", 3)),
        *((f"priority {sign} HIGH", Comparison("priority", sign, 3)) for sign in COMPARISONS),
        ("priority = TASK_PRIORITY_URGENT", Comparison("priority", "=", 4)),
        *(
            (f"{field} {sign} 2027-01-31T12:00:00Z", Comparison(field, sign, NOON))
            for field in TIMES
            for sign in COMPARISONS
        ),
        ("due_date<2027-01-31T12:00:00Z", Comparison("due_date", "<", NOON)),
        ('due_date<"2027-01-31T12:00:00Z"', Comparison("due_date", "<", NOON)),
        ("(due_date<2027-01-31t12:00:00z)", Comparison("due_date", "<", NOON)),
        ("due_date<2027-01-31T14:00:00+02:00", Comparison("due_date", "<", NOON)),
        ('due_date<"2027-01-31T12:00:00-00:00"', Comparison("due_date", "<", NOON)),
        (
            "due_date<2027-01-31T12:00:00.25Z",
            Comparison("due_date", "<", NOON + dt.timedelta(milliseconds=250)),
        ),
        (
            "due_date < 2027-01-31T12:00:00Z a",
            And((Comparison("due_date", "<", NOON), A)),
        ),
    ],
)
def test_a_filter_becomes_a_tree(text: str, tree: Filter | None) -> None:
    assert parse_filter(text) == tree


def filter_mistake(text: str) -> FieldError:
    with pytest.raises(FieldError) as raised:
        parse_filter(text)
    return raised.value


@pytest.mark.parametrize(
    ("text", "description"),
    [
        # The grammar.
        ("a AND", "at the end: the filter is not complete"),
        ("NOT", "at the end: the filter is not complete"),
        ("(a", "at the end: the filter is not complete"),
        ("title =", "at the end: the filter is not complete"),
        ("AND a", "at character 1: 'AND' is not expected here"),
        ("a AND AND b", "at character 7: 'AND' is not expected here"),
        ("a)", "at character 2: ')' is not expected here"),
        ("()", "at character 2: ')' is not expected here"),
        ("NOT NOT a", "at character 5: 'NOT' is not expected here"),
        ("--a", "at character 2: '-' is not expected here"),
        ("title = OR", "at character 9: 'OR' is not expected here"),
        ("title = a = b", "at character 11: '=' is not expected here"),
        ('"title" = a', "at character 9: '=' is not expected here"),
        ("a, b", "at character 2: ',' is not expected here"),
        ('title = "a', "at character 9: '\"' is not expected here"),
        ("due_date < 2027-01-31T12:00:00", "at character 25: ':' is not expected here"),
        ("due_date < 2027-01-31T12:00:00Zulu", "at character 25: ':' is not expected here"),
        # The position counts characters, whatever they take in bytes or UTF-16.
        ("ö😀 é )", "at character 6: ')' is not expected here"),
        # The fields.
        ("a titel = b", "at character 3: there is no field 'titel'; known are id, title, "),
        ("Title = b", "at character 1: there is no field 'Title'; known are id, title, "),
        ("task.title = b", "at character 1: there is no field 'task.title'; known are id, "),
        ("etag = b", "at character 1: there is no field 'etag'; known are id, title, "),
        # The operators.
        ("title < a", "at character 7: title does not know the operator <"),
        ("status >= PENDING", "at character 8: status does not know the operator >="),
        ("tags = billing", "at character 6: tags does not know the operator ="),
        ("assigned_to:ana", "at character 12: assigned_to does not know the operator :"),
        ("status:*", "at character 7: status does not know the operator :"),
        ("priority:HIGH", "at character 9: priority does not know the operator :"),
        ('due_date:"*"', "at character 9: due_date does not know the operator :"),
        # The values.
        ("id = 1", "at character 6: '1' must be a UUID"),
        ("status = DONE", "at character 10: 'DONE' must be one of PENDING, IN_PROGRESS, "),
        ("status = pending", "at character 10: 'pending' must be one of PENDING, "),
        ("status = 1", "at character 10: '1' must be one of PENDING, "),
        ("status = UNSPECIFIED", "at character 10: 'UNSPECIFIED' must be one of PENDING, "),
        ("priority > TASK_STATUS_PENDING", "at character 12: 'TASK_STATUS_PENDING' must be one "),
        ("due_date = tomorrow", "at character 12: 'tomorrow' must be an RFC 3339 timestamp "),
        ("due_date = 2027-01-31", "at character 12: '2027-01-31' must be an RFC 3339 timestamp "),
        ("due_date = 2027-02-29T00:00:00Z", "at character 12: '2027-02-29T00:00:00Z' must be an "),
        ('due_date = "2027-01-31T12:00Z"', "at character 12: '2027-01-31T12:00Z' must be an "),
        ("due_date = 0001-01-01T00:00:00+01:00", "at character 12: '0001-01-01T00:00:00+01:00' "),
        ("due_date = 9999-12-31T23:59:59-01:00", "at character 12: '9999-12-31T23:59:59-01:00' "),
        ('due_date = ""', "at character 12: '' must be an RFC 3339 timestamp "),
        ("title = a\0", "at character 9: 'a\\x00' must not contain the NUL character"),
        ('tags:"\0"', "at character 6: '\\x00' must not contain the NUL character"),
        ("a\0", "at character 1: 'a\\x00' must not contain the NUL character"),
    ],
)
def test_a_mistake_in_a_filter_is_told_with_its_place(text: str, description: str) -> None:
    mistake = filter_mistake(text)
    assert mistake.description.startswith(description)
    assert mistake.reason == "FILTER_INVALID"


def test_a_mistake_quotes_no_more_than_a_part_of_a_long_text() -> None:
    """An error travels in a header, of which a client takes only some kilobytes."""
    assert len(filter_mistake(f"status = {'x' * 2000}").description) < 250


@pytest.mark.parametrize("joint", [" ", " AND ", " OR ", " OR -"])
def test_a_filter_has_a_limited_number_of_terms(joint: str) -> None:
    terms = [ANY] * CONTRACT.filter_terms
    assert parse_filter(joint.join(terms))
    assert filter_mistake(joint.join([*terms, ANY])).reason == "FILTER_TOO_LONG"


def test_terms_are_counted_across_groups() -> None:
    half = " OR ".join([ANY] * (CONTRACT.filter_terms // 2))
    assert parse_filter(f"({half}) AND ({half})")
    assert filter_mistake(f"({half}) AND ({half} OR {ANY})").reason == "FILTER_TOO_LONG"


@pytest.mark.parametrize("opening", ["(", "NOT (", "-(", "tags:a OR (tags:b ("])
def test_a_filter_has_a_limited_depth(opening: str) -> None:
    """What is nested deeper would end in the recursion limit of whoever walks the tree."""

    def nested(depth: int) -> str:
        times = depth // opening.count("(")
        return opening * times + "a" + ")" * depth

    assert parse_filter(nested(CONTRACT.filter_depth))
    assert filter_mistake(nested(CONTRACT.filter_depth + 2)).reason == "FILTER_TOO_DEEP"


# --- Orders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("", NEWEST_FIRST),
        (" ", NEWEST_FIRST),
        *((field, (Sort(field),)) for field in sorted(SORTABLE)),
        ("priority asc", (Sort("priority"),)),
        ("priority desc", (Sort("priority", descending=True),)),
        ("priority desc, due_date", (Sort("priority", descending=True), Sort("due_date"))),
        (" priority  desc ,due_date ", (Sort("priority", descending=True), Sort("due_date"))),
        (
            "status,title desc,created_at",
            (Sort("status"), Sort("title", descending=True), Sort("created_at")),
        ),
    ],
)
def test_an_order_becomes_its_terms(text: str, order: tuple[Sort, ...]) -> None:
    assert parse_order(text) == order


@pytest.mark.parametrize(
    ("text", "description"),
    [
        ("colour", "at character 1: cannot order by 'colour'; known are assigned_to, created_at, "),
        ("id", "at character 1: cannot order by 'id'; known are "),
        ("tags", "at character 1: cannot order by 'tags'; known are "),
        ("Priority", "at character 1: cannot order by 'Priority'; known are "),
        ("title, colour", "at character 8: cannot order by 'colour'; known are "),
        ("title,", "at character 7: cannot order by ''; known are "),
        (",", "at character 1: cannot order by ''; known are "),
        ("title up", "at character 1: 'up' must be asc or desc"),
        ("title DESC", "at character 1: 'DESC' must be asc or desc"),
        ("title desc desc", "at character 1: 'desc desc' must be asc or desc"),
        ("title priority", "at character 1: 'priority' must be asc or desc"),
        ("title, status, title desc", "at character 16: title stands twice"),
    ],
)
def test_a_mistake_in_an_order_is_told_with_its_place(text: str, description: str) -> None:
    with pytest.raises(FieldError) as raised:
        parse_order(text)
    assert raised.value.description.startswith(description)
    assert raised.value.reason == "ORDER_BY_INVALID"


# --- On tasks -------------------------------------------------------------------------------------

EARLY, MIDDLE, LATE = (
    dt.datetime(year, 6, 1, 12, 0, 0, 500, dt.UTC) for year in (2020, 2030, 2040)
)
DUE = (None, EARLY, MIDDLE, LATE)
TITLES = ("Pay the invoice", "invoice", "INVOICE now", "the late late show", "Übung", "say 'hi'")
DESCRIPTIONS = ("", "the invoice", "Pay now", "late", "invoice now the")
ASSIGNEES = ("", "ana", "Ana", "bob@example.com", "😀")
TAGS: tuple[list[str], ...] = ([], ["billing"], ["Billing", "x y"], ["*", "late"])


def _rows() -> list[dict[str, object]]:
    """Sixty tasks in which the values meet in many combinations; some are completed or deleted."""
    columns = (TITLES, DESCRIPTIONS, ASSIGNEES, DUE, TAGS, (1, 2, 3, 3, 4, 1, 2), (1, 2, 3, 4, 1))
    rows = []
    for number, values in enumerate(islice(zip(*map(cycle, columns), strict=True), 60)):
        title, description, assigned_to, due_date, tags, status, priority = values
        rows.append(
            {
                "id": str(uuid.UUID(int=number + 1)),
                "title": title,
                "description": description,
                "assigned_to": assigned_to,
                "due_date": due_date,
                "tags": tags,
                "status": status,
                "priority": priority,
                "created_by": "somebody" if number % 3 else "",
                "created_at": (EARLY, MIDDLE)[number % 2],
                "updated_at": (EARLY, MIDDLE, LATE)[number % 3],
                "completed_at": (EARLY, LATE)[number % 2]
                if status == TASK_STATUS_COMPLETED
                else None,
                "deleted_at": MIDDLE if number % 7 == 0 else None,
            }
        )
    return rows


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel, database_url: str) -> Iterator[TaskServiceStub]:
    """The service's stub, on tasks that this module only reads: they are made once."""
    engine = create_engine(database_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(delete(tasks_table))
        connection.execute(insert(tasks_table), _rows())
    yield TaskServiceStub(channel)
    with engine.begin() as connection:
        connection.execute(delete(tasks_table))


@pytest.fixture(scope="module")
def all_tasks(stub: TaskServiceStub) -> list[Task]:
    return selected(stub, "")


def selected(stub: TaskServiceStub, text: str) -> list[Task]:
    """The tasks that a filter selects, the deleted ones included."""
    request = ListTasksRequest(
        filter=text, page_size=1000, show_deleted=True, order_by="created_at"
    )
    return list(stub.ListTasks(request).tasks)


def ids(tasks: list[Task]) -> set[str]:
    return {task.id for task in tasks}


def time_of(task: Task, field: str) -> dt.datetime | None:
    value: Timestamp = getattr(task, field)
    return value.ToDatetime(dt.UTC) if task.HasField(field) else None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"id = {uuid.UUID(int=7)}", lambda task: task.id == str(uuid.UUID(int=7))),
        (
            "id = 00000000-0000-0000-0000-00000000000A",
            lambda task: task.id == str(uuid.UUID(int=10)),
        ),
        ("title = invoice", lambda task: task.title == "invoice"),
        ("title != invoice", lambda task: task.title != "invoice"),
        ("title = 'say \\'hi\\''", lambda task: task.title == "say 'hi'"),
        ('description = ""', lambda task: task.description == ""),
        ("description:*", lambda task: task.description != ""),
        ("assigned_to = ana", lambda task: task.assigned_to == "ana"),
        ("assigned_to = 😀", lambda task: task.assigned_to == "😀"),
        ("assigned_to:*", lambda task: task.assigned_to != ""),
        ("created_by = somebody", lambda task: task.created_by == "somebody"),
        ("status = COMPLETED", lambda task: task.status == 3),
        ("status = TASK_STATUS_COMPLETED", lambda task: task.status == 3),
        ("status != COMPLETED", lambda task: task.status != 3),
        ("priority = HIGH", lambda task: task.priority == 3),
        ("priority = TASK_PRIORITY_HIGH", lambda task: task.priority == 3),
        ("priority != HIGH", lambda task: task.priority != 3),
        ("priority < HIGH", lambda task: task.priority < 3),
        ("priority <= HIGH", lambda task: task.priority <= 3),
        ("priority > MEDIUM", lambda task: task.priority > 2),
        ("priority >= MEDIUM", lambda task: task.priority >= 2),
        ("tags:billing", lambda task: {"billing", "Billing"} & {*task.tags}),
        ("tags:BILLING", lambda task: {"billing", "Billing"} & {*task.tags}),
        ('tags:"x y"', lambda task: "x y" in task.tags),
        ('tags:"\\*"', lambda task: "*" in task.tags),
        ("tags:*", lambda task: len(task.tags) > 0),
        ("due_date:*", lambda task: task.HasField("due_date")),
        ("completed_at:*", lambda task: task.HasField("completed_at")),
        ("deleted_at:*", lambda task: task.HasField("deleted_at")),
        # One word is searched in both texts, whole, whatever its case.
        ("late", lambda task: "late" in f"{task.title} {task.description}"),
        ("INVOICE", lambda task: "invoice" in f"{task.title} {task.description}".lower()),
        ("übung", lambda task: task.title == "Übung"),
        ("title:invoice", lambda task: "invoice" in task.title.lower()),
        ("title:INVOICE", lambda task: "invoice" in task.title.lower()),
        ("description:invoice", lambda task: "invoice" in task.description),
        # Several words stand side by side, in this order.
        ('title:"the invoice"', lambda task: "the invoice" in task.title),
        ('title:"late late"', lambda task: "late late" in task.title),
        ('description:"invoice now"', lambda task: "invoice now" in task.description),
        (
            "status = PENDING AND (priority = HIGH OR priority = URGENT) AND NOT assigned_to = ''",
            lambda task: task.status == 1 and task.priority >= 3 and task.assigned_to != "",
        ),
        (
            "title:invoice tags:billing OR priority = LOW",
            lambda task: (
                "invoice" in task.title.lower()
                and ("billing" in task.tags or "Billing" in task.tags or task.priority == 1)
            ),
        ),
    ],
)
def test_a_filter_selects_its_tasks(
    stub: TaskServiceStub, all_tasks: list[Task], text: str, expected: Callable[[Task], bool]
) -> None:
    found = ids(selected(stub, text))
    assert found == {task.id for task in all_tasks if expected(task)}
    assert 0 < len(found) < len(all_tasks), "the tasks do not put the filter to the test"


@pytest.mark.parametrize(
    "text",
    ["invoic", "nvoice", "nvoice*", 'title:"invoice the"', '"pay invoice"', "tags:bill"],
)
def test_what_only_resembles_a_task_selects_none(stub: TaskServiceStub, text: str) -> None:
    """Parts of words, and words in another order."""
    assert selected(stub, text) == []


@pytest.mark.parametrize(
    ("sign", "due"),
    [
        ("=", {MIDDLE}),
        ("!=", {None, EARLY, LATE}),
        ("<", {EARLY}),
        ("<=", {EARLY, MIDDLE}),
        (">", {LATE}),
        (">=", {MIDDLE, LATE}),
    ],
)
def test_an_absent_time_fails_every_comparison_but_unequal(
    stub: TaskServiceStub, all_tasks: list[Task], sign: str, due: set[dt.datetime | None]
) -> None:
    found = selected(stub, f"due_date {sign} {MIDDLE.isoformat()}")
    assert ids(found) == {task.id for task in all_tasks if time_of(task, "due_date") in due}


@pytest.mark.parametrize("negation", ["NOT", "-"])
@pytest.mark.parametrize("sign", COMPARISONS)
def test_not_selects_the_tasks_with_an_absent_time_that_a_comparison_left_out(
    stub: TaskServiceStub, all_tasks: list[Task], sign: str, negation: str
) -> None:
    """In SQL, NOT of NULL is NULL: the tasks would be in neither list."""
    comparison = f"due_date {sign} {MIDDLE.isoformat()}"
    found, others = (ids(selected(stub, text)) for text in (comparison, f"{negation} {comparison}"))
    assert (found & others, found | others) == (set(), ids(all_tasks))


def test_times_are_compared_to_the_microsecond(stub: TaskServiceStub) -> None:
    just_after = (MIDDLE + dt.timedelta(microseconds=1)).isoformat()
    assert selected(stub, f"due_date >= {just_after} due_date < {LATE.isoformat()}") == []


@pytest.mark.parametrize("offset", ["+00:00", "+15:59", "+16:00", "+23:59", "-23:59"])
def test_every_offset_of_rfc_3339_is_understood(
    stub: TaskServiceStub, all_tasks: list[Task], offset: str
) -> None:
    """PostgreSQL refuses those of 16 hours and more."""
    sign = -1 if offset[0] == "-" else 1
    away = sign * dt.timedelta(hours=int(offset[1:3]), minutes=int(offset[4:]))
    local = (MIDDLE + away).replace(tzinfo=None).isoformat()
    found = selected(stub, f"due_date = {local}{offset}")
    assert ids(found) == {task.id for task in all_tasks if time_of(task, "due_date") == MIDDLE}


def test_statistics_count_what_the_filter_selects(
    stub: TaskServiceStub, all_tasks: list[Task]
) -> None:
    expected = [
        task for task in all_tasks if task.priority == 1 and not task.HasField("deleted_at")
    ]
    assert stub.GetTaskStats(GetTaskStatsRequest(filter="priority = LOW")).total == len(expected)


# --- Errors on the wire ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "violations"),
    [
        (ListTasksRequest(filter="colour = red"), {"filter": "FILTER_INVALID"}),
        (ListTasksRequest(filter=f"{ANY} " * 51), {"filter": "FILTER_TOO_LONG"}),
        (ListTasksRequest(filter="(" * 21 + "a" + ")" * 21), {"filter": "FILTER_TOO_DEEP"}),
        (ListTasksRequest(filter="x" * 2049), {"filter": "STRING_MAX_LEN"}),
        (ListTasksRequest(order_by="colour"), {"order_by": "ORDER_BY_INVALID"}),
        (ListTasksRequest(order_by="title" + " " * 252), {"order_by": "STRING_MAX_LEN"}),
        (
            ListTasksRequest(page_size=-1, page_token="x", filter="(", order_by="colour"),  # noqa: S106
            {
                "filter": "FILTER_INVALID",
                "order_by": "ORDER_BY_INVALID",
                "page_token": "PAGE_TOKEN_INVALID",
                "page_size": "INT32_GTE",
            },
        ),
    ],
)
def test_every_mistake_is_told_to_programs_too(
    stub: TaskServiceStub, request_: ListTasksRequest, violations: dict[str, str]
) -> None:
    with fails(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST") as failure:
        stub.ListTasks(request_)
    assert failure.violations == violations


def test_statistics_refuse_a_bad_filter_as_lists_do(stub: TaskServiceStub) -> None:
    with fails(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST") as failure:
        stub.GetTaskStats(GetTaskStatsRequest(filter="colour = red"))
    assert failure.violations == {"filter": "FILTER_INVALID"}


@pytest.mark.parametrize("text", [f"title = '{'😀' * 2038}'", '"' + "a " * 1023 + '"'])
def test_a_filter_may_have_2048_characters(stub: TaskServiceStub, text: str) -> None:
    assert len(text) in {2047, 2048}
    assert selected(stub, text) == []


# --- Whatever is written --------------------------------------------------------------------------


def outcome(stub: TaskServiceStub, **request: str) -> grpc.StatusCode:
    code: grpc.StatusCode = stub.ListTasks.future(ListTasksRequest(**request)).code()  # type: ignore[arg-type]
    return code


ANSWERS = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}

TOKENS = [
    *("AND", "OR", "NOT", "-", "(", ")", ":", "*", "a", '"b c"', "'", '"', "\\", "\0", ",", "."),
    *COMPARISONS,
    *("id", "tags", "status", "priority", *TEXTS, *TIMES),
    *("HIGH", "TASK_STATUS_PENDING", UUID, "2027-01-31T12:00:00Z", '"0001-01-01T00:00:00+23:59"'),
]


@hypothesis_settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=100))
def test_no_text_as_filter_is_an_internal_error(stub: TaskServiceStub, text: str) -> None:
    assert outcome(stub, filter=text) in ANSWERS


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    text=st.text(max_size=100)
    | st.lists(st.sampled_from([*SORTABLE, "asc", "desc", ","])).map(" ".join)
)
def test_no_text_as_order_is_an_internal_error(stub: TaskServiceStub, text: str) -> None:
    assert outcome(stub, order_by=text[:256]) in ANSWERS


@hypothesis_settings(max_examples=200, deadline=None)
@given(tokens=st.lists(st.sampled_from(TOKENS), max_size=12), joint=st.sampled_from(["", " "]))
def test_no_order_of_the_grammars_tokens_is_an_internal_error(
    stub: TaskServiceStub, tokens: list[str], joint: str
) -> None:
    assert outcome(stub, filter=joint.join(tokens)) in ANSWERS


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    field=st.sampled_from(["title", "description", "assigned_to", "created_by"]),
    sign=st.sampled_from(["=", "!="]),
    value=st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=50),
)
def test_every_text_can_be_quoted(field: str, sign: str, value: str) -> None:
    quoted = re.sub(r'(["*\\])', r"\\\1", value)
    assert parse_filter(f'{field} {sign} "{quoted}"') == Comparison(field, sign, value)


class Written(NamedTuple):
    """A tree and a text that means it."""

    tree: Filter
    text: str
    binding: int
    """How tightly the text holds together; what binds less than its place asks needs brackets."""


SEQUENCE, FACTOR, TERM, SIMPLE = range(4)


def _within(written: Written, binding: int) -> str:
    return written.text if written.binding >= binding else f"({written.text})"


def _not(written: Written, sign: str) -> Written:
    return Written(Not(written.tree), sign + _within(written, SIMPLE), TERM)


def _or(terms: list[Written]) -> Written:
    text = " OR ".join(_within(term, TERM) for term in terms)
    return Written(Or(tuple(term.tree for term in terms)), text, FACTOR)


def _and(terms: list[Written], joint: str) -> Written:
    text = joint.join(_within(term, FACTOR) for term in terms)
    return Written(And(tuple(term.tree for term in terms)), text, SEQUENCE)


def _compared(
    field: str, signs: str, values: list[tuple[Value, str]]
) -> st.SearchStrategy[Written]:
    return st.builds(
        lambda sign, value: Written(
            Comparison(field, sign, value[0]), f"{field} {sign} {value[1]}", SIMPLE
        ),
        st.sampled_from(signs.split()),
        st.sampled_from(values),
    )


def _simple(tree: Filter, text: str) -> st.SearchStrategy[Written]:
    return st.just(Written(tree, text, SIMPLE))


def _quoted(text: str) -> str:
    return '"' + re.sub(r'(["*])', r"\\\1", text) + '"'


_ORDER = "= != < <= > >="
_SEARCHED = ("invoice", "PAY", "late", "the invoice", "now the", "late late", "nowhere", "übung")

TERMS = st.one_of(
    _compared("id", "= !=", [(str(uuid.UUID(int=n)), str(uuid.UUID(int=n))) for n in (1, 2, 99)]),
    _compared("title", "= !=", [(title, _quoted(title)) for title in TITLES]),
    _compared("description", "= !=", [(text, _quoted(text)) for text in DESCRIPTIONS]),
    _compared("assigned_to", "= !=", [(name, _quoted(name)) for name in ASSIGNEES]),
    _compared("status", "= !=", [(1, "PENDING"), (3, "TASK_STATUS_COMPLETED"), (4, "CANCELLED")]),
    _compared("priority", _ORDER, [(2, "MEDIUM"), (3, "TASK_PRIORITY_HIGH"), (4, '"URGENT"')]),
    *(
        _compared(
            field, _ORDER, [(EARLY, EARLY.isoformat()), (MIDDLE, _quoted(MIDDLE.isoformat()))]
        )
        for field in TIMES
    ),
    *(_simple(Present(field), f"{field}:*") for field in ("id", "tags", *TEXTS, *TIMES)),
    *(_simple(HasTag(tag), f"tags:{_quoted(tag)}") for tag in ("billing", "Billing", "x y", "*")),
    *(_simple(HasWords(words), _quoted(words)) for words in _SEARCHED),
    *(
        _simple(HasWords(words, field), f"{field}:{_quoted(words)}")
        for words in _SEARCHED
        for field in ("title", "description")
    ),
)

FILTERS = st.recursive(
    TERMS,
    lambda inner: st.one_of(
        st.builds(_not, inner, st.sampled_from(["NOT ", "-"])),
        st.builds(_or, st.lists(inner, min_size=2, max_size=3)),
        st.builds(
            _and, st.lists(inner, min_size=2, max_size=3), st.sampled_from([" ", " AND ", "\n"])
        ),
    ),
    max_leaves=10,
)


def holds(tree: Filter, task: Task) -> bool:
    """What a filter means, said in Python.

    Words are searched in title and description each for itself.
    """
    match tree:
        case Comparison(field, sign, value) if field in TIMES:
            time = time_of(task, field)
            return sign == "!=" if time is None else COMPARISONS[sign](time, value)
        case Comparison(field, sign, value):
            return bool(COMPARISONS[sign](getattr(task, field), value))
        case Present(field):
            return task.HasField(field) if field in TIMES else bool(getattr(task, field))  # type: ignore[arg-type]
        case HasTag(tag):
            return tag.lower() in map(str.lower, task.tags)
        case HasWords(words, field):
            texts = [getattr(task, name) for name in ((field,) if field else TEXTS[:2])]
            return any(f" {words} ".lower() in f" {text} ".lower() for text in texts)
        case Not(term):
            return not holds(term, task)
        case And(terms):
            return all(holds(term, task) for term in terms)
        case Or(terms):
            return any(holds(term, task) for term in terms)


@hypothesis_settings(max_examples=200, deadline=None)
@given(written=FILTERS)
def test_a_filter_selects_what_its_tree_says(
    stub: TaskServiceStub, all_tasks: list[Task], written: Written
) -> None:
    expected = {task.id for task in all_tasks if holds(written.tree, task)}
    assert ids(selected(stub, written.text)) == expected


@hypothesis_settings(max_examples=150, deadline=None)
@given(text=FILTERS.map(lambda written: written.text) | st.sampled_from(TOKENS))
def test_not_is_the_exact_complement(
    stub: TaskServiceStub, all_tasks: list[Task], text: str
) -> None:
    if outcome(stub, filter=text) is not grpc.StatusCode.OK or is_blank(text):
        return
    found, others = ids(selected(stub, text)), ids(selected(stub, f"NOT ({text})"))
    assert (found & others, found | others) == (set(), ids(all_tasks))


def test_a_filter_that_is_too_long_is_not_parsed(stub: TaskServiceStub) -> None:
    """It may be megabytes of anything; parsing it would keep the whole process busy."""
    with fails(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST") as failure:
        stub.ListTasks(ListTasksRequest(filter="(" * 2049, order_by="x" * 257))
    assert failure.violations == {"filter": "STRING_MAX_LEN", "order_by": "STRING_MAX_LEN"}


@pytest.mark.parametrize("filter_", ["b", "y", "title:b", '"<b"', '"y>"'])
def test_what_looks_like_a_tag_is_found(
    stub: TaskServiceStub, create_task: Callable[..., Task], filter_: str
) -> None:
    """PostgreSQL's parser leaves markup out."""
    task = create_task(title="x <b", description="y> z")
    assert task in stub.ListTasks(ListTasksRequest(filter=filter_)).tasks


@pytest.mark.parametrize(
    ("text", "position"),
    [
        (f"{ANY} " * CONTRACT.filter_terms + "b", 9 * CONTRACT.filter_terms + 1),
        ("a " * 10 + "b", 21),
        ("(" * (CONTRACT.filter_depth + 1) + "a", CONTRACT.filter_depth + 2),
    ],
)
def test_a_limit_names_the_place_that_exceeds_it(text: str, position: int) -> None:
    text += ")" * text.count("(")
    assert f"at character {position}:" in filter_mistake(text).description
