"""Watch tasks as a client does, and write them without the service."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from storage.database import Database
from storage.repository import Change, Creation, Origin, Target, TaskRepository
from storage.tables import TaskRow
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    UpdateTaskRequest,
    WatchTasksRequest,
    WatchTasksResponse,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import Failure, fails
from tests.support.service import PATIENCE_SECONDS

ADDED = WatchTasksResponse.TYPE_ADDED
MODIFIED = WatchTasksResponse.TYPE_MODIFIED
DELETED = WatchTasksResponse.TYPE_DELETED
BOOKMARK = WatchTasksResponse.TYPE_BOOKMARK

BY_HAND = Origin("by hand")

OF_ANN = 'assigned_to = "ann"'
OF_BOB = 'assigned_to = "bob"'

NUMBERS = [str(number) for number in range(200)]

OpenWatch = Callable[..., "Watch"]
Serve = Callable[..., TaskServiceStub]


class Watch:
    """A watch that a thread reads, so that a test can wait for its responses."""

    def __init__(self, stub: TaskServiceStub, **request: Any) -> None:
        self._call: Any = stub.WatchTasks(WatchTasksRequest(**request))
        self._received: SimpleQueue[WatchTasksResponse | grpc.RpcError] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            for response in self._call:
                self._received.put(response)
        except grpc.RpcError as error:
            self._received.put(error)

    def next(self) -> WatchTasksResponse:
        """Return the next response. Raises: the error of the call; queue.Empty after a timeout."""
        response = self._received.get(timeout=PATIENCE_SECONDS)
        if isinstance(response, grpc.RpcError):
            self._received.put(response)
            raise response
        return response

    def bookmark(self) -> str:
        """Return the token of the next response, which must be a bookmark."""
        response = self.next()
        assert response.type == BOOKMARK, response
        assert response.resume_token
        assert not response.HasField("task")
        return response.resume_token

    def change(self) -> WatchTasksResponse:
        """Return the next response that is no bookmark."""
        while (response := self.next()).type == BOOKMARK:
            pass
        return response

    def changes(self, count: int) -> list[WatchTasksResponse]:
        return [self.change() for _ in range(count)]

    def error(self) -> grpc.RpcError:
        """Return the error of the call; discard the responses before it."""
        try:
            while True:
                self.next()
        except grpc.RpcError as error:
            return error

    def cancel(self) -> None:
        self._call.cancel()
        self._reader.join(PATIENCE_SECONDS)


def joined(watch: OpenWatch, *at: TaskServiceStub, **request: Any) -> Watch:
    """Open a watch and take its first bookmark: it reports every change from now on."""
    opened = watch(*at, **request)
    opened.bookmark()
    return opened


def failure_of(code: grpc.StatusCode, reason: str, watch: Watch) -> Failure:
    """Require that the watch ends with this error, and return the error."""
    with fails(code, reason) as failure:
        raise watch.error()
    return failure


def up_to_bookmark(watch: Watch) -> list[WatchTasksResponse]:
    """Return the responses before the next bookmark."""
    responses = []
    while (response := watch.next()).type != BOOKMARK:
        responses.append(response)
    return responses


def titles(responses: list[WatchTasksResponse]) -> list[str]:
    return [response.task.title for response in responses]


def titles_by_id(tasks: list[Task]) -> list[str]:
    """Return the titles in the order of the tasks' ids, which is the order of their events."""
    return [task.title for task in sorted(tasks, key=lambda task: task.id)]


def ended_watches(logs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the log lines of watches that have ended."""
    return [line for line in logs if str(line.get("method")).endswith("/WatchTasks")]


def create(stub: TaskServiceStub, *titles: str, **fields: object) -> list[Task]:
    """Create tasks in one batch."""
    requests = [
        CreateTaskRequest(task=Task(title=title, **fields))  # type: ignore[arg-type]
        for title in titles
    ]
    return list(stub.BatchCreateTasks(BatchCreateTasksRequest(requests=requests)).tasks)


def update(stub: TaskServiceStub, task: Task, **fields: object) -> Task:
    changed = Task(id=task.id, **fields)  # type: ignore[arg-type]
    return stub.UpdateTask(
        UpdateTaskRequest(task=changed, update_mask=FieldMask(paths=list(fields)))
    )


def delete(stub: TaskServiceStub, task: Task) -> Task:
    return stub.DeleteTask(DeleteTaskRequest(id=task.id))


class Gate:
    """Block threads while it is closed, and report that one has arrived."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._arrived = threading.Event()
        self._open.set()

    def pass_through(self) -> None:
        if not self._open.is_set():
            self._arrived.set()
        assert self._open.wait(PATIENCE_SECONDS)

    def await_arrival(self) -> None:
        assert self._arrived.wait(PATIENCE_SECONDS)

    def open(self) -> None:
        self._open.set()

    def closed(self) -> ExitStack:
        """Close the gate; it opens when the block ends."""
        self._open.clear()
        opening = ExitStack()
        opening.callback(self.open)
        return opening


@contextmanager
def one_transaction(database: Database) -> Iterator[TaskRepository]:
    """Yield a repository whose writes are committed together, when the block ends."""
    with database.transaction() as transaction:
        yield TaskRepository(transaction)


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
    """Update the task. Raises: VersionMismatchError, if its version has changed meanwhile."""
    row = repository.get(task_id)
    content = {name: getattr(row, name) for name in _CONTENT}
    return repository.update([Change(row, content | values)], BY_HAND)[0]


def delete_by_hand(repository: TaskRepository, task_id: str) -> TaskRow:
    return repository.delete([Target(task_id)], BY_HAND)[0]
