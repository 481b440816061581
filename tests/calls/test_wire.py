"""Count the items of an encoded message: the result is that of the parser, for any bytes."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from server.calls.wire import LARGEST_VALID_BYTES, MAX_BATCH_ITEMS, check_item_counts
from server.errors import InvalidRequestError
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    BatchGetTasksRequest,
    BatchUpdateTasksRequest,
    CreateTaskRequest,
    UpdateTaskRequest,
)

MOST = MAX_BATCH_ITEMS
PADDING = "x" * LARGEST_VALID_BYTES

texts = st.text(max_size=40)
tasks = st.builds(Task, title=texts, description=texts, tags=st.lists(texts, max_size=12))
masks = st.builds(FieldMask, paths=st.lists(texts, max_size=12))
updates = st.builds(UpdateTaskRequest, task=tasks, update_mask=masks, request_id=texts)
batches = st.builds(BatchUpdateTasksRequest, requests=st.lists(updates, max_size=20))


def update(paths: int = 0, tags: int = 0) -> UpdateTaskRequest:
    """A request that is looked into: a small one holds little, whatever it is."""
    task = Task(description=PADDING, tags=[""] * tags)
    return UpdateTaskRequest(task=task, update_mask=FieldMask(paths=[""] * paths))


def refusal_of(request: Any, data: bytes | None = None) -> tuple[str, str]:
    with pytest.raises(InvalidRequestError) as raised:
        check_item_counts(data or request.SerializeToString(), request.DESCRIPTOR)
    (violation,) = raised.value.violations
    return violation.field, violation.reason  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (BatchCreateTasksRequest(requests=[CreateTaskRequest()] * 10_000), "requests"),
        (BatchGetTasksRequest(ids=[""] * 10_000), "ids"),
        (update(tags=MOST + 1), "task.tags"),
        (update(paths=10_000), "update_mask.paths"),
        (
            BatchUpdateTasksRequest(requests=[update(), update(tags=10_000)]),
            "requests[1].task.tags",
        ),
        (
            BatchUpdateTasksRequest(requests=[UpdateTaskRequest(), update(paths=10_000)]),
            "requests[1].update_mask.paths",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_too_many_items_are_found_wherever_they_are(request_: Any, field: str) -> None:
    assert refusal_of(request_) == (field, "REPEATED_MAX_ITEMS")


@pytest.mark.parametrize(
    "request_",
    [update(MOST, MOST), BatchUpdateTasksRequest(requests=[update(MOST, MOST)] * MOST)],
    ids=["one", "batch"],
)
def test_as_many_items_as_the_contract_allows_pass(request_: Any) -> None:
    check_item_counts(request_.SerializeToString(), request_.DESCRIPTOR)


def test_items_in_parts_of_a_message_that_a_parser_would_merge_are_refused() -> None:
    """Each part has few; no library writes them."""
    part = UpdateTaskRequest(task=Task(tags=["", ""])).SerializeToString()
    assert refusal_of(UpdateTaskRequest(), part * 10_000) == ("", "MALFORMED")


@pytest.mark.parametrize("tag", [3, 4, 6, 7])
def test_what_the_scan_would_not_see_behind_is_refused(tag: int) -> None:
    """Groups, which the contract does not have, and wire types that there are not."""
    hidden = bytes([15 << 3 | tag]) + BatchGetTasksRequest(ids=[""] * 10_000).SerializeToString()
    assert refusal_of(BatchGetTasksRequest(), hidden) == ("", "MALFORMED")


def test_a_number_without_an_end_is_refused() -> None:
    """It would be of any size: a megabyte of it is a number that takes minutes to make."""
    assert refusal_of(UpdateTaskRequest(), b"\xff" * 1_000_000) == ("", "MALFORMED")


@given(batches)
def test_what_a_library_writes_passes(batch: BatchUpdateTasksRequest) -> None:
    padded = BatchUpdateTasksRequest(requests=[*batch.requests, update()])
    check_item_counts(padded.SerializeToString(), padded.DESCRIPTOR)


@given(st.binary(max_size=200), st.integers(0, 3))
def test_bytes_that_pass_become_no_more_than_what_was_counted(noise: bytes, part: int) -> None:
    """Any bytes, before, within or behind a message that is good."""
    padding = [b"", update().SerializeToString()][part & 1] + b"\x1a\x00" * LARGEST_VALID_BYTES
    data = noise + padding if part & 2 else padding + noise
    try:
        check_item_counts(data, UpdateTaskRequest.DESCRIPTOR)
        parsed = UpdateTaskRequest.FromString(data)
    except (InvalidRequestError, DecodeError):
        return
    assert len(parsed.update_mask.paths) <= MOST
    assert len(parsed.task.tags) <= MOST
