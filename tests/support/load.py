"""Call a service without a pause while a test replaces what it consists of."""

from __future__ import annotations

import threading
from pathlib import Path

import grpc

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest, GetTaskRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.service import ServiceProcess, wait_until

CLIENT = Path(__file__).parents[2] / "deploy" / "client"
PUBLISHED_CONFIG = (CLIENT / "service_config.json").read_text()


class Load:
    """Clients that call continuously, each over a connection of its own."""

    def __init__(self, service: ServiceProcess, clients: int) -> None:
        task = service.stub().CreateTask(CreateTaskRequest(task=Task(title="a task")))
        self._read = GetTaskRequest(id=task.id)
        self._stopped = threading.Event()
        self.answers = 0
        self.failures: list[grpc.RpcError] = []
        stubs = [TaskServiceStub(service.channel(PUBLISHED_CONFIG)) for _ in range(clients)]
        self._threads = [threading.Thread(target=self._call, args=(stub,)) for stub in stubs]

    def _call(self, stub: TaskServiceStub) -> None:
        while not self._stopped.is_set():
            try:
                stub.GetTask(self._read)
                stub.CreateTask(CreateTaskRequest(task=Task(title="another task")))
                self.answers += 1
            except grpc.RpcError as error:
                self.failures.append(error)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def await_more(self) -> None:
        enough = self.answers + 100
        wait_until(lambda: self.answers > enough, "more calls are answered")
