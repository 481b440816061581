"""Scopes, and the statements of calls, for tests of access."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from storage.statement import Statement
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.statements import each_statement

StubOf = Callable[..., TaskServiceStub]

READ, WRITE, ADMIN = "tasks:read", "tasks:write", "tasks:admin"


@contextmanager
def counted_statements() -> Iterator[list[str]]:
    """Record the statements of calls of every service in this process during the block."""
    statements: list[str] = []

    def record(statement: Statement, _values: object) -> None:
        if threading.current_thread().name.startswith(("call", "stream")):
            statements.append(statement.sql)

    with each_statement(record):
        yield statements
