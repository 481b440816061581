"""The stream of events, and transactions that stay open."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Connection

from storage.database import Database
from storage.events import EventLog, Position
from tests.support.events import Transaction


@pytest.fixture
def begin(database: Database) -> Iterator[Callable[[], Transaction]]:
    """Begins a transaction."""
    connections: list[Connection] = []

    def begin() -> Transaction:
        connections.append(connection := database.engine.connect())
        connection.execution_options(isolation_level="READ COMMITTED")
        return Transaction(connection)

    yield begin
    for connection in connections:
        connection.close()


@pytest.fixture
def log(database: Database) -> EventLog:
    return EventLog(database)


@pytest.fixture
def start(log: EventLog) -> Position:
    """Where the stream stands when the test begins."""
    return log.head()
