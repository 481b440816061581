"""Filters on tasks: those that each selects, and errors on the wire."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable

import grpc
import pytest

from storage.query import COMPARISONS
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import GetTaskStatsRequest, ListTasksRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import fails
from tests.support.filters import ANY, EARLY, LATE, MIDDLE, ids, selected, time_of


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
        ("created_by = maker", lambda task: task.created_by == "maker"),
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
    sample_stub: TaskServiceStub, samples: list[Task], text: str, expected: Callable[[Task], bool]
) -> None:
    found = ids(selected(sample_stub, text))
    assert found == {task.id for task in samples if expected(task)}
    assert 0 < len(found) < len(samples), "the tasks do not put the filter to the test"


@pytest.mark.parametrize(
    "text",
    ["invoic", "nvoice", "nvoice*", 'title:"invoice the"', '"pay invoice"', "tags:bill"],
)
def test_what_only_resembles_a_task_selects_none(sample_stub: TaskServiceStub, text: str) -> None:
    """Parts of words, and words in another order."""
    assert selected(sample_stub, text) == []


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
    sample_stub: TaskServiceStub, samples: list[Task], sign: str, due: set[dt.datetime | None]
) -> None:
    found = selected(sample_stub, f"due_date {sign} {MIDDLE.isoformat()}")
    assert ids(found) == {task.id for task in samples if time_of(task, "due_date") in due}


@pytest.mark.parametrize("negation", ["NOT", "-"])
@pytest.mark.parametrize("sign", COMPARISONS)
def test_not_selects_absent_times_that_a_comparison_left_out(
    sample_stub: TaskServiceStub, samples: list[Task], sign: str, negation: str
) -> None:
    """In SQL, NOT of NULL is NULL: the tasks would be in neither list."""
    comparison = f"due_date {sign} {MIDDLE.isoformat()}"
    found, others = (
        ids(selected(sample_stub, text)) for text in (comparison, f"{negation} {comparison}")
    )
    assert (found & others, found | others) == (set(), ids(samples))


def test_times_are_compared_to_the_microsecond(sample_stub: TaskServiceStub) -> None:
    just_after = (MIDDLE + dt.timedelta(microseconds=1)).isoformat()
    assert selected(sample_stub, f"due_date >= {just_after} due_date < {LATE.isoformat()}") == []


@pytest.mark.parametrize("offset", ["+00:00", "+15:59", "+16:00", "+23:59", "-23:59"])
def test_every_offset_of_rfc_3339_is_understood(
    sample_stub: TaskServiceStub, samples: list[Task], offset: str
) -> None:
    """PostgreSQL refuses those of 16 hours and more."""
    sign = -1 if offset[0] == "-" else 1
    away = sign * dt.timedelta(hours=int(offset[1:3]), minutes=int(offset[4:]))
    local = (MIDDLE + away).replace(tzinfo=None).isoformat()
    found = selected(sample_stub, f"due_date = {local}{offset}")
    assert ids(found) == {task.id for task in samples if time_of(task, "due_date") == MIDDLE}


def test_statistics_count_what_the_filter_selects(
    sample_stub: TaskServiceStub, samples: list[Task]
) -> None:
    expected = [task for task in samples if task.priority == 1 and not task.HasField("deleted_at")]
    assert sample_stub.GetTaskStats(GetTaskStatsRequest(filter="priority = LOW")).total == len(
        expected
    )


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
def test_every_mistake_has_a_field_violation(
    sample_stub: TaskServiceStub, request_: ListTasksRequest, violations: dict[str, str]
) -> None:
    with fails(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST") as failure:
        sample_stub.ListTasks(request_)
    assert failure.violations == violations


def test_statistics_refuse_a_bad_filter_as_lists_do(sample_stub: TaskServiceStub) -> None:
    with fails(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST") as failure:
        sample_stub.GetTaskStats(GetTaskStatsRequest(filter="colour = red"))
    assert failure.violations == {"filter": "FILTER_INVALID"}


@pytest.mark.parametrize("text", [f"title = '{'😀' * 2038}'", '"' + "a " * 1023 + '"'])
def test_a_filter_may_have_2048_characters(sample_stub: TaskServiceStub, text: str) -> None:
    assert len(text) in {2047, 2048}
    assert selected(sample_stub, text) == []


def test_a_filter_that_is_too_long_is_not_parsed(sample_stub: TaskServiceStub) -> None:
    """It may be megabytes of anything; parsing it would keep the whole process busy."""
    with fails(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST") as failure:
        sample_stub.ListTasks(ListTasksRequest(filter="(" * 2049, order_by="x" * 257))
    assert failure.violations == {"filter": "STRING_MAX_LEN", "order_by": "STRING_MAX_LEN"}


@pytest.mark.parametrize("filter_", ["b", "y", "title:b", '"<b"', '"y>"'])
def test_what_looks_like_a_tag_is_found(
    stub: TaskServiceStub, create_task: Callable[..., Task], filter_: str
) -> None:
    """PostgreSQL's parser leaves markup out."""
    task = create_task(title="x <b", description="y> z")
    assert task in stub.ListTasks(ListTasksRequest(filter=filter_)).tasks
