"""Requests that break rules, are too large, or are no message: what the error says."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from server.calls.wire import MAX_BATCH_REQUEST_BYTES, MAX_REQUEST_BYTES
from taskservice.v1 import task_service_pb2
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    BatchDeleteTasksRequest,
    BatchGetTasksRequest,
    BatchUpdateTasksRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    UndeleteTaskRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import EXHAUSTED, INVALID, fails

SERVICE = "/taskservice.v1.TaskService/"
LARGE_METHODS = ("BatchCreateTasks", "BatchUpdateTasks")
SMALL_METHODS = (
    *("CreateTask", "GetTask", "ListTasks", "UpdateTask"),
    *("DeleteTask", "UndeleteTask", "GetTaskStats"),
    *("BatchGetTasks", "BatchDeleteTasks"),
    *("ListTaskEvents", "PurgeTasks"),
)
METHODS = SMALL_METHODS + LARGE_METHODS
STREAM = "WatchTasks"


def test_no_method_is_untested() -> None:
    methods = task_service_pb2.DESCRIPTOR.services_by_name["TaskService"].methods
    assert {method.name for method in methods} == {*METHODS, STREAM}


@pytest.mark.parametrize("task_id", ["", "1", "x" * 10_000, "\0", f"{{{uuid.UUID(int=1)}}}"])
@pytest.mark.parametrize("request_type", [GetTaskRequest, DeleteTaskRequest, UndeleteTaskRequest])
def test_an_id_that_is_none_is_refused(
    stub: TaskServiceStub, request_type: Any, task_id: str
) -> None:
    method = getattr(stub, request_type.DESCRIPTOR.name.removesuffix("Request"))
    with fails(INVALID, "INVALID_REQUEST") as failure:
        method(request_type(id=task_id))
    assert set(failure.violations) == {"id"}


def test_create_tells_all_violations_at_once(stub: TaskServiceStub) -> None:
    task = Task(
        title="t" * 201,
        description="\0",
        status=9,  # type: ignore[arg-type]
        priority=-1,  # type: ignore[arg-type]
        assigned_to="a" * 201,
        tags=[str(number) for number in range(11)],
    )
    with fails(INVALID, "INVALID_REQUEST") as failure:
        stub.CreateTask(CreateTaskRequest(task=task, task_id="1", request_id="2"))
    assert failure.violations == {
        "task.title": "STRING_MAX_LEN",
        "task.description": "TASK_DESCRIPTION_NO_CONTROL_CHARACTERS",
        "task.status": "ENUM_DEFINED_ONLY",
        "task.priority": "ENUM_DEFINED_ONLY",
        "task.assigned_to": "STRING_MAX_LEN",
        "task.tags": "REPEATED_MAX_ITEMS",
        "task_id": "STRING_UUID",
        "request_id": "STRING_UUID",
    }


def test_list_tells_all_violations_at_once(stub: TaskServiceStub) -> None:
    request = ListTasksRequest(page_size=-1, filter="(", order_by="colour", page_token="x")  # noqa: S106
    with fails(INVALID, "INVALID_REQUEST") as failure:
        stub.ListTasks(request)
    assert failure.violations == {
        "page_size": "INT32_GTE",
        "filter": "FILTER_INVALID",
        "order_by": "ORDER_BY_INVALID",
        "page_token": "PAGE_TOKEN_INVALID",
    }


@pytest.mark.parametrize("blank", ["", " ", "\u2003", "\u00a0\u3000", "\u200b"])
def test_a_blank_title_is_refused(stub: TaskServiceStub, blank: str) -> None:
    with fails(INVALID, "INVALID_REQUEST") as failure:
        stub.CreateTask(CreateTaskRequest(task=Task(title=blank)))
    assert failure.violations == {"task.title": "TASK_TITLE_NOT_BLANK"}


def test_a_create_without_a_task_is_refused(stub: TaskServiceStub) -> None:
    with fails(INVALID, "INVALID_REQUEST") as failure:
        stub.CreateTask(CreateTaskRequest())
    assert failure.violations == {"task": "REQUIRED"}


@pytest.mark.parametrize("method", METHODS)
def test_bytes_that_are_no_message_are_the_callers_mistake(
    channel: grpc.Channel, method: str
) -> None:
    """grpcio by itself would say INTERNAL."""
    with fails(INVALID, "INVALID_REQUEST"):
        _raw(channel, method)(b"\xff\xff\xff")


@pytest.mark.parametrize("method", METHODS)
def test_no_bytes_are_an_internal_error(channel: grpc.Channel, method: str) -> None:
    """Whatever arrives is worked on or refused: bytes at random, and messages of other methods."""
    call = _raw(channel, method)

    @hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.binary(max_size=60) | _near_messages())
    def send(data: bytes) -> None:
        try:
            call(data)
        except grpc.RpcError as error:
            assert error.code() not in {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}  # noqa: PT017

    send()


def test_bytes_that_are_no_message_end_a_stream_as_the_callers_mistake(
    channel: grpc.Channel,
) -> None:
    with fails(INVALID, "INVALID_REQUEST"):
        next(_raw_stream(channel)(b"\xff\xff\xff"))


def _filled(size: int) -> bytes:
    """Bytes on which every method can end: a field that none of them has, of so many bytes."""
    head = b"\xfa\x7f"  # Field 2047, with a length.
    length, rest = b"", size - len(head) - 4
    for shift in range(0, 28, 7):
        length += bytes([rest >> shift & 0x7F | (0x80 if shift < 21 else 0)])
    return head + length + bytes(rest)


@pytest.mark.parametrize("method", SMALL_METHODS)
def test_a_request_larger_than_any_that_is_valid_is_refused(
    channel: grpc.Channel, method: str
) -> None:
    """Before it is read, and by the size of it alone."""
    with fails(EXHAUSTED, "REQUEST_TOO_LARGE") as failure:
        _raw(channel, method)(_filled(MAX_REQUEST_BYTES + 1))
    assert str(MAX_REQUEST_BYTES) in failure.message
    assert failure.pushback == "-1"  # gRPC's own retries need not try again.


def test_a_request_for_a_stream_has_the_same_limit(
    channel: grpc.Channel,
) -> None:
    with fails(EXHAUSTED, "REQUEST_TOO_LARGE"):
        next(_raw_stream(channel)(_filled(MAX_REQUEST_BYTES + 1)))


@pytest.mark.parametrize("method", ["CreateTask", "GetTask", "ListTaskEvents"])
def test_a_request_at_the_limit_is_read(channel: grpc.Channel, method: str) -> None:
    with fails(INVALID, "INVALID_REQUEST"):
        _raw(channel, method)(_filled(MAX_REQUEST_BYTES))


@pytest.mark.parametrize("method", LARGE_METHODS)
def test_a_batch_of_tasks_may_be_larger(channel: grpc.Channel, method: str) -> None:
    with fails(INVALID, "INVALID_REQUEST") as failure:
        _raw(channel, method)(_filled(MAX_BATCH_REQUEST_BYTES))
    assert set(failure.violations.values()) == {"REPEATED_MIN_ITEMS"}


def _raw_stream(channel: grpc.Channel) -> Any:
    return channel.unary_stream(
        SERVICE + STREAM, request_serializer=bytes, response_deserializer=bytes
    )


def _raw(channel: grpc.Channel, method: str) -> Any:
    return channel.unary_unary(
        SERVICE + method, request_serializer=bytes, response_deserializer=bytes
    )


def _near_messages() -> st.SearchStrategy[bytes]:
    """Field after field, each well-formed on the wire, with values that may not fit."""
    field = st.builds(
        lambda number, content: bytes([number << 3 | 2, len(content)]) + content,
        st.integers(1, 14),
        st.binary(max_size=40) | st.text(max_size=10).map(str.encode),
    )
    varint = st.builds(
        lambda number, value: bytes([number << 3, value]), st.integers(1, 14), st.integers(0, 127)
    )
    flat = st.lists(field | varint, max_size=5).map(b"".join)
    nested = flat.map(lambda inner: bytes([10, len(inner)]) + inner if len(inner) < 128 else inner)
    return flat | nested


def test_an_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        _raw(channel, "Nonsense")(b"")
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    "request_",
    [
        CreateTaskRequest(task=Task(title="t", tags=[" "] * 5000)),
        UpdateTaskRequest(
            task=Task(id=str(uuid.UUID(int=1))),
            update_mask=FieldMask(paths=[f"{number}\u00e9" * 60 for number in range(500)]),
        ),
        CreateTaskRequest(task=Task(title="x" * 50_000, description="\0" * 100_000)),
    ],
    ids=["tags", "paths", "long values"],
)
def test_more_violations_than_fit_are_counted(stub: TaskServiceStub, request_: Any) -> None:
    """A client takes 8 KiB of trailers; an error beyond that would not arrive as what it is."""
    method = getattr(stub, request_.DESCRIPTOR.name.removesuffix("Request"))
    with fails(INVALID, "INVALID_REQUEST") as failure:
        method(request_)
    told = failure.detail(error_details_pb2.BadRequest).field_violations
    assert told[0].field
    assert len(told) < 5 or told[-1].description.endswith("more")


_SOMEBODY = Task(id=str(uuid.UUID(int=1)), title="t")
_MANY = 1_000_000


@pytest.mark.parametrize(
    "request_",
    [
        CreateTaskRequest(task=Task(title="t", tags=[""] * 120_000)),
        UpdateTaskRequest(task=_SOMEBODY, update_mask=FieldMask(paths=[""] * 120_000)),
        BatchGetTasksRequest(ids=[""] * 120_000),
        BatchCreateTasksRequest(requests=[CreateTaskRequest()] * _MANY),
        BatchUpdateTasksRequest(requests=[UpdateTaskRequest()] * _MANY),
        BatchDeleteTasksRequest(requests=[DeleteTaskRequest()] * 120_000),
        BatchCreateTasksRequest(
            requests=[CreateTaskRequest(task=Task(title="t", tags=[""] * _MANY))]
        ),
        BatchCreateTasksRequest(
            requests=[CreateTaskRequest(task=Task(title="t", tags=[""] * 1000))] * 1000
        ),
        BatchUpdateTasksRequest(
            requests=[UpdateTaskRequest(task=Task(title="t", tags=[""] * _MANY))]
        ),
        BatchUpdateTasksRequest(
            requests=[
                UpdateTaskRequest(
                    task=_SOMEBODY,
                    update_mask=FieldMask(paths=[f"{number:x}" for number in range(300_000)]),
                )
            ]
        ),
    ],
    ids=[
        *("tags", "paths", "ids", "creations", "updates", "deletions"),
        *("tags of one creation", "tags of all creations", "tags of one update"),
        "paths of one update",
    ],
)
def test_a_request_with_a_million_mistakes_is_answered(
    stub: TaskServiceStub, request_: Any
) -> None:
    """Looking at each, and describing it, would take a worker's thread for minutes."""
    method = getattr(stub, request_.DESCRIPTOR.name.removesuffix("Request"))
    with fails(INVALID, "INVALID_REQUEST") as failure:
        method(request_, timeout=20)
    assert failure.violations


