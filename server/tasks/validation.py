"""Validate requests: the contract's rules, and those that buf.validate cannot express.

All checks add to one list, so that the client receives all violations at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, TypeVar

import protovalidate
from google.protobuf.message import Message

from server.errors import FieldViolation, InvalidRequestError, violation
from server.limits import LARGEST_VALID_BYTES, MAX_BATCH_ITEMS
from server.tasks.conversions import WRITABLE, masked
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    BatchDeleteTasksRequest,
    BatchGetTasksRequest,
    BatchUpdateTasksRequest,
    CreateTaskRequest,
    UpdateTaskRequest,
)

T = TypeVar("T")

_OUTPUT_ONLY = frozenset(Task.DESCRIPTOR.fields_by_name) - WRITABLE

# Bounds the work for a request with a million of them.
_MAX_VIOLATIONS = 100

UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class FieldError(Exception):
    """A field's text cannot be parsed: a description for people, a reason for programs."""

    def __init__(self, description: str, reason: str) -> None:
        super().__init__(description)
        self.description = description
        self.reason = reason


class Violations:
    """Collects the violations of a request, starting with those of the contract's rules."""

    def __init__(self, request: Message | None = None, *, fail_fast: bool | None = None) -> None:
        self.found = [] if request is None else _violations(request, fail_fast=fail_fast)

    def add(self, field: str, description: str, reason: str) -> None:
        self.found.append(violation(field, description, reason))

    def parse(self, field: str, parser: Callable[[str], T], text: str, default: T) -> T:
        """Parse a field; return the default if it is empty or, after adding a violation, malformed.

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

    def of_item(self, item: str) -> list[FieldViolation]:
        """Return the violations with their fields prefixed by the item of a batch."""
        for found in self.found:
            found.field = f"{item}.{found.field}"
        return self.found

    def raise_any(self) -> None:
        """Raise InvalidRequestError if there are violations."""
        if self.found:
            raise InvalidRequestError(self.found)


def check(request: Message) -> None:
    """Check a request against the contract's rules. Raises: InvalidRequestError."""
    Violations(request).raise_any()


def check_create(request: CreateTaskRequest) -> None:
    """Check a creation. Raises: InvalidRequestError."""
    violations = Violations(request)
    _check_creation(request, violations)
    violations.raise_any()


def check_update(request: UpdateTaskRequest) -> frozenset[str]:
    """Check an update and return the fields to change. Raises: InvalidRequestError."""
    violations = Violations(request)
    fields = _check_masked(request, violations)
    violations.raise_any()
    return fields


def check_batch_get(request: BatchGetTasksRequest) -> None:
    """Check a batch of ids. Raises: InvalidRequestError."""
    _check_count("ids", request.ids)
    violations = Violations(request, fail_fast=False)
    violations.extend(_duplicates(request.ids, "ids[{}]"))
    violations.raise_any()


def check_batch_create(request: BatchCreateTasksRequest) -> None:
    """Check a batch of creations. Raises: InvalidRequestError."""
    _check_items(request, _check_creation, id_field="task_id")


def check_batch_update(request: BatchUpdateTasksRequest) -> list[frozenset[str]]:
    """Check a batch of updates and return the fields to change in each task.

    Raises: InvalidRequestError.
    """
    return _check_items(request, _check_masked, id_field="task.id")


def check_batch_delete(request: BatchDeleteTasksRequest) -> None:
    """Check a batch of deletions. Raises: InvalidRequestError."""
    _check_items(request, lambda *_: None, id_field="id")


