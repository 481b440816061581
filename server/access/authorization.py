"""What a caller may do: one table from the method to the scopes that it needs, all of them.

No scope implies another: a token may do what it lists and no more.

tasks:read shows every task of every client: there is one domain of trust, and no tenants. It shows
of the history of a task the events of the caller's own writes; with tasks:admin those of others.

tasks:write changes tasks. Without tasks:read the answer has of a task its id and its etag, and a
batch's answer these in the order of its items. A caller still learns what a write has to tell: that
a task exists or is deleted, its status when a transition is refused, and that a field already had
the value that it was given, for then the etag stays.

tasks:admin purges deleted tasks, together with tasks:read: the filter of a purge tests the content
of tasks, and its answer tells how many have it.
"""

from __future__ import annotations

from typing import Any, get_args

from server.errors import PermissionDeniedError
from server.principal import Principal, Scope
from taskservice.v1.task_pb2 import Task

READ: Scope = "tasks:read"
WRITE: Scope = "tasks:write"
ADMIN: Scope = "tasks:admin"

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


def is_for_readers(method: str) -> bool:
    """Whether only a caller that may read tasks gets the method's answers."""
    return READ in NEEDED[_name(method)]


def shown(principal: Principal, answer: Any) -> Any:
    """What the principal gets of the answer to a write: a task, or a batch's tasks."""
    if READ in principal.scopes:
        return answer
    if isinstance(answer, Task):
        return _identity(answer)
    return type(answer)(tasks=map(_identity, answer.tasks))


def _identity(task: Task) -> Task:
    return Task(id=task.id, etag=task.etag)


def _name(method: str) -> str:
    return method.rpartition("/")[2]