@pytest.mark.parametrize("size", [300, 20_000])
def test_what_the_mask_does_not_mean_hides_no_violation(
    stub: TaskServiceStub, create_task: Callable[..., Task], size: int
) -> None:
    """However large it is, and wherever it stands in the message."""
    task = Task(id=create_task().id, title="t" * size, description="d" * 2001)
    with fails(INVALID, "INVALID_REQUEST") as failure:
        stub.UpdateTask(UpdateTaskRequest(task=task, update_mask=FieldMask(paths=["description"])))
    assert failure.violations == {"task.description": "STRING_MAX_LEN"}


@pytest.mark.parametrize("word", ["\u023a" * 1000, "x" * 1500])
def test_a_word_too_long_to_search_for_is_refused(stub: TaskServiceStub, word: str) -> None:
    """Some letters are longer in lower case, and PostgreSQL's limit is on that."""
    with fails(INVALID, "INVALID_REQUEST") as failure:
        stub.ListTasks(ListTasksRequest(filter=f'"{word}"'))
    assert failure.violations == {"filter": "FILTER_INVALID"}


@pytest.mark.parametrize("word", ["\u023a" * 2000, "\U00010348" * 2000, "x" * 2000])
def test_a_word_of_any_length_can_be_stored(stub: TaskServiceStub, word: str) -> None:
    task = stub.CreateTask(CreateTaskRequest(task=Task(title="long", description=word)))
    assert task.description == word
