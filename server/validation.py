"""What a request must be before it is worked on: the contract's rules and what they cannot say.

Every check adds to one list, so that the caller is told everything that is wrong at once.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from itertools import islice
from typing import Any, TypeVar

import protovalidate
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from server.conversions import version_of
from server.errors import FieldViolation, InvalidRequestError, TransitionNotAllowedError, violation
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
from taskservice.v1.task_service_pb2 import CreateTaskRequest, UpdateTaskRequest

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

_MALFORMED_DUE_DATE = violation("task.due_date", "must be a valid timestamp", "TIMESTAMP_MALFORMED")
_PAST_DUE_DATE = violation("task.due_date", "must be in the future", "TIMESTAMP_IN_PAST")

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

    def __init__(self, request: Message) -> None:
        self._found = _violations(request)

    def add(self, field: str, description: str, reason: str) -> None:
        self._found.append(violation(field, description, reason))

    def parse(self, field: str, parser: Callable[[str], T], text: str, default: T) -> T:
        """The parsed text; the default after a mistake, which is noted.

        A text that breaks a rule of the contract is not parsed: it may be of any length.
        """
        if any(found.field == field for found in self._found):
            return default
        try:
            return parser(text)
        except FieldError as error:
            self.add(field, error.description, error.reason)
            return default

    def extend(self, violations: list[FieldViolation]) -> None:
        self._found.extend(violations)

    def raise_any(self) -> None:
        """Raises: InvalidRequestError, if anything is wrong."""
        if self._found:
            raise InvalidRequestError(self._found)


def check(request: Message) -> None:
    """Holds a request to the contract's rules. Raises: InvalidRequestError."""
    Violations(request).raise_any()


def check_create(request: CreateTaskRequest) -> None:
    """Raises: InvalidRequestError."""
    violations = Violations(request)
    if not _well_formed(request.task.due_date):
        violations.extend([_MALFORMED_DUE_DATE])
    violations.raise_any()


def check_update(request: UpdateTaskRequest) -> frozenset[str]:
    """Returns the fields to change. Raises: InvalidRequestError."""
    violations = Violations(request)
    if not UUID.fullmatch(request.task.id):
        violations.add("task.id", "must be a valid UUID", "STRING_UUID")
    fields = _masked(request, violations)
    violations.extend(
        [
            found
            for found in _violations(request.task, prefix="task.")
            if re.split(r"[.\[]", found.field)[1] in fields
        ]
    )
    if "due_date" in fields and not _well_formed(request.task.due_date):
        violations.extend([_MALFORMED_DUE_DATE])
    violations.raise_any()
    return fields


def _masked(request: UpdateTaskRequest, violations: Violations) -> frozenset[str]:
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
    """Holds the new values of a task to what is stored.

    Raises: TaskDeletedError, VersionMismatchError, TransitionNotAllowedError,
        InvalidRequestError for a due date that was changed to one in the past.
    """
    if row.deleted_at is not None:
        raise TaskDeletedError(row.id)
    if version_of(etag) not in {None, row.version}:
        raise VersionMismatchError(row.id)
    status = values["status"]
    if status != row.status and status not in TRANSITIONS[row.status]:
        raise TransitionNotAllowedError(row.id, row.status, status)
    if values["due_date"] != row.due_date:
        check_due_date(values["due_date"])


def check_due_date(due_date: dt.datetime | None) -> None:
    """Raises: InvalidRequestError, for one that is not in the future."""
    if due_date is not None and due_date <= dt.datetime.now(dt.UTC):
        raise InvalidRequestError([_PAST_DUE_DATE])


def _violations(message: Message, prefix: str = "") -> list[FieldViolation]:
    return [
        violation(
            prefix + _path(found),
            found.proto.message,
            re.sub(r"[^A-Z0-9]+", "_", found.proto.rule_id.upper()),
        )
        for found in islice(protovalidate.collect_violations(message), _MOST_VIOLATIONS)
    ]


def _path(found: protovalidate.Violation) -> str:
    """The field as google.rpc writes it: `task.tags[2]`."""
    path = ""
    for element in found.proto.field.elements if found.proto.field else ():
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript is not None:
            path += f"[{element.subscript.value}]"
    return path


def _well_formed(timestamp: Timestamp) -> bool:
    """The one rule of Timestamp that its own contract rules do not see."""
    return 0 <= timestamp.nanos < 10**9
