"""Scopes, and the statements of calls, for tests of access."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event

from taskservice.v1.task_service_pb2_grpc import TaskServiceStub

StubOf = Callable[..., TaskServiceStub]

READ, WRITE, ADMIN = "tasks:read", "tasks:write", "tasks:admin"


@contextmanager
def counted_statements() -> Iterator[list[str]]:
    """Record the statements of calls of every service in this process during the block."""
    statements: list[str] = []

    def count(_connection: Any, _cursor: Any, statement: str, *_: object) -> None:
        if threading.current_thread().name.startswith(("call", "stream")):
            statements.append(statement)

    event.listen(Engine, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", count)
