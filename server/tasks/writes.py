"""Create, update and delete tasks; a single task is a batch of one.

`prefix` is the path of an item in the request, for violations: empty for a single task,
"requests[{}]." for a batch.
"""

import copy
import datetime as dt
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import uuid_utils

from server.errors import AnswerTooLargeError, BatchItemError, TransitionNotAllowedError, violation
from server.tasks.conversions import masked, merged_values, task_to_proto, task_values, version_of
from server.tasks.validation import reject
from server.telemetry.tracing import add_span_event
from storage import errors
from storage.repository import (
    Change,
    Creation,
    Origin,
    Patch,
    RequestRecord,
    Target,
    TaskRepository,
)
from storage.tables import TaskRow
from taskservice.v1 import task_pb2 as pb
from taskservice.v1.task_service_pb2 import CreateTaskRequest, DeleteTaskRequest, UpdateTaskRequest

_OPEN = {pb.TASK_STATUS_PENDING, pb.TASK_STATUS_IN_PROGRESS}
_ENDED = {pb.TASK_STATUS_COMPLETED, pb.TASK_STATUS_CANCELLED}
_TRANSITIONS: dict[int, set[pb.TaskStatus.ValueType]] = {
    pb.TASK_STATUS_PENDING: {pb.TASK_STATUS_IN_PROGRESS, *_ENDED},
    pb.TASK_STATUS_IN_PROGRESS: {pb.TASK_STATUS_PENDING, *_ENDED},
    pb.TASK_STATUS_COMPLETED: _OPEN,
    pb.TASK_STATUS_CANCELLED: _OPEN,
}

_FREE_ATTEMPTS = 3
_ATTEMPTS = 6

_LARGEST_TASK_BYTES = 16 * 1024
# A client takes 4 MiB by default; a write may add a little to what was there.
_MAX_ANSWER_BYTES = 4 * 1024 * 1024 - 256 * 1024


def create(
    repository: TaskRepository,
    requests: Sequence[CreateTaskRequest],
    origin: Origin,
    prefix: str = "",
) -> list[TaskRow]:
    """Create tasks, except for those that the same requests created before."""
    items = [_creation(request, origin) for request in requests]
    past = _past_due_dates(repository, {n: item.values["due_date"] for n, item in enumerate(items)})
    done: list[TaskRow | None] = [None] * len(items)
    if past or len(items) > 1:  # A single request is looked up only if it conflicts.
        done = repository.find_replays([item.request for item in items], origin)
    left = [n for n, row in enumerate(done) if row is None]
    # A due date may have passed since the same request succeeded.
    _reject_past_due_dates(past.intersection(left), prefix)
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
    prefix: str = "",
) -> list[TaskRow]:
    """Update the fields of tasks: a single one in one statement, where that decides it.

    If another write comes first, repeat the update on its result; after some attempts, with the
    rows locked.
    """
    if len(requests) == 1 and (row := _patch(repository, requests[0], fields[0], origin)):
        return [row]
    for attempt in range(_ATTEMPTS):
        if attempt < _FREE_ATTEMPTS:
            rows = _try_update(repository, requests, fields, origin, prefix)
        else:
            with repository.locking([request.task.id.lower() for request in requests]) as locked:
                rows = _try_update(locked, requests, fields, origin, prefix)
        if rows is not None:
            return rows
        add_span_event("another write came first")
    raise errors.TransactionConflictError("concurrent writes")


def _patch(
    repository: TaskRepository,
    request: UpdateTaskRequest,
    fields: frozenset[str],
    origin: Origin,
) -> TaskRow | None:
    """Update a task in one statement; return None if its state must be read to decide."""
    given = task_values(masked(request.task, fields))
    values = {name: value for name, value in given.items() if name in fields}
    status = values.get("status")
    before = [old for old, new in _TRANSITIONS.items() if status in {None, old, *new}]
    version = version_of(request.task.etag)
    item = Patch(request.task.id.lower(), values, version, before, _record(request))
    return repository.patch(item, origin, commit=not request.validate_only)