def _check_items(
    request: Any, check_item: Callable[[Any, Violations], T], *, id_field: str
) -> list[T]:
    """Check each item by the rules of its type, and all items by those of a batch."""
    items = request.requests
    _check_count("requests", items)
    # Items are validated one by one only if the batch breaks a rule: that is slower.
    keeps_rules = not protovalidate.collect_violations(request, fail_fast=True)
    all_ = Violations()
    results = []
    for number, item in enumerate(items):
        violations = Violations(None if keeps_rules else item)
        results.append(check_item(item, violations))
        if violations.found:
            all_.extend(violations.of_item(f"requests[{number}]"))
        if len(all_.found) >= _MAX_VIOLATIONS:
            break
    all_.extend(_duplicates(map(attrgetter(id_field), items), f"requests[{{}}].{id_field}"))
    if hasattr(items[0], "request_id"):
        request_ids = (item.request_id for item in items)
        all_.extend(_duplicates(request_ids, "requests[{}].request_id"))
        all_.extend(_differing(items))
    all_.raise_any()
    return results


def _check_count(field: str, items: Sequence[object]) -> None:
    """Check the number of items before anything else: there may be a million."""
    if not 1 <= len(items) <= MAX_BATCH_ITEMS:
        rule = "REPEATED_MAX_ITEMS" if items else "REPEATED_MIN_ITEMS"
        description = f"must have 1 to {MAX_BATCH_ITEMS} items, and has {len(items)}"
        raise InvalidRequestError([violation(field, description, rule)])


def _duplicates(ids: Iterable[str], field: str) -> Iterator[FieldViolation]:
    """Find ids that occur twice; empty ids do not count."""
    first: dict[str, int] = {}
    for number, id_ in enumerate(ids):
        if id_ and first.setdefault(id_.lower(), number) != number:
            description = f"is the same as in item {first[id_.lower()]}"
            yield violation(field.format(number), description, "DUPLICATE")


def _differing(items: Sequence[Any]) -> Iterator[FieldViolation]:
    first = items[0].validate_only
    for number, item in enumerate(items):
        if item.validate_only != first:
            field = f"requests[{number}].validate_only"
            yield violation(field, "must be the same in all items", "VALIDATE_ONLY_DIFFERS")


def _check_creation(request: CreateTaskRequest, violations: Violations) -> None:
    """Check what the contract's rules cannot express."""
    violations.extend(_malformed_due_date(request.task))


def _check_masked(request: UpdateTaskRequest, violations: Violations) -> frozenset[str]:
    """Check an update and return the fields to change; only these must follow Task's rules."""
    if not UUID.fullmatch(request.task.id):
        violations.add("task.id", "must be a valid UUID", "STRING_UUID")
    fields = _masked_fields(request, violations)
    changed = masked(request.task, fields)
    if "title" not in fields:
        changed.title = "unchanged"
    violations.extend(_violations(changed, prefix="task."))
    violations.extend(_malformed_due_date(changed))
    return fields


def _masked_fields(request: UpdateTaskRequest, violations: Violations) -> frozenset[str]:
    """Resolve the update mask to writable fields (AIP-134, AIP-161)."""
    if not request.update_mask.paths:
        return WRITABLE & {field.name for field, _ in request.task.ListFields()}
    paths = set(request.update_mask.paths)
    if paths == {"*"}:
        return WRITABLE
    for path in islice(sorted(paths - WRITABLE - _OUTPUT_ONLY), _MAX_VIOLATIONS):
        violations.add("update_mask", f"there is no field {path[:100]!a}", "UNKNOWN_FIELD")
    return WRITABLE & paths


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
            protovalidate.collect_violations(message, fail_fast=fail_fast), _MAX_VIOLATIONS
        )
    ]


def _path(found: protovalidate.Violation) -> str:
    """Return the path of the field as in google.rpc.BadRequest: `task.tags[2]`."""
    path = ""
    for element in found.proto.field.elements if found.proto.field else ():
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript is not None:
            path += f"[{element.subscript.value}]"
    return path


def _malformed_due_date(task: Task) -> list[FieldViolation]:
    """Check the nanoseconds of the due date, for which buf.validate has no rule."""
    if 0 <= task.due_date.nanos < 10**9:
        return []
    return [violation("task.due_date", "must be a valid timestamp", "TIMESTAMP_MALFORMED")]
