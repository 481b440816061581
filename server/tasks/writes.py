"""What a write does, whether it is of one task or of a batch of them.

`within` is where an item's fields stand in the request: nowhere in particular for a single task,
"requests[{}]." for a batch.
"""

from __future__ import annotations

import copy
import datetime as dt
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import uuid_utils

from server.errors import (
    AnswerTooLargeError,
    BatchItemError,
    InvalidRequestError,
    TransitionNotAllowedError,
)
from server.tasks.conversions import merged_values, task_to_proto, task_values, version_of
from server.tasks.validation import check_change, past_due_date
from server.telemetry.tracing import add_span_event
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
)
from storage.tables import TaskRow
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
    past = _past(repository, {n: item.values["due_date"] for n, item in enumerate(items)})
    done: list[TaskRow | None] = [None] * len(items)
    if past or len(items) > 1:  # One alone is looked for when it turns out to be a repetition.
        done = repository.find_replays([item.request for item in items], origin)
    left = [n for n, row in enumerate(done) if row is None]
    # A due date may have passed since the same request succeeded.
    _refuse_past(past.intersection(left), within)
    check_answer([*filter(None, done)], more=sum(requests[n].ByteSize() for n in left))
    created = iter(
        repository.create([items[n] for n in left], origin, commit=not requests[0].validate_only)
    )
    return [row or next(created) for row in done]


def update(
    repository: TaskRepository,
    requests: Sequence[UpdateTaskRequest],
    fields: Sequence[frozenset[str]],
    origin: Origin,
    within: str = "",
) -> list[TaskRow]:
    """Lays the fields over the tasks as they are.

    When they are written meanwhile, it is made anew from what that write left; after some such
    losses, while other writers are locked out.
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
    done = repository.find_replays(records, origin)
    left = [n for n, row in enumerate(done) if row is None]
    found = repository.find([requests[n].task.id.lower() for n in left])
    changes = {n: _change(requests[n], records[n], fields[n], found) for n in left}
    # A due date that has passed may stay as it is.
    new_dates = {n: it.values["due_date"] for n, it in changes.items() if it.sets_due_date}
    _refuse_past(_past(repository, new_dates), within)
    check_answer([*filter(None, done), *(change.result for change in changes.values())])
    try:
        written = iter(
            repository.update(list(changes.values()), origin, commit=not requests[0].validate_only)
        )
    except VersionMismatchError:
        return None
    return [row or next(written) for row in done]


def delete(
    repository: TaskRepository, requests: Sequence[DeleteTaskRequest], origin: Origin
) -> list[TaskRow | None]:
    """Deletes the tasks. With allow_missing, returns a task that is deleted already as it is, and
    None for an id without a task."""
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
            return [rows.get(request.id.lower()) for request in requests]
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


def _past(repository: TaskRepository, due_dates: Mapping[int, dt.datetime | None]) -> set[int]:
    """Returns the items whose due date is not in the future, by the clock that stamps the rows."""
    given = {n: due_date for n, due_date in due_dates.items() if due_date is not None}
    if not given:
        return set()
    now = repository.now()
    return {n for n, due_date in given.items() if due_date <= now}


def _refuse_past(items: Iterable[int], within: str) -> None:
    """Raises: InvalidRequestError, if there are any such items."""
    if violations := [past_due_date(within.format(n)) for n in sorted(items)]:
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