def _try_update(
    repository: TaskRepository,
    requests: Sequence[UpdateTaskRequest],
    fields: Sequence[frozenset[str]],
    origin: Origin,
    prefix: str,
) -> list[TaskRow] | None:
    """Update the tasks; return None if another write came first."""
    records = [_record(request) for request in requests]
    done = repository.find_replays(records, origin)
    left = [n for n, row in enumerate(done) if row is None]
    found = repository.find([requests[n].task.id.lower() for n in left])
    changes = {n: _change(requests[n], records[n], fields[n], found) for n in left}
    # A due date that has passed may remain.
    new_dates = {n: item.values["due_date"] for n, item in changes.items() if item.sets_due_date}
    _reject_past_due_dates(_past_due_dates(repository, new_dates), prefix)
    check_answer([*filter(None, done), *(change.result for change in changes.values())])
    try:
        written = iter(
            repository.update(list(changes.values()), origin, commit=not requests[0].validate_only)
        )
    except errors.VersionMismatchError:
        return None
    return [row or next(written) for row in done]


def delete(
    repository: TaskRepository, requests: Sequence[DeleteTaskRequest], origin: Origin
) -> list[TaskRow | None]:
    """Delete tasks. With allow_missing, return a deleted task unchanged, and None for no task."""
    for _ in range(_ATTEMPTS):
        rows = repository.find([request.id.lower() for request in requests])
        check_answer(rows.values())
        present = {row.id for row in rows.values() if row.deleted_at is None}
        targets = [
            target_of(request.id, request.etag)
            for request in requests
            if request.id.lower() in present or not request.allow_missing
        ]
        try:
            rows |= {row.id: row for row in repository.delete(targets, origin)}
        except errors.TaskNotFoundError as error:
            if error.task_id not in present:
                raise
        else:
            return [rows.get(request.id.lower()) for request in requests]
    raise errors.TransactionConflictError("concurrent writes")


def target_of(task_id: str, etag: str) -> Target:
    return Target(task_id.lower(), version_of(etag))


def check_answer(rows: Collection[TaskRow], more: int = 0) -> None:
    """Raises: AnswerTooLargeError, if the rows and `more` bytes do not fit into a response."""
    if len(rows) * _LARGEST_TASK_BYTES + more <= _MAX_ANSWER_BYTES:
        return
    if sum(task_to_proto(row).ByteSize() for row in rows) + more > _MAX_ANSWER_BYTES:
        raise AnswerTooLargeError(len(rows))


@contextmanager
def naming_items(keys: Iterable[tuple[str, str]]) -> Iterator[None]:
    """Raise BatchItemError for the item with the error's task id or request id."""
    try:
        yield
    except (errors.TaskError, TransitionNotAllowedError, errors.RequestIdReusedError) as error:
        by_request = getattr(error, "request_id", "")
        failed = by_request or getattr(error, "task_id", "")
        for number, (task_id, request_id) in enumerate(keys):
            if (request_id if by_request else task_id).lower() == failed:
                raise BatchItemError(f"requests[{number}]", error) from error
        raise


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
        raise errors.TaskNotFoundError(request.task.id.lower())
    if row.deleted_at is not None:
        raise errors.TaskDeletedError(row.id)
    if version_of(request.task.etag) not in {None, row.version}:
        raise errors.VersionMismatchError(row.id)
    values = merged_values(row, request.task, fields)
    status = values["status"]
    if status != row.status and status not in _TRANSITIONS[row.status]:
        raise TransitionNotAllowedError(row.id, row.status, status)
    return Change(row, values, record)


def _past_due_dates(
    repository: TaskRepository, due_dates: Mapping[int, dt.datetime | None]
) -> set[int]:
    """Return the items whose due date is not in the future, by the database's clock."""
    if not any(due_dates.values()):
        return set()
    now = repository.now()
    return {number for number, due_date in due_dates.items() if due_date and due_date <= now}


def _reject_past_due_dates(items: Iterable[int], prefix: str) -> None:
    fields = [f"{prefix.format(number)}task.due_date" for number in sorted(items)]
    reject([violation(field, "must be in the future", "TIMESTAMP_IN_PAST") for field in fields])


def _record(request: CreateTaskRequest | UpdateTaskRequest) -> RequestRecord | None:
    """Return the record by which a repetition of the request is recognised (AIP-155)."""
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
