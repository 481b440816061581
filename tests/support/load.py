"""Call a service without a pause while a test replaces what it consists of."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import grpc

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest, GetTaskRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.service import PATIENCE_SECONDS, ServiceProcess, wait_until

CLIENT = Path(__file__).parents[2] / "deploy" / "client"
PUBLISHED_CONFIG = (CLIENT / "service_config.json").read_text()


class Load:
    """Clients that call services continuously, each over a channel of its own to all of them."""

    def __init__(self, *services: ServiceProcess, clients: int) -> None:
        task = services[0].stub().CreateTask(CreateTaskRequest(task=Task(title="a task")))
        self._read = GetTaskRequest(id=task.id)
        self._stopped = threading.Event()
        self.answers = 0
        self.failures: list[grpc.RpcError] = []
        self._channels = [_channel(services) for _ in range(clients)]
        stubs = map(TaskServiceStub, self._channels)
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
        for channel in self._channels:
            channel.close()

    def await_more(self) -> None:
        enough = self.answers + 100
        wait_until(lambda: self.answers > enough, "more calls are answered")


def _channel(services: Sequence[ServiceProcess]) -> grpc.Channel:
    """Connect with the published service config, which balances over ready services."""
    addresses = ",".join(f"127.0.0.1:{service.port}" for service in services)
    options = [("grpc.service_config", PUBLISHED_CONFIG), ("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.insecure_channel(f"ipv4:{addresses}", options=options)
    grpc.channel_ready_future(channel).result(PATIENCE_SECONDS)
    return channel
