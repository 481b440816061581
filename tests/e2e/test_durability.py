"""Acknowledged writes survive a crash of service and database."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Callable

import grpc

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest, ListTasksRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.postgres import postmaster
from tests.support.service import PATIENCE_SECONDS, ServiceProcess, is_gone, kill_all, wait_until

TASKS = 2_000
WRITERS = 8


class Writers:
    """Create tasks in threads, and record those that were acknowledged."""

    def __init__(self, stub: TaskServiceStub, count: int) -> None:
        self._stub = stub
        self._left = iter(range(count))
        self.acknowledged: list[str] = []
        self._threads = [threading.Thread(target=self._write) for _ in range(WRITERS)]
        for thread in self._threads:
            thread.start()

    def _write(self) -> None:
        for number in self._left:
            task_id = str(uuid.uuid4())
            request = CreateTaskRequest(task=Task(title=f"task {number}"), task_id=task_id)
            try:
                self._stub.CreateTask(request, timeout=PATIENCE_SECONDS)
            except grpc.RpcError:
                return
            self.acknowledged.append(task_id)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def kill_everything(service: ServiceProcess) -> None:
    family = service.family()
    assert postmaster(service.data_dir) in family
    kill_all(family)
    wait_until(lambda: all(is_gone(process) for process in family), "every process has ended")


def stored(stub: TaskServiceStub) -> set[str]:
    ids: set[str] = set()
    token = ""
    for _ in itertools.count():
        page = stub.ListTasks(ListTasksRequest(page_size=1000, page_token=token))
        ids.update(task.id for task in page.tasks)
        token = page.next_page_token
        if not token:
            break
    return ids


def test_acknowledged_tasks_outlive_kill_9(start_service: Callable[..., ServiceProcess]) -> None:
    """Half of them are written when the service and PostgreSQL are killed under way."""
    service = start_service(ENVIRONMENT="development")
    first = Writers(service.stub(), TASKS)
    wait_until(lambda: len(first.acknowledged) >= TASKS // 2, "half of the tasks are written")
    kill_everything(service)
    first.join()

    service = start_service(ENVIRONMENT="development")
    second = Writers(service.stub(), TASKS - len(first.acknowledged))
    second.join()
    acknowledged = {*first.acknowledged, *second.acknowledged}
    assert len(acknowledged) == TASKS
    assert acknowledged - stored(service.stub()) == set()
