"""Build requests: fields by name, update masks, request ids, batches within the limits."""

from __future__ import annotations

import datetime as dt
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias, TypedDict, TypeVar

from google.protobuf.message import Message

from taskservice.v1.task_pb2 import Task, TaskPriority, TaskStatus
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    UndeleteTaskRequest,
    UpdateTaskRequest,
)

MAX_ITEMS = 1000
MAX_BYTES = 3 * 1024 * 1024
WRITABLE = "title", "description", "status", "priority", "assigned_to", "due_date", "tags"

Status: TypeAlias = (
    "TaskStatus.ValueType | Literal['PENDING', 'IN_PROGRESS', 'COMPLETED', 'CANCELLED']"
)
Priority: TypeAlias = "TaskPriority.ValueType | Literal['LOW', 'MEDIUM', 'HIGH', 'URGENT']"

Request = TypeVar("Request", bound=Message)
Write = TypeVar("Write", CreateTaskRequest, UpdateTaskRequest)
Item = TypeVar("Item", bound=Message | str)
Targeted = TypeVar("Targeted", bound=UpdateTaskRequest | DeleteTaskRequest | UndeleteTaskRequest)

_ENUMS = {"status": TaskStatus, "priority": TaskPriority}
_ITEM_OVERHEAD = 8  # The tag and the length of an item.


class Fields(TypedDict, total=False):
    """The fields of a task that a client may write."""

    title: str
    description: str
    status: Status
    priority: Priority
    assigned_to: str
    due_date: dt.datetime | None
    tags: Sequence[str]


def new_request_id() -> str:
    """Generate an id for one write, kept over its retries."""
    return str(uuid.uuid4())


def new_call_id() -> str:
    """Generate the id under which the log of the service has a call."""
    return os.urandom(16).hex()


def assign(task: Task, fields: Mapping[str, object]) -> None:
    """Set fields of a task, None to their default. Raises: TypeError, ValueError."""
    for name, value in fields.items():
        if name not in WRITABLE:
            raise TypeError(f"a client cannot write the field {name!r}")
        task.ClearField(name)  # type: ignore[arg-type]
        if value is None:
            continue
        if name == "tags" and not isinstance(value, str) and isinstance(value, Iterable):
            task.tags.extend(value)
        elif isinstance(value, dt.datetime):
            task.due_date.FromDatetime(_aware(value))
        else:
            setattr(task, name, _number(name, value) if name in _ENUMS else value)


def _aware(time: dt.datetime) -> dt.datetime:
    if time.tzinfo is None:
        raise ValueError("due_date needs a time zone, for example datetime.now(UTC)")
    return time


def _number(field: str, value: object) -> object:
    """Return the number of an enum value named by its full or its short name."""
    if not isinstance(value, str):
        return value
    prefix = f"TASK_{field.upper()}_"
    return _ENUMS[field].Value(prefix + value.upper().removeprefix(prefix))


def changed_fields(before: Task, after: Task) -> list[str]:
    """Return the names of the writable fields that differ."""
    return [name for name in WRITABLE if _value(before, name) != _value(after, name)]


def _value(task: Task, name: str) -> object:
    if name == "due_date" and not task.HasField("due_date"):
        return None  # An absent message would equal an empty one.
    return getattr(task, name)


def task_id_of(request: Targeted) -> str:
    """Return the id of the task that a request names."""
    return request.task.id if isinstance(request, UpdateTaskRequest) else request.id


def create_request(item: Task | CreateTaskRequest) -> CreateTaskRequest:
    """Return a request with a request_id."""
    if isinstance(item, Task):
        return CreateTaskRequest(task=item, request_id=new_request_id())
    return _with_request_id(item)


def update_request(item: Task | UpdateTaskRequest) -> UpdateTaskRequest:
    """Return a request with a request_id."""
    if isinstance(item, Task):
        return UpdateTaskRequest(task=item, request_id=new_request_id())
    return _with_request_id(item)


def delete_request(item: str | DeleteTaskRequest) -> DeleteTaskRequest:
    """Return the request to delete a task."""
    return DeleteTaskRequest(id=item) if isinstance(item, str) else item


def _with_request_id(request: Write) -> Write:
    """Return the request, or a copy with an id, so that the message of the caller is unchanged."""
    if request.request_id:
        return request
    copy = type(request)()
    copy.CopyFrom(request)
    copy.request_id = new_request_id()
    return copy


def parts(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Split items into batches within the limits of the contract."""
    part: list[Item] = []
    size = 0
    for item in items:
        added = _ITEM_OVERHEAD + (len(item) if isinstance(item, str) else item.ByteSize())
        if part and (len(part) == MAX_ITEMS or size + added > MAX_BYTES):
            yield part
            part, size = [], 0
        part.append(item)
        size += added
    if part:
        yield part


def halves(part: Sequence[Item]) -> tuple[Sequence[Item], Sequence[Item]]:
    """Split a batch whose response would be too large."""
    middle = len(part) // 2
    return part[:middle], part[middle:]
