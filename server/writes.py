"""What a write does, whether it is of one task or of a batch of them.

`within` is where an item's fields stand in the request: nowhere in particular for a single task,
"requests[{}]." for a batch.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import uuid_utils

from server.conversions import merged_values, task_to_proto, task_values, version_of
from server.errors import (
    AnswerTooLargeError,
    BatchItemError,
    InvalidRequestError,
    TransitionNotAllowedError,
)
from server.telemetry import add_span_event
from server.validation import check_change, past_due_date
from storage.errors import (
    RequestIdReusedError,
    TaskError,
    TaskNotFoundError,
    TransactionConflictError,
    VersionMismatchError,
)
from storage.repository import (
    Change,
    Creation,
    Origin,
    RequestRecord,
    Target,
    TaskRepository,
    replayed,
)
from storage.tables import TaskRow
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest, DeleteTaskRequest, UpdateTaskRequest

_FREE_ATTEMPTS = 3
_ATTEMPTS = 6

_LARGEST_TASK_BYTES = 16 * 1024
# A client takes 4 MiB by default; a write may add a little to what was there.
_MAX_ANSWER_BYTES = 4 * 1024 * 1024 - 256 * 1024


def create(
    repository: TaskRepository,
    requests: Sequence[CreateTaskRequest],
    origin: Origin,
    within: str = "",
) -> list[TaskRow]:
    """Creates the tasks that were not created by the same requests before."""
    items = [_creation(request, origin) for request in requests]
    past = {
        number: violations
        for number, item in enumerate(items)
        if (violations := past_due_date(item.values["due_date"], within.format(number)))
    }
    done: dict[str, TaskRow] = {}
    if past or len(items) > 1:  # One alone is looked for when it turns out to be a repetition.
        done = repository.find_replays([item.request for item in items], origin)
    left = [n for n, item in enumerate(items) if not replayed(item.request, done)]
    # A due date may have passed since the same request succeeded.
    if refused := [violation for n in left for violation in past.get(n, ())]:
        raise InvalidRequestError(refused)
    check_answer(done.values(), more=sum(requests[n].ByteSize() for n in left))
    created = repository.create(
        [items[n] for n in left], origin, commit=not requests[0].validate_only
    )
    by_number = dict(zip(left, created, strict=True))
    replays = (replayed(item.request, done) for item in items)
    return [row or by_number[n] for n, row in enumerate(replays)]


def update(
    repository: TaskRepository,
    requests: Sequence[UpdateTaskRequest],
    fields: Sequence[frozenset[str]],
    origin: Origin,
    within: str = "",
) -> list[TaskRow]:
    """Lays the fields over the tasks as they are.

    When they are written meanwhile, it is made anew from what that write left; after some such
    losses, while nobody else may write them.
    """
    for attempt in range(_ATTEMPTS):
        if attempt < _FREE_ATTEMPTS:
            rows = _try_update(repository, requests, fields, origin, within)
        else:
            with repository.locking([request.task.id.lower() for request in requests]) as locked:
                rows = _try_update(locked, requests, fields, origin, within)
        if rows is not None:
            return rows
        add_span_event("another write came first")
    raise TransactionConflictError("others keep writing the tasks")


def _try_update(
    repository: TaskRepository,
    requests: Sequence[UpdateTaskRequest],
    fields: Sequence[frozenset[str]],
    origin: Origin,
    within: str,
) -> list[TaskRow] | None:
    """Returns None when another write came first."""
    records = [_record(request) for request in requests]
    rows = repository.find_replays(records, origin)
    left = [n for n, record in enumerate(records) if not replayed(record, rows)]
    found = repository.find([requests[n].task.id.lower() for n in left])
    changes = {n: _change(requests[n], records[n], fields[n], found) for n in left}
    _check_due_dates(changes, within)
    check_answer([*rows.values(), *(change.result for change in changes.values())])
    try:
        written = repository.update(
            list(changes.values()), origin, commit=not requests[0].validate_only
        )
    except VersionMismatchError:
        return None
    rows |= {row.id: row for row in written}
    return [
        replayed(record, rows) or rows[request.task.id.lower()]
        for request, record in zip(requests, records, strict=True)
    ]


def delete(
    repository: TaskRepository, requests: Sequence[DeleteTaskRequest], origin: Origin
) -> list[Task]:
    """Deletes the tasks; those that are not there, and need not be, stay as they are."""
    for _ in range(_ATTEMPTS):
        rows = repository.find([request.id.lower() for request in requests])
        check_answer(rows.values())
        there = {row.id for row in rows.values() if row.deleted_at is None}
        left = [it for it in requests if it.id.lower() in there or not it.allow_missing]
        targets = [Target(request.id.lower(), version_of(request.etag)) for request in left]
        try:
            rows |= {row.id: row for row in repository.delete(targets, origin)}
        except TaskNotFoundError as error:
            if error.task_id not in there:
                raise
        else:
            return [
                task_to_proto(rows[task_id]) if task_id in rows else Task(id=task_id)
                for task_id in (request.id.lower() for request in requests)
            ]
    raise TransactionConflictError("others keep writing the tasks")


def check_answer(rows: Collection[TaskRow], more: int = 0) -> None:
    """Refuses what could not be told, before it is written; `more` bytes come on top of the rows.

    Raises: AnswerTooLargeError.
    """
    if len(rows) * _LARGEST_TASK_BYTES + more <= _MAX_ANSWER_BYTES:
        return
    if sum(task_to_proto(row).ByteSize() for row in rows) + more > _MAX_ANSWER_BYTES:
        raise AnswerTooLargeError(len(rows))


@contextmanager
def naming_items(field: str, keys: Iterable[tuple[str, str]]) -> Iterator[None]:
    """What fails for an item's task or request, by their ids, is told of this item.

    Raises: BatchItemError.
    """
    try:
        yield
    except (TaskError, TransitionNotAllowedError, RequestIdReusedError) as error:
        request = getattr(error, "request_id", "")
        for number, (task_id, request_id) in enumerate(keys):
            is_it = request == request_id.lower() if request else _task_of(error) == task_id.lower()
            if is_it:
                raise BatchItemError(f"{field}[{number}]", error) from error
        raise


def _task_of(error: Exception) -> str:
    return str(getattr(error, "task_id", ""))


def _creation(request: CreateTaskRequest, origin: Origin) -> Creation:
    values = task_values(request.task)
    values["id"] = request.task_id.lower() or str(uuid_utils.uuid7())
    values["created_by"] = origin.principal
    return Creation(values, _record(request))


def _change(
    request: UpdateTaskRequest,
    record: RequestRecord | None,
    fields: frozenset[str],
    found: Mapping[str, TaskRow],
) -> Change:
    row = found.get(request.task.id.lower())
    if row is None:
        raise TaskNotFoundError(request.task.id.lower())
    values = merged_values(row, request.task, fields)
    check_change(row, values, request.task.etag)
    return Change(row, values, record)


def _check_due_dates(changes: Mapping[int, Change], within: str) -> None:
    """Raises: InvalidRequestError. A due date that has passed may stay as it is."""
    violations = [
        violation
        for number, change in changes.items()
        if change.values["due_date"] != change.row.due_date
        for violation in past_due_date(change.values["due_date"], within.format(number))
    ]
    if violations:
        raise InvalidRequestError(violations)


def _record(request: CreateTaskRequest | UpdateTaskRequest) -> RequestRecord | None:
    """What makes the write recognisable when it is repeated (AIP-155)."""
    if not request.request_id:
        return None
    same = copy.deepcopy(request)
    same.request_id = request.request_id.lower()
    if isinstance(same, CreateTaskRequest):
        same.task_id = same.task_id.lower()
    else:
        same.task.id = same.task.id.lower()
    content = same.DESCRIPTOR.name.encode() + same.SerializeToString(deterministic=True)
    return RequestRecord(same.request_id, hashlib.sha256(content).digest())
