"""Check a write against the stored state of the task: its deletion, etag, status and due date."""

import datetime as dt
from collections.abc import Iterable, Mapping

from server.errors import InvalidRequestError, TransitionNotAllowedError, violation
from server.tasks.conversions import Values, version_of
from storage.errors import TaskDeletedError, VersionMismatchError
from storage.repository import TaskRepository
from storage.tables import TaskRow
from taskservice.v1 import task_pb2 as pb

_OPEN = {pb.TASK_STATUS_PENDING, pb.TASK_STATUS_IN_PROGRESS}
_ENDED = {pb.TASK_STATUS_COMPLETED, pb.TASK_STATUS_CANCELLED}
TRANSITIONS: dict[int, set[pb.TaskStatus.ValueType]] = {
    pb.TASK_STATUS_PENDING: {pb.TASK_STATUS_IN_PROGRESS, *_ENDED},
    pb.TASK_STATUS_IN_PROGRESS: {pb.TASK_STATUS_PENDING, *_ENDED},
    pb.TASK_STATUS_COMPLETED: _OPEN,
    pb.TASK_STATUS_CANCELLED: _OPEN,
}


def check_change(row: TaskRow, values: Values, etag: str) -> None:
    """Check new values against the stored task, except for the due date.

    Raises: TaskDeletedError, VersionMismatchError, TransitionNotAllowedError.
    """
    if row.deleted_at is not None:
        raise TaskDeletedError(row.id)
    if version_of(etag) not in {None, row.version}:
        raise VersionMismatchError(row.id)
    status = values["status"]
    if status != row.status and status not in TRANSITIONS[row.status]:
        raise TransitionNotAllowedError(row.id, row.status, status)


def statuses_before(status: int | None) -> list[int]:
    """Return the statuses that this one may follow; all of them, if the status is not written."""
    return [old for old, new in TRANSITIONS.items() if status in {None, old, *new}]


def past_due_dates(
    repository: TaskRepository, due_dates: Mapping[int, dt.datetime | None]
) -> set[int]:
    """Return the items whose due date is not in the future, by the database's clock."""
    given = {number: due_date for number, due_date in due_dates.items() if due_date is not None}
    if not given:
        return set()
    now = repository.now()
    return {number for number, due_date in given.items() if due_date <= now}


def reject_past_due_dates(items: Iterable[int], prefix: str) -> None:
    """Raise InvalidRequestError if there are any such items."""
    if violations := [
        violation(
            f"{prefix.format(number)}task.due_date", "must be in the future", "TIMESTAMP_IN_PAST"
        )
        for number in sorted(items)
    ]:
        raise InvalidRequestError(violations)
