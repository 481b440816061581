"""Call a service without a pause, with the published service config, and note what fails."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    GetTaskRequest,
    GetTaskStatsRequest,
    ListTasksRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub

_CONFIG = Path(__file__).parents[2] / "deploy" / "client" / "service_config.request_ids.json"
_CLIENTS = 4
_PAUSE_SECONDS = 0.01  # Between the calls of a client, for the machine has other work.


class Traffic:
    """The calls of some clients: how many of each method, the failures, and the slowest."""

    def __init__(self) -> None:
        self.calls = Counter[str]()
        self.failures: list[str] = []
        self.slowest_seconds = 0.0
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def end(self) -> None:
        self._ended.set()

    def run(self, port: int) -> None:
        """Write and read tasks, as one client, until the end."""
        options = [
            ("grpc.service_config", _CONFIG.read_text()),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        with grpc.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            stub = TaskServiceStub(channel)
            while not self._ended.is_set():
                try:
                    self._use(stub)
                except grpc.RpcError as error:
                    self.failures.append(str(error))

    def _use(self, stub: TaskServiceStub) -> None:
        """Create, read, change and delete a task."""
        with self._call("CreateTask"):
            new = Task(title="of the traffic")
            task = stub.CreateTask(CreateTaskRequest(task=new, request_id=str(uuid.uuid4())))
        with self._call("GetTask"):
            stub.GetTask(GetTaskRequest(id=task.id))
        with self._call("UpdateTask"):
            renamed = Task(id=task.id, title="changed", etag=task.etag)
            stub.UpdateTask(UpdateTaskRequest(task=renamed, request_id=str(uuid.uuid4())))
        with self._call("ListTasks"):
            stub.ListTasks(ListTasksRequest(page_size=10, filter="title = changed"))
        with self._call("GetTaskStats"):
            stub.GetTaskStats(GetTaskStatsRequest())
        with self._call("DeleteTask"):
            stub.DeleteTask(DeleteTaskRequest(id=task.id))

    @contextmanager
    def _call(self, method: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        with self._lock:
            self.calls[method] += 1
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)
        self._ended.wait(_PAUSE_SECONDS)


@contextmanager
def traffic(port: int) -> Iterator[Traffic]:
    """Call the service at a port from several clients during the block."""
    traffic = Traffic()
    with ThreadPoolExecutor(_CLIENTS) as clients:
        running = [clients.submit(traffic.run, port) for _ in range(_CLIENTS)]
        try:
            yield traffic
        finally:
            traffic.end()
    for client in running:
        client.result()
