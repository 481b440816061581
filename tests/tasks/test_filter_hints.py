"""Invalid filters: the error has the position, and a hint for common mistakes."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import pytest

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    GetTaskStatsRequest,
    ListTasksRequest,
    PurgeTasksRequest,
    UpdateTaskRequest,
    WatchTasksRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import fails

Create = Callable[..., Task]

INVALID = grpc.StatusCode.INVALID_ARGUMENT

FOREIGN = [
    ("status = PENDING and priority = HIGH", 18, "write AND in capitals"),
    ("invoice or bill", 9, "write OR in capitals"),
    ("not invoice", 1, "write NOT in capitals"),
    ("a And b", 3, "write AND in capitals"),
    ("id:* && tags:*", 6, "write AND"),
    ("id:* || tags:*", 6, "write OR"),
    ("invoice||bill", 1, "write OR"),
    ("!tags:a", 1, "write NOT or -"),
    ("status == PENDING", 9, "is not expected here"),
    ("overdue(x)", 1, "there are no functions"),
    ("overdue()", 1, "there are no functions"),
    ("a AND overdue(x, 1)", 7, "there are no functions"),
    ("due_date < now()", 12, "there are no functions"),
    ("status = PENDING OR COMPLETED", 21, "write status = COMPLETED"),
    ("status = PENDING COMPLETED", 18, "write status = COMPLETED"),
    ("priority > LOW AND (x OR TASK_STATUS_PENDING)", 26, "write status = TASK_STATUS_PENDING"),
    ("status = PENDING AND NOT HIGH", 26, "write priority = HIGH"),
    ("status = (PENDING OR COMPLETED)", 10, "status = PENDING OR status = COMPLETED"),
    ("status = PENDING, COMPLETED", 17, "write AND or OR"),
    ("task.title = a", 1, "; write title"),
    ("task.tags:a", 1, "; write tags"),
    ("title.length = 3", 1, "there is no field 'title.length'"),
    ("Title = a", 1, "; write title"),
]
STARS = [
    ('title = "Send*"', 9, "title:Send*"),
    ('title = "*Send"', 9, "write \\* in quotes"),
    ("title != Send*", 10, "write \\* in quotes"),
    ("title = *", 9, "write \\* in quotes"),
    ('assigned_to = "ann@*"', 15, "write \\* in quotes"),
    ("status = PEND*", 10, "write \\* in quotes"),
    ("due_date > 2027*", 12, "write \\* in quotes"),
    ("tags:bill*", 6, "write \\* in quotes"),
    ('tags:"*"', 6, "write \\* in quotes"),
    ("*voice", 1, "a * must follow a letter or digit"),
    ('"the *"', 1, "a * must follow a letter or digit"),
    ("title:*voice*", 7, "a * must follow a letter or digit"),
]
NOTHING = [
    ("*", 1, "has no letter or digit"),
    ('""', 1, "has no letter or digit"),
    ('"!"', 1, "has no letter or digit"),
    ("a AND ??", 7, "has no letter or digit"),
    ('title:"<->"', 7, "has no letter or digit"),
    ("\U0001f389", 1, "has no letter or digit"),
    ("id:* \u200b", 6, "has no letter or digit"),
]


@pytest.mark.parametrize(("filter_", "position", "hint"), FOREIGN + STARS + NOTHING)
def test_what_is_not_supported_is_refused_with_a_hint(
    stub: TaskServiceStub, filter_: str, position: int, hint: str
) -> None:
    with fails(INVALID, "INVALID_REQUEST") as failure:
        stub.ListTasks(ListTasksRequest(filter=filter_))
    assert failure.violations == {"filter": "FILTER_INVALID"}
    assert f"at character {position}:" in failure.message
    assert hint in failure.message


def test_every_call_with_a_filter_refuses_what_a_list_refuses(stub: TaskServiceStub) -> None:
    filter_ = "status = PENDING and id:*"
    calls: list[Callable[[], object]] = [
        lambda: stub.GetTaskStats(GetTaskStatsRequest(filter=filter_)),
        lambda: stub.PurgeTasks(PurgeTasksRequest(filter=filter_)),
        lambda: next(stub.WatchTasks(WatchTasksRequest(filter=filter_))),
    ]
    for call in calls:
        with fails(INVALID, "INVALID_REQUEST") as failure:
            call()
        assert failure.violations == {"filter": "FILTER_INVALID"}


@pytest.mark.parametrize(
    "filter_",
    [
        '"and"',
        "title:and",
        'title = "Send\\* (a) && b and\\*"',
        'description:"a && b"',
        "tags:and",
        'tags:"bill\\*"',
        "HIGH",
        'status = PENDING "high"',
        "(high)(and*)",
        "(title:high) (description:x OR id:*)",
    ],
)
def test_what_is_quoted_or_elsewhere_means_itself(
    stub: TaskServiceStub, create_task: Create, filter_: str
) -> None:
    title = "Send* (a) && b and*"
    task = create_task(title=title, description="HIGH a b", tags=["and", "bill*"])
    high = create_task(title="high and", description="x high")
    ids = {task.id for task in stub.ListTasks(ListTasksRequest(filter=filter_)).tasks}
    assert ids & {task.id, high.id}


# Leap seconds


@pytest.mark.parametrize(
    "written",
    ["2016-12-31T23:59:60Z", "2016-12-31T15:59:60-08:00", "2017-01-01T08:59:60+09:00"],
)
def test_a_leap_second_is_the_first_second_of_the_next_minute(
    stub: TaskServiceStub, create_task: Create, written: str
) -> None:
    create_task()
    year = "created_at > 2017-01-01T00:00:00Z"
    for filter_ in (f"created_at > {written} {year}", f'created_at != "{written}" {year}'):
        assert len(stub.ListTasks(ListTasksRequest(filter=filter_)).tasks) == 1


def test_a_due_date_is_found_by_the_leap_second_before_it(
    stub: TaskServiceStub, create_task: Create
) -> None:
    task = create_task()
    update = UpdateTaskRequest(task=Task(id=task.id))
    update.task.due_date.FromJsonString("2099-01-01T00:00:00.5Z")
    stub.UpdateTask(update)
    filter_ = "due_date = 2098-12-31T23:59:60.5Z"
    assert len(stub.ListTasks(ListTasksRequest(filter=filter_)).tasks) == 1


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("2027-01-31T12:00:60Z", "only the last minute of a month in UTC can have"),
        ("2027-01-30T23:59:60Z", "only the last minute of a month in UTC can have"),
        ("2027-01-31T23:59:60+01:00", "only the last minute of a month in UTC can have"),
        ("2027-01-31T23:59:61Z", "must be an RFC 3339 timestamp"),
    ],
)
def test_a_second_60_elsewhere_is_refused_with_the_reason(
    stub: TaskServiceStub, written: str, reason: str
) -> None:
    with fails(INVALID, "INVALID_REQUEST") as failure:
        stub.ListTasks(ListTasksRequest(filter=f"due_date < {written}"))
    assert reason in failure.message
