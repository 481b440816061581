"""What a caller may do: one table from the method to the scope that it needs.

No scope implies another: a token may do what it lists and no more, so that one for an operator's
purge cannot also write tasks unless it says so.
"""

from __future__ import annotations

from typing import get_args

from server.caller import Principal, Scope
from server.errors import PermissionDeniedError

READ: Scope = "tasks:read"
WRITE: Scope = "tasks:write"
ADMIN: Scope = "tasks:admin"
"""Purging, and the events of others."""

ALL_SCOPES: frozenset[Scope] = frozenset(get_args(Scope))

NEEDED: dict[str, Scope] = {
    "GetTask": READ,
    "ListTasks": READ,
    "GetTaskStats": READ,
    "BatchGetTasks": READ,
    "ListTaskEvents": READ,
    "WatchTasks": READ,
    "CreateTask": WRITE,
    "UpdateTask": WRITE,
    "DeleteTask": WRITE,
    "UndeleteTask": WRITE,
    "BatchCreateTasks": WRITE,
    "BatchUpdateTasks": WRITE,
    "BatchDeleteTasks": WRITE,
    "PurgeTasks": ADMIN,
}


def authorize(principal: Principal, method: str) -> None:
    """Raises: PermissionDeniedError, when the principal may not call the method."""
    needed = NEEDED[method.rpartition("/")[2]]
    if needed not in principal.scopes:
        raise PermissionDeniedError(needed)
