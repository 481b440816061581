"""Make messages of rows, for the services that are compared with TaskService."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import TaskStats

_NAMES = (
    *("id", "title", "description", "status", "priority", "assigned_to", "due_date", "tags"),
    *("created_by", "created_at", "updated_at", "completed_at", "deleted_at", "etag"),
)
COLUMNS = ", ".join(
    {"id": "id::text", "etag": "to_hex(version)"}.get(name, name) for name in _NAMES
)
"""The columns that `task_of` takes, as SQL."""


def task_of(row: Sequence[object] | None) -> Task:
    """Make a message of a row; protobuf accepts datetimes for its timestamps."""
    if row is None:
        raise LookupError("no such task")
    present = {name: value for name, value in zip(_NAMES, row, strict=True) if value is not None}
    return Task(**present)  # type: ignore[arg-type]


def stats_of(rows: Iterable[tuple[int, int, int, int]]) -> TaskStats:
    """Make a message of rows of a status, a priority, their count, and how many are overdue."""
    stats = TaskStats()
    by_status: dict[int, int] = {}
    by_priority: dict[int, int] = {}
    for status, priority, count, overdue in rows:
        stats.total += count
        stats.overdue += overdue
        by_status[status] = by_status.get(status, 0) + count
        by_priority[priority] = by_priority.get(priority, 0) + count
    for status, count in by_status.items():
        stats.by_status.add(status=status, count=count)
    for priority, count in by_priority.items():
        stats.by_priority.add(priority=priority, count=count)
    stats.as_of.GetCurrentTime()
    return stats
