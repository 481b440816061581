"""Lines of an import: a task each, with what a caller may set."""

import json
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from uuid import UUID, uuid4, uuid5

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict, ParseError

from taskservice_client import CreateTaskRequest, Task, TaskPriority, TaskStatus

WRITABLE = ("title", "description", "status", "priority", "assigned_to", "due_date", "tags")

MAX_TASKS = 1000
MAX_BYTES = 2_800_000  # A request has at most 3 MiB, with its ids.

_REQUESTS = UUID("6f0c2a5e-5a0e-5d7c-9d8e-0f4f0a7c1b1d")  # The namespace of request ids.


class LineError(ValueError):
    """A line is no task."""


@dataclass
class Line:
    """A task to import, with the number of its line."""

    number: int
    task: Task

    def request(self, *, is_new: bool = False) -> CreateTaskRequest:
        """Make the request; unless it is new, its id follows from the content of the line."""
        content = self.task.SerializeToString(deterministic=True).hex()
        request_id = uuid4() if is_new else uuid5(_REQUESTS, content)
        return CreateTaskRequest(task=self.task, task_id=self.task.id, request_id=str(request_id))

    def differences(self, existing: Task) -> set[str]:
        """Return the fields in which an existing task differs."""
        wanted, found = _stored(self.task), _stored(existing)
        return {name for name in WRITABLE if getattr(wanted, name) != getattr(found, name)}


def parse(number: int, text: bytes) -> Line:
    """Parse a line and keep what a caller may set. Raises: LineError."""
    try:
        given = ParseDict(json.loads(text.rstrip()), Task())
    except (ValueError, TypeError, AttributeError, ParseError) as error:
        raise LineError(f"not a task in JSON: {str(error).splitlines()[0]}") from error
    if not given.id:
        raise LineError("id: is missing")
    if given.HasField("deleted_at"):
        raise LineError("deleted_at: the task is deleted")
    task = Task(id=given.id.lower())
    FieldMask(paths=WRITABLE).MergeMessage(given, task)
    return Line(number, task)


def batches(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Group lines so that each group is a valid batch: by number, by bytes, without an id twice."""
    batch: dict[str, Line] = {}
    size = 0
    for line in lines:
        bytes_ = line.request().ByteSize()
        if len(batch) == MAX_TASKS or size + bytes_ > MAX_BYTES or line.task.id in batch:
            yield list(batch.values())
            batch, size = {}, 0
        batch[line.task.id] = line
        size += bytes_
    if batch:
        yield list(batch.values())


def _stored(task: Task) -> Task:
    """Return the task as the service stores it: normalized text, defaults, distinct tags."""
    stored = Task(
        title=_normalized(task.title),
        description=_normalized(task.description),
        status=task.status or TaskStatus.TASK_STATUS_PENDING,
        priority=task.priority or TaskPriority.TASK_PRIORITY_MEDIUM,
        assigned_to=_normalized(task.assigned_to),
        tags={tag.lower(): tag for tag in map(_normalized, reversed(task.tags))}.values(),
    )
    if task.HasField("due_date"):
        stored.due_date.FromMicroseconds(task.due_date.ToMicroseconds())
    return stored


def _normalized(text: str) -> str:
    return unicodedata.normalize("NFC", text)
