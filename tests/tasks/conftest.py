"""Fixtures for watches and for tasks that are only read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from sqlalchemy import NullPool, create_engine, delete, insert

from server.settings import Settings
from storage.database import Database
from storage.tables import tasks as tasks_table
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.filters import sample_rows, selected
from tests.support.watching import OpenWatch, Serve, Watch
from tests.support.workers import running_worker


@pytest.fixture
def serve(settings: Settings, database: Database, database_url: str) -> Iterator[Serve]:
    """Return a function that starts a service with its own settings, on the shared database."""
    with ExitStack() as running:

        def serve(**changes: object) -> TaskServiceStub:
            own = settings.model_copy(update=changes)
            return TaskServiceStub(running.enter_context(running_worker(own, database_url)))

        yield serve


@pytest.fixture
def watch(stub: TaskServiceStub, serve: Serve) -> Iterator[OpenWatch]:
    """Return a function that opens a watch; the watch ends before its service."""
    opened: list[Watch] = []

    def open_watch(at: TaskServiceStub | None = None, **request: Any) -> Watch:
        opened.append(Watch(at or stub, **request))
        return opened[-1]

    yield open_watch
    for one in opened:
        one.cancel()


@pytest.fixture(scope="module")
def sample_stub(channel: grpc.Channel, database_url: str) -> Iterator[TaskServiceStub]:
    """The service's stub, on sample tasks that a module only reads; they are stored once."""
    engine = create_engine(database_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(delete(tasks_table))
        connection.execute(insert(tasks_table), sample_rows())
    yield TaskServiceStub(channel)
    with engine.begin() as connection:
        connection.execute(delete(tasks_table))


@pytest.fixture(scope="module")
def samples(sample_stub: TaskServiceStub) -> list[Task]:
    return selected(sample_stub, "")
