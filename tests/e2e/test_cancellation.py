"""Cancelled and expired calls: their statements end in the database, and the log has the code."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from server.network.health import READINESS
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    GetTaskRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.postgres import await_none_waiting, await_waiting, locked_task
from tests.support.service import PATIENCE_SECONDS, SERVING, ServiceProcess, health, wait_until


@pytest.fixture(scope="module")
def stub(shared_service: ServiceProcess) -> TaskServiceStub:
    return shared_service.stub()


@pytest.fixture
def locked(stub: TaskServiceStub, shared_database_url: str) -> Iterator[UpdateTaskRequest]:
    """An update that waits in the database for as long as the test runs."""
    task = stub.CreateTask(CreateTaskRequest(task=Task(title="old")))
    with locked_task(shared_database_url, task.id):
        yield UpdateTaskRequest(task=Task(id=task.id, title="new"))


def logged_code(service: ServiceProcess, request_id: str) -> str:
    def code() -> str:
        codes = [e["code"] for e in service.events("call") if e["request_id"] == request_id]
        return str(codes[0]) if codes else ""

    return wait_until(code, "the call is in the log")


def test_statement_ends_with_the_deadline_of_its_call(
    stub: TaskServiceStub, locked: UpdateTaskRequest, shared_database_url: str
) -> None:
    call: Any = stub.UpdateTask.future(locked, timeout=1)
    await_waiting(shared_database_url)
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await_none_waiting(shared_database_url)


def test_statement_ends_when_its_call_is_cancelled(
    stub: TaskServiceStub, locked: UpdateTaskRequest, shared_database_url: str
) -> None:
    call: Any = stub.UpdateTask.future(locked)
    await_waiting(shared_database_url)
    call.cancel()
    await_none_waiting(shared_database_url)


def test_statement_ends_with_the_connection_of_its_caller(
    shared_service: ServiceProcess, locked: UpdateTaskRequest, shared_database_url: str
) -> None:
    channel = shared_service.channel()
    call = TaskServiceStub(channel).UpdateTask.future(locked)
    await_waiting(shared_database_url)
    channel.close()
    await_none_waiting(shared_database_url)
    assert call.done()


def test_deadline_is_logged(
    shared_service: ServiceProcess, stub: TaskServiceStub, locked: UpdateTaskRequest
) -> None:
    request_id = str(uuid.uuid4())
    call: Any = stub.UpdateTask.future(
        locked, timeout=0.5, metadata=(("x-request-id", request_id),)
    )
    assert call.exception() is not None
    assert logged_code(shared_service, request_id) == "DEADLINE_EXCEEDED"


def test_cancellation_is_logged(
    shared_service: ServiceProcess,
    stub: TaskServiceStub,
    locked: UpdateTaskRequest,
    shared_database_url: str,
) -> None:
    request_id = str(uuid.uuid4())
    call: Any = stub.UpdateTask.future(locked, metadata=(("x-request-id", request_id),))
    await_waiting(shared_database_url)
    call.cancel()
    assert logged_code(shared_service, request_id) == "CANCELLED"


def title(stub: TaskServiceStub, task_id: str) -> str:
    """Read a task, as soon as so many cancelled calls have ended that another is accepted."""

    def read() -> str:
        try:
            return stub.GetTask(GetTaskRequest(id=task_id), timeout=PATIENCE_SECONDS).title
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
            return ""

    return wait_until(read, "a call is accepted")


def test_many_cancelled_calls_leave_no_statement(
    stub: TaskServiceStub, locked: UpdateTaskRequest, shared_database_url: str
) -> None:
    """Most of them are cancelled while they wait for a thread."""
    calls: list[Any] = [stub.UpdateTask.future(locked) for _ in range(500)]
    await_waiting(shared_database_url)
    for call in calls:
        call.cancel()
    assert title(stub, locked.task.id) == "old"
    await_none_waiting(shared_database_url)


def test_many_cancelled_calls_harm_no_other(
    shared_service: ServiceProcess, stub: TaskServiceStub, locked: UpdateTaskRequest
) -> None:
    """A cancel request that comes late must not hit the next statement of the connection."""
    calls: list[Any] = [stub.UpdateTask.future(locked) for _ in range(500)]
    for call in calls:
        call.cancel()
    assert {title(stub, locked.task.id) for _ in range(200)} == {"old"}
    assert health(shared_service.channel(), READINESS) == SERVING
