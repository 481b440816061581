"""The bytes of requests that wait are bounded, in all and of one caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from server.settings import Settings
from storage.database import Database
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    CreateTaskRequest,
    GetTaskStatsRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import fails
from tests.support.postgres import await_waiting, locked_task
from tests.support.service import PATIENCE_SECONDS, wait_until
from tests.support.workers import connection, served_port

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
# Eleven fit into 32 MiB, for all, and five into half of that, for a caller.
LARGE = BatchCreateTasksRequest(
    requests=[CreateTaskRequest(task=Task(description="x" * 3_000_000))]
)


@pytest.fixture
def connect(settings: Settings, database: Database, database_url: str) -> Iterator[Any]:
    """What makes a stub on a connection of its own to a service with one thread."""
    own = settings.model_copy(update={"threads_per_worker": 1, "max_concurrent_calls": 100})
    with ExitStack() as running:
        port = running.enter_context(served_port(own, database_url))
        yield lambda: TaskServiceStub(running.enter_context(connection(port)))


@pytest.fixture
def busy(connect: Callable[[], TaskServiceStub], database_url: str) -> Iterator[None]:
    """Nothing that waits gets on."""
    stub = connect()
    task = stub.CreateTask(CreateTaskRequest(task=Task(title="old")))
    with locked_task(database_url, task.id):
        call: Any = stub.UpdateTask.future(UpdateTaskRequest(task=Task(id=task.id, title="new")))
        await_waiting(database_url)
        yield
    call.result()


def sent(stub: TaskServiceStub, times: int) -> list[Any]:
    return [stub.BatchCreateTasks.future(LARGE, timeout=PATIENCE_SECONDS) for _ in range(times)]


def await_refused(calls: list[Any], count: int) -> list[Any]:
    """Those that are refused, as soon as there are so many."""
    wait_until(lambda: sum(call.done() for call in calls) == count, f"{count} are refused")
    return [call for call in calls if call.done()]


@pytest.mark.usefixtures("busy")
def test_a_caller_has_half_of_the_bytes(connect: Callable[[], TaskServiceStub]) -> None:
    calls = sent(connect(), 8)
    for call in await_refused(calls, 3):
        with fails(EXHAUSTED, "TOO_MANY_BYTES") as failure:
            call.result()
        assert failure.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
    others = sent(connect(), 5)
    with pytest.raises(grpc.FutureTimeoutError):
        others[0].result(timeout=0)


@pytest.mark.usefixtures("busy")
def test_all_callers_together_have_only_so_many_bytes(
    connect: Callable[[], TaskServiceStub],
) -> None:
    calls = [call for stub in [connect() for _ in range(4)] for call in sent(stub, 4)]
    for call in await_refused(calls, 5):
        with fails(EXHAUSTED, "TOO_MANY_BYTES"):
            call.result()


@pytest.mark.usefixtures("busy")
def test_small_requests_wait_behind_large_ones(connect: Callable[[], TaskServiceStub]) -> None:
    """They are not refused for the bytes of others."""
    large = sent(connect(), 8)
    await_refused(large, 3)
    small: Any = connect().GetTaskStats.future(GetTaskStatsRequest(), timeout=PATIENCE_SECONDS)
    assert not small.done()


def test_bytes_are_given_back(connect: Callable[[], TaskServiceStub]) -> None:
    """Whatever became of the requests."""
    stub = connect()
    for _ in range(15):
        with fails(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"):
            stub.BatchCreateTasks(LARGE)
