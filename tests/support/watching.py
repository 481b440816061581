"""Watching tasks as a caller does, and writing them behind the service's back."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import grpc
from sqlalchemy import Connection, Executable

from storage.database import Database, Parameters, Rows
from storage.repository import Change, Creation, Origin, Target, TaskRepository
from storage.tables import TaskRow
from taskservice.v1.task_service_pb2 import WatchTasksRequest, WatchTasksResponse
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.service import PATIENCE_SECONDS

ADDED = WatchTasksResponse.TYPE_ADDED
MODIFIED = WatchTasksResponse.TYPE_MODIFIED
DELETED = WatchTasksResponse.TYPE_DELETED
BOOKMARK = WatchTasksResponse.TYPE_BOOKMARK

BY_HAND = Origin("by hand")


class Watch:
    """A watch that a thread reads, so that a test can wait for what it tells."""

    def __init__(self, stub: TaskServiceStub, **request: Any) -> None:
        self._call: Any = stub.WatchTasks(WatchTasksRequest(**request))
        self._heard: SimpleQueue[WatchTasksResponse | grpc.RpcError] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            for response in self._call:
                self._heard.put(response)
        except grpc.RpcError as error:
            self._heard.put(error)

    def next(self) -> WatchTasksResponse:
        """The next response. Raises: what the call ended with; queue.Empty when none comes."""
        heard = self._heard.get(timeout=PATIENCE_SECONDS)
        if isinstance(heard, grpc.RpcError):
            self._heard.put(heard)
            raise heard
        return heard

    def bookmark(self) -> str:
        """The token of the next response, which is a bookmark."""
        response = self.next()
        assert response.type == BOOKMARK, response
        assert response.resume_token
        assert not response.HasField("task")
        return response.resume_token

    def change(self) -> WatchTasksResponse:
        """The next response that is no bookmark."""
        while (response := self.next()).type == BOOKMARK:
            pass
        return response

    def changes(self, count: int) -> list[WatchTasksResponse]:
        return [self.change() for _ in range(count)]

    def error(self) -> grpc.RpcError:
        """What the call ends with; all that comes before it is thrown away."""
        try:
            while True:
                self.next()
        except grpc.RpcError as error:
            return error

    def cancel(self) -> None:
        self._call.cancel()
        self._reader.join(PATIENCE_SECONDS)


class _OneTransaction(Database):
    """Runs every statement on one connection, within what that one has begun."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def read(
        self,
        statement: Executable,
        parameters: Parameters | None = None,
        *,
        seconds: float = math.inf,
    ) -> Rows:
        return self._connection.execute(statement, parameters).all()

    def write(
        self, statement: Executable, parameters: Parameters | None = None, *, commit: bool = True
    ) -> Rows:
        return self.read(statement, parameters)


@contextmanager
def one_transaction(database: Database) -> Iterator[TaskRepository]:
    """What this repository writes is committed together, when the block ends."""
    with database.engine.connect() as connection:
        connection.execution_options(isolation_level="READ COMMITTED")
        with connection.begin():
            yield TaskRepository(_OneTransaction(connection))


_CONTENT = ("title", "description", "status", "priority", "assigned_to", "due_date", "tags")


def create_by_hand(repository: TaskRepository, task_id: str, title: str = "by hand") -> TaskRow:
    values = {
        "id": task_id,
        "created_by": BY_HAND.principal,
        "title": title,
        "description": "",
        "status": 1,
        "priority": 2,
        "assigned_to": "",
        "due_date": None,
        "tags": [],
    }
    return repository.create([Creation(values)], BY_HAND)[0]


def update_by_hand(repository: TaskRepository, task_id: str, **values: object) -> TaskRow:
    """Raises: VersionMismatchError, when another wrote the task first."""
    row = repository.get(task_id)
    content = {name: getattr(row, name) for name in _CONTENT}
    return repository.update([Change(row, content | values)], BY_HAND)[0]


def delete_by_hand(repository: TaskRepository, task_id: str) -> TaskRow:
    return repository.delete([Target(task_id)], BY_HAND)[0]
