"""Health as a probe asks for it: the standard protocol, and an answer at any time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from server.health import LIVENESS, READINESS, STARTUP
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest, UpdateTaskRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.e2e.postgres import await_waiting, locked_task
from tests.e2e.service import (
    SERVING,
    ServiceProcess,
    await_ready,
    health,
    health_stub,
)


@pytest.fixture
def channel(shared_service: ServiceProcess) -> grpc.Channel:
    channel = shared_service.channel()
    await_ready(channel)
    return channel


@pytest.fixture
def probe(channel: grpc.Channel) -> Any:
    return health_stub(channel)


@pytest.mark.parametrize(
    "name", [LIVENESS, STARTUP, READINESS], ids=["liveness", "startup", "readiness"]
)
def test_check_of_a_healthy_service_says_serving(channel: grpc.Channel, name: str) -> None:
    assert health(channel, name) == SERVING


def test_check_of_an_unknown_service_is_not_found(probe: Any) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        probe.Check(health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("name", [LIVENESS, READINESS], ids=["liveness", "readiness"])
def test_watch_begins_with_the_present_status(probe: Any, name: str) -> None:
    watch = probe.Watch(health_pb2.HealthCheckRequest(service=name))
    assert next(watch).status == SERVING
    watch.cancel()


def test_watch_of_an_unknown_service_stays_open_and_says_so(
    probe: Any,
) -> None:
    """The service may come to be known; so says the protocol."""
    watch = probe.Watch(health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    assert watch.is_active()
    watch.cancel()


def test_list_names_every_service(probe: Any) -> None:
    listed = probe.List(health_pb2.HealthListRequest())  # type: ignore[attr-defined]
    assert {name: status.status for name, status in listed.statuses.items()} == {
        LIVENESS: SERVING,
        STARTUP: SERVING,
        READINESS: SERVING,
    }


def test_open_watches_do_not_keep_probes_waiting(channel: grpc.Channel, probe: Any) -> None:
    watches = [probe.Watch(health_pb2.HealthCheckRequest()) for _ in range(50)]
    assert [next(watch).status for watch in watches] == [SERVING] * 50
    assert health(channel, READINESS) == SERVING
    for watch in watches:
        watch.cancel()


def test_probes_are_answered_while_every_thread_is_busy(
    start_service: Callable[..., ServiceProcess], own_database_url: str
) -> None:
    """A service under load is not dead; killing it for that would make the load worse."""
    service = start_service(
        ENVIRONMENT="staging",
        DATABASE_URL=own_database_url,
        WORKERS="1",
        THREADS_PER_WORKER="2",
        SHUTDOWN_GRACE_SECONDS="0",
    )
    channel = service.channel()
    await_ready(channel)
    stub = TaskServiceStub(channel)
    task = stub.CreateTask(CreateTaskRequest(task=Task(title="old")))
    update = UpdateTaskRequest(task=Task(id=task.id, title="new"))
    with locked_task(own_database_url, task.id):
        calls = [stub.UpdateTask.future(update) for _ in range(10)]
        await_waiting(own_database_url, 2)
        assert [health(channel, LIVENESS), health(channel, READINESS)] == [SERVING, SERVING]
    for call in calls:
        call.exception()
