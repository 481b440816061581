"""Validate requests: the contract's rules, and those that buf.validate cannot express.

Each check raises one InvalidRequestError, so that the client receives all violations at once.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from operator import attrgetter
from typing import TypeVar

import protovalidate
from google.protobuf.message import Message

from server.calls.wire import LARGEST_VALID_BYTES, MAX_BATCH_ITEMS
from server.errors import FieldViolation, InvalidRequestError, violation
from server.tasks.conversions import WRITABLE, masked
from taskservice.v1 import task_service_pb2 as pb
from taskservice.v1.task_pb2 import Task

T = TypeVar("T")
Item = TypeVar("Item", bound=Message)

_MAX_VIOLATIONS = 100  # Bounds the work for a request with a million violations.

UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class FieldError(Exception):
    """A field's text cannot be parsed: a description for people, a reason for programs."""

    def __init__(self, description: str, reason: str) -> None:
        super().__init__(description)
        self.reason = reason


def parse_field(
    found: list[FieldViolation], request: Message, field: str, parser: Callable[[str], T]
) -> T | None:
    """Parse a field; return None if it is empty or, after adding a violation, malformed.

    A text that breaks a rule of the contract is not parsed: it may be of any length.
    """
    text = getattr(request, field)
    if not text or any(violation_.field == field for violation_ in found):
        return None
    try:
        return parser(text)
    except FieldError as error:
        found.append(violation(field, str(error), error.reason))
        return None


def parsed(request: Message, field: str, parser: Callable[[str], T]) -> T | None:
    """Check a request and parse its one field that needs it. Raises: InvalidRequestError."""
    found = contract_violations(request)
    result = parse_field(found, request, field, parser)
    reject(found)
    return result


def reject(found: Sequence[FieldViolation]) -> None:
    """Raises: InvalidRequestError, if there are violations."""
    if found:
        raise InvalidRequestError(found)


def check(request: Message) -> None:
    """Check a request that only the contract has rules for."""
    reject(contract_violations(request))


def check_create(request: pb.CreateTaskRequest) -> None:
    found = contract_violations(request)
    _check_due_date(request.task, found)
    reject(found)


def check_update(request: pb.UpdateTaskRequest) -> frozenset[str]:
    """Check an update and return the fields to change."""
    found = contract_violations(request)
    fields = _check_masked(request, found)
    reject(found)
    return fields


def check_batch_get(request: pb.BatchGetTasksRequest) -> None:
    _check_count("ids", request.ids)
    found = contract_violations(request, fail_fast=False)
    reject([*found, *_duplicates(request.ids, "ids[{}]")])


def check_batch_create(request: pb.BatchCreateTasksRequest) -> None:
    _check_items(
        request,
        request.requests,
        lambda item, found: _check_due_date(item.task, found),
        id_field="task_id",
    )


def check_batch_update(request: pb.BatchUpdateTasksRequest) -> list[frozenset[str]]:
    """Check a batch of updates and return the fields to change in each task."""
    return _check_items(request, request.requests, _check_masked, id_field="task.id")


def check_batch_delete(request: pb.BatchDeleteTasksRequest) -> None:
    _check_items(request, request.requests, lambda *_: None, id_field="id")


def _check_items(
    request: Message,
    items: Sequence[Item],
    check_item: Callable[[Item, list[FieldViolation]], T],
    *,
    id_field: str,
) -> list[T]:
    """Check each item by the rules of its type, and all items by those of a batch."""
    _check_count("requests", items)
    # Items are validated one by one only if the batch breaks a rule: that is slower.
    keeps_rules = not protovalidate.collect_violations(request, fail_fast=True)
    found: list[FieldViolation] = []
    results = []
    for number, item in enumerate(items):
        of_item = [] if keeps_rules else contract_violations(item)
        results.append(check_item(item, of_item))
        for violation_ in of_item:
            violation_.field = f"requests[{number}].{violation_.field}"
        found += of_item
        if len(found) >= _MAX_VIOLATIONS:
            break
    found += _duplicates(map(attrgetter(id_field), items), f"requests[{{}}].{id_field}")
    if hasattr(items[0], "request_id"):
        found += _duplicates(map(attrgetter("request_id"), items), "requests[{}].request_id")
        found += _differing(list(map(attrgetter("validate_only"), items)))
    reject(found)
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


def _differing(validate_only: Sequence[bool]) -> Iterator[FieldViolation]:
    for number, value in enumerate(validate_only):
        if value != validate_only[0]:
            field = f"requests[{number}].validate_only"
            yield violation(field, "must be the same in all items", "VALIDATE_ONLY_DIFFERS")


def _check_masked(request: pb.UpdateTaskRequest, found: list[FieldViolation]) -> frozenset[str]:
    """Check an update and return the fields to change; only these must follow Task's rules."""
    if not UUID.fullmatch(request.task.id):
        found.append(violation("task.id", "must be a valid UUID", "STRING_UUID"))
    fields = _masked_fields(request, found)
    changed = masked(request.task, fields)
    if "title" not in fields:
        changed.title = "unchanged"
    found += contract_violations(changed, prefix="task.")
    _check_due_date(changed, found)
    return fields


def _masked_fields(request: pb.UpdateTaskRequest, found: list[FieldViolation]) -> frozenset[str]:
    """Resolve the update mask to writable fields (AIP-134, AIP-161)."""
    if not request.update_mask.paths:
        return WRITABLE & {field.name for field, _ in request.task.ListFields()}
    paths = set(request.update_mask.paths)
    if paths == {"*"}:
        return WRITABLE
    for path in islice(sorted(paths.difference(Task.DESCRIPTOR.fields_by_name)), _MAX_VIOLATIONS):
        description = f"there is no field {path[:100]!a}"
        found.append(violation("update_mask", description, "UNKNOWN_FIELD"))
    return WRITABLE & paths


def contract_violations(
    message: Message, prefix: str = "", *, fail_fast: bool | None = None
) -> list[FieldViolation]:
    """Check a message against the contract's rules; of a large one, find only the first."""
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


def _check_due_date(task: Task, found: list[FieldViolation]) -> None:
    """Check the nanoseconds of the due date, for which buf.validate has no rule."""
    if not 0 <= task.due_date.nanos < 10**9:
        description = "must be a valid timestamp"
        found.append(violation("task.due_date", description, "TIMESTAMP_MALFORMED"))
