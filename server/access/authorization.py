"""Authorise calls: one table from the method to all scopes that it needs (decision 18).

No scope implies another. tasks:read reads the tasks of all principals: there are no tenants. Of a
history it reads the events of the principal's own writes; together with tasks:admin, those of all.
Without tasks:read a write answers with ids and etags; its errors still reveal that a task exists.
"""

from typing import TypeAlias, get_args

from server.access.principal import Principal, Scope
from server.errors import PermissionDeniedError
from taskservice.v1 import task_service_pb2 as pb
from taskservice.v1.task_pb2 import Task

READ: Scope = "tasks:read"
WRITE: Scope = "tasks:write"
ADMIN: Scope = "tasks:admin"

WriteAnswer: TypeAlias = (
    Task | pb.BatchCreateTasksResponse | pb.BatchUpdateTasksResponse | pb.BatchDeleteTasksResponse
)

ALL_SCOPES: frozenset[Scope] = frozenset(get_args(Scope))

NEEDED: dict[str, frozenset[Scope]] = {
    "GetTask": frozenset({READ}),
    "ListTasks": frozenset({READ}),
    "GetTaskStats": frozenset({READ}),
    "BatchGetTasks": frozenset({READ}),
    "ListTaskEvents": frozenset({READ}),
    "WatchTasks": frozenset({READ}),
    "CreateTask": frozenset({WRITE}),
    "UpdateTask": frozenset({WRITE}),
    "DeleteTask": frozenset({WRITE}),
    "UndeleteTask": frozenset({WRITE}),
    "BatchCreateTasks": frozenset({WRITE}),
    "BatchUpdateTasks": frozenset({WRITE}),
    "BatchDeleteTasks": frozenset({WRITE}),
    "PurgeTasks": frozenset({ADMIN, READ}),
}


def authorize(principal: Principal, method: str) -> None:
    """Raises: PermissionDeniedError, when the principal may not call the method."""
    if missing := NEEDED[_name(method)] - principal.scopes:
        raise PermissionDeniedError(*sorted(missing))


def requires_read(method: str) -> bool:
    """Return whether the method needs tasks:read."""
    return READ in NEEDED[_name(method)]


def visible_to(principal: Principal, answer: WriteAnswer) -> WriteAnswer:
    """Return the answer to a write without what the principal may not read."""
    if READ in principal.scopes:
        return answer
    if isinstance(answer, Task):
        return _identity(answer)
    return type(answer)(tasks=map(_identity, answer.tasks))


def _identity(task: Task) -> Task:
    return Task(id=task.id, etag=task.etag)


def _name(method: str) -> str:
    return method.rpartition("/")[2]
