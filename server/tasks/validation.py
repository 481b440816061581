"""What a request must be before it is worked on: the contract's rules and what they cannot say.

Every check adds to one list, so that the caller is told everything that is wrong at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, TypeVar

import protovalidate
from google.protobuf.message import Message

from server.errors import FieldViolation, InvalidRequestError, TransitionNotAllowedError, violation
from server.limits import LARGEST_VALID_BYTES, MAX_BATCH_ITEMS
from server.tasks.conversions import masked, version_of
from storage.errors import TaskDeletedError, VersionMismatchError
from storage.tables import TaskRow
from taskservice.v1.task_pb2 import (
    TASK_STATUS_CANCELLED,
    TASK_STATUS_COMPLETED,
    TASK_STATUS_IN_PROGRESS,
    TASK_STATUS_PENDING,
    Task,
    TaskStatus,
)
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    BatchDeleteTasksRequest,
    BatchGetTasksRequest,
    BatchUpdateTasksRequest,
    CreateTaskRequest,
    UpdateTaskRequest,
)

T = TypeVar("T")

WRITABLE = frozenset(
    {"title", "description", "status", "priority", "assigned_to", "due_date", "tags"}
)
_OUTPUT_ONLY = frozenset(Task.DESCRIPTOR.fields_by_name) - WRITABLE

_OPEN: set[TaskStatus.ValueType] = {TASK_STATUS_PENDING, TASK_STATUS_IN_PROGRESS}
_ENDED: set[TaskStatus.ValueType] = {TASK_STATUS_COMPLETED, TASK_STATUS_CANCELLED}
TRANSITIONS: dict[int, set[TaskStatus.ValueType]] = {
    TASK_STATUS_PENDING: {TASK_STATUS_IN_PROGRESS, *_ENDED},
    TASK_STATUS_IN_PROGRESS: {TASK_STATUS_PENDING, *_ENDED},
    TASK_STATUS_COMPLETED: _OPEN,
    TASK_STATUS_CANCELLED: _OPEN,
}

# More than a caller wants to read, and than is worth the time to write down.
_MOST_VIOLATIONS = 100

UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class FieldError(Exception):
    """What is wrong with the text of one field, and a reason for programs."""

    def __init__(self, description: str, reason: str) -> None:
        super().__init__(description)
        self.description = description
        self.reason = reason


class Violations:
    """Collects what is wrong with a request, beginning with the contract's rules."""

    def __init__(self, request: Message | None = None, *, fail_fast: bool | None = None) -> None:
        self.found = [] if request is None else _violations(request, fail_fast=fail_fast)

    def add(self, field: str, description: str, reason: str) -> None:
        self.found.append(violation(field, description, reason))

    def parse(self, field: str, parser: Callable[[str], T], text: str, default: T) -> T:
        """The parsed text; the default when there is none, and after a mistake, which is noted.

        A text that breaks a rule of the contract is not parsed: it may be of any length.
        """
        if not text or any(found.field == field for found in self.found):
            return default
        try:
            return parser(text)
        except FieldError as error:
            self.add(field, error.description, error.reason)
            return default

    def extend(self, violations: Iterable[FieldViolation]) -> None:
        self.found.extend(violations)

    def within(self, item: str) -> list[FieldViolation]:
        """What was found, as the fields of an item of a batch."""
        for found in self.found:
            found.field = f"{item}.{found.field}"
        return self.found

    def raise_any(self) -> None:
        """Raises: InvalidRequestError, if anything is wrong."""
        if self.found:
            raise InvalidRequestError(self.found)


def check(request: Message) -> None:
    """Holds a request to the contract's rules. Raises: InvalidRequestError."""
    Violations(request).raise_any()


def check_create(request: CreateTaskRequest) -> None:
    """Raises: InvalidRequestError."""
    violations = Violations(request)
    _check_creation(request, violations)
    violations.raise_any()


def check_update(request: UpdateTaskRequest) -> frozenset[str]:
    """Returns the fields to change. Raises: InvalidRequestError."""
    violations = Violations(request)
    fields = _check_masked(request, violations)
    violations.raise_any()
    return fields


def check_batch_get(request: BatchGetTasksRequest) -> None:
    """Raises: InvalidRequestError."""
    _check_count("ids", request.ids)
    violations = Violations(request, fail_fast=False)
    violations.extend(_repeated(request.ids, "ids[{}]"))
    violations.raise_any()


def check_batch_create(request: BatchCreateTasksRequest) -> None:
    """Raises: InvalidRequestError."""
    _check_items(request, _check_creation, id_field="task_id")


def check_batch_update(request: BatchUpdateTasksRequest) -> list[frozenset[str]]:
    """Returns the fields to change in each task. Raises: InvalidRequestError."""
    return _check_items(request, _check_masked, id_field="task.id")


def check_batch_delete(request: BatchDeleteTasksRequest) -> None:
    """Raises: InvalidRequestError."""
    _check_items(request, lambda *_: None, id_field="id")


