"""Workers are killed while a client with a published config calls: no call fails."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import psutil
import pytest

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest, GetTaskRequest, GetTaskStatsRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.e2e.test_service_config import PLAIN, WITH_REQUEST_IDS, client
from tests.support.service import PATIENCE_SECONDS, ServiceProcess, await_ready, wait_until

CALLERS = 8
KILLS = 5

Call = Callable[[TaskServiceStub], object]


def read(stub: TaskServiceStub) -> object:
    return stub.GetTaskStats(GetTaskStatsRequest())


def create(stub: TaskServiceStub) -> object:
    return stub.CreateTask(
        CreateTaskRequest(task=Task(title="a task"), request_id=str(uuid.uuid4()))
    )


class Callers:
    """Threads that call without a pause, and what became of their calls."""

    def __init__(self, stub: TaskServiceStub, call: Call) -> None:
        self._stub = stub
        self._call = call
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.ends: Counter[str] = Counter()

    def run(self) -> None:
        while not self._ended.is_set():
            try:
                self._call(self._stub)
                end = "OK"
            except grpc.RpcError as error:
                end = f"{error.code()}: {error.details()}"
            with self._lock:
                self.ends[end] += 1

    def end(self) -> None:
        self._ended.set()

    def await_more(self) -> None:
        count = self.ends.total()
        wait_until(lambda: self.ends.total() > count + 10 * CALLERS, "more calls")


@contextmanager
def calling(stub: TaskServiceStub, call: Call) -> Iterator[Callers]:
    callers = Callers(stub, call)
    with ThreadPoolExecutor(CALLERS) as threads:
        for _ in range(CALLERS):
            threads.submit(callers.run)
        try:
            yield callers
        finally:
            callers.end()


def called_worker(service: ServiceProcess) -> int:
    """A worker that a client is connected to."""

    def found() -> int:
        ours = {
            connection.laddr.port
            for connection in psutil.Process().net_connections("tcp")
            if connection.raddr and connection.raddr.port == service.port
        }
        for worker in service.workers():
            connections = psutil.Process(worker).net_connections("tcp")
            if any(peer.raddr and peer.raddr.port in ours for peer in connections):
                return worker
        return 0

    return wait_until(found, "a worker with a connection")


@pytest.fixture(params=[1, 2], ids="{} addresses".format)
def services(
    request: pytest.FixtureRequest,
    start_service: Callable[..., ServiceProcess],
    own_database_url: str,
    tmp_path: Path,
) -> list[ServiceProcess]:
    """Services of two workers each, ready."""
    services = [
        start_service(tmp_path / str(number), DATABASE_URL=own_database_url, WORKERS="2")
        for number in range(request.param)
    ]
    for service in services:
        channel = service.channel()
        await_ready(channel)
        channel.close()  # From here on the client's connections are the only ones.
    return services


@pytest.mark.parametrize(
    ("config", "call"), [(PLAIN, read), (WITH_REQUEST_IDS, create)], ids=["reads", "writes"]
)
def test_no_call_fails_when_its_worker_is_killed(
    services: list[ServiceProcess], config: str, call: Call
) -> None:
    """With one address gRPC has no other to turn to, until it connects again."""
    with ExitStack() as stack:
        stub = stack.enter_context(client(config, *(service.port for service in services)))
        callers = stack.enter_context(calling(stub, call))
        for number in range(KILLS):
            service = services[number % len(services)]
            callers.await_more()
            os.kill(called_worker(service), signal.SIGKILL)
            callers.await_more()
            wait_until(lambda own=service: len(own.workers()) == 2, "another worker")  # type: ignore[misc]
    assert callers.ends.keys() == {"OK"}
    if call is create:
        stub = services[0].stub()
        total = stub.GetTaskStats(GetTaskStatsRequest(), timeout=PATIENCE_SECONDS).total
        assert total == callers.ends["OK"]


def test_a_call_without_wait_for_ready_fails_at_once() -> None:
    """The call sets wait_for_ready itself; the config is for calls that do not."""
    with client(PLAIN, 1) as stub, pytest.raises(grpc.RpcError) as raised:
        stub.GetTask(GetTaskRequest(), wait_for_ready=False)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