def _check_items(
    request: Any, check_item: Callable[[Any, Violations], T], *, id_field: str
) -> list[T]:
    """Holds each item to the rules of its own kind, and all of them to those of a batch."""
    items = request.requests
    _check_count("requests", items)
    # All at once is faster; one by one they can be told of, up to so many.
    keeps_rules = not protovalidate.collect_violations(request, fail_fast=True)
    all_ = Violations()
    results = []
    for number, item in enumerate(items):
        violations = Violations(None if keeps_rules else item)
        results.append(check_item(item, violations))
        if violations.found:
            all_.extend(violations.within(f"requests[{number}]"))
        if len(all_.found) >= _MOST_VIOLATIONS:
            break
    all_.extend(_repeated(map(attrgetter(id_field), items), f"requests[{{}}].{id_field}"))
    if hasattr(items[0], "request_id"):
        request_ids = (item.request_id for item in items)
        all_.extend(_repeated(request_ids, "requests[{}].request_id"))
        all_.extend(_differing(items))
    all_.raise_any()
    return results


def _check_count(field: str, items: Sequence[object]) -> None:
    """Before anything else is done with them: there may be a million."""
    if not 1 <= len(items) <= MAX_BATCH_ITEMS:
        rule = "REPEATED_MAX_ITEMS" if items else "REPEATED_MIN_ITEMS"
        description = f"must have 1 to {MAX_BATCH_ITEMS} items, and has {len(items)}"
        raise InvalidRequestError([violation(field, description, rule)])


def _repeated(ids: Iterable[str], field: str) -> Iterator[FieldViolation]:
    """What stands twice; nothing that is not given does."""
    first: dict[str, int] = {}
    for number, id_ in enumerate(ids):
        if id_ and first.setdefault(id_.lower(), number) != number:
            description = f"stands in item {first[id_.lower()]} already"
            yield violation(field.format(number), description, "DUPLICATE")


def _differing(items: Sequence[Any]) -> Iterator[FieldViolation]:
    first = items[0].validate_only
    for number, item in enumerate(items):
        if item.validate_only != first:
            field = f"requests[{number}].validate_only"
            yield violation(field, "must be the same in all items", "VALIDATE_ONLY_DIFFERS")


def _check_creation(request: CreateTaskRequest, violations: Violations) -> None:
    """What the contract's rules do not see."""
    violations.extend(_malformed_due_date(request.task))


def _check_masked(request: UpdateTaskRequest, violations: Violations) -> frozenset[str]:
    """Returns the fields that the update means; only these are held to the rules of Task."""
    if not UUID.fullmatch(request.task.id):
        violations.add("task.id", "must be a valid UUID", "STRING_UUID")
    fields = _meant_fields(request, violations)
    meant = masked(request.task, fields)
    if "title" not in fields:
        meant.title = "as it is"
    violations.extend(_violations(meant, prefix="task."))
    violations.extend(_malformed_due_date(meant))
    return fields


def _meant_fields(request: UpdateTaskRequest, violations: Violations) -> frozenset[str]:
    """The writable fields that the update means (AIP-134, 161)."""
    if not request.update_mask.paths:
        return WRITABLE & {field.name for field, _ in request.task.ListFields()}
    paths = set(request.update_mask.paths)
    if paths == {"*"}:
        return WRITABLE
    for path in islice(sorted(paths - WRITABLE - _OUTPUT_ONLY), _MOST_VIOLATIONS):
        violations.add("update_mask", f"there is no field {path[:100]!a}", "UNKNOWN_FIELD")
    return WRITABLE & paths


def check_change(row: TaskRow, values: dict[str, Any], etag: str) -> None:
    """Holds the new values of a task to what is stored, but for its due date.

    Raises: TaskDeletedError, VersionMismatchError, TransitionNotAllowedError.
    """
    if row.deleted_at is not None:
        raise TaskDeletedError(row.id)
    if version_of(etag) not in {None, row.version}:
        raise VersionMismatchError(row.id)
    status = values["status"]
    if status != row.status and status not in TRANSITIONS[row.status]:
        raise TransitionNotAllowedError(row.id, row.status, status)


def past_due_date(within: str) -> FieldViolation:
    """What is wrong with a due date that is set and not in the future."""
    return violation(f"{within}task.due_date", "must be in the future", "TIMESTAMP_IN_PAST")


def _violations(
    message: Message, prefix: str = "", *, fail_fast: bool | None = None
) -> list[FieldViolation]:
    if fail_fast is None:
        fail_fast = message.ByteSize() > LARGEST_VALID_BYTES
    return [
        violation(
            prefix + _path(found),
            found.proto.message,
            re.sub(r"[^A-Z0-9]+", "_", found.proto.rule_id.upper()),
        )
        for found in islice(
            protovalidate.collect_violations(message, fail_fast=fail_fast), _MOST_VIOLATIONS
        )
    ]


def _path(found: protovalidate.Violation) -> str:
    """The field as google.rpc writes it: `task.tags[2]`."""
    path = ""
    for element in found.proto.field.elements if found.proto.field else ():
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript is not None:
            path += f"[{element.subscript.value}]"
    return path


def _malformed_due_date(task: Task) -> list[FieldViolation]:
    """The one rule of Timestamp that its own contract rules do not see."""
    if 0 <= task.due_date.nanos < 10**9:
        return []
    return [violation("task.due_date", "must be a valid timestamp", "TIMESTAMP_MALFORMED")]
