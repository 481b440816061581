"""Health: the standard protocol, answered at any time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from server.network.health import LIVENESS, READINESS, STARTUP
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    GetTaskStatsRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.postgres import await_waiting, locked_task
from tests.support.service import (
    PATIENCE_SECONDS,
    SERVING,
    ServiceProcess,
    await_ready,
    health,
    health_stub,
    wait_until,
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
    """By the protocol, the service may be added later."""
    watch = probe.Watch(health_pb2.HealthCheckRequest(service="no.such.Service"))
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    assert watch.is_active()
    watch.cancel()


def test_open_watches_do_not_keep_probes_waiting(channel: grpc.Channel, probe: Any) -> None:
    watches = [probe.Watch(health_pb2.HealthCheckRequest()) for _ in range(16)]
    assert [next(watch).status for watch in watches] == [SERVING] * 16
    assert health(channel, READINESS) == SERVING
    for watch in watches:
        watch.cancel()


def watch(channel: grpc.Channel, name: str = LIVENESS) -> Any:
    request = health_pb2.HealthCheckRequest(service=name)
    return health_stub(channel).Watch(request, timeout=PATIENCE_SECONDS)


def test_watches_that_come_and_go_stop_nothing(shared_service: ServiceProcess) -> None:
    """Clients with round_robin open a Watch on each of their connections, which are replaced."""
    codes = []

    def come_and_go(channel: grpc.Channel) -> None:
        for _ in range(200):
            call = watch(channel)
            next(call)
            call.cancel()
            codes.append(call.code())

    channels = [shared_service.channel() for _ in range(4)]
    threads = [threading.Thread(target=come_and_go, args=(channel,)) for channel in channels]
    for thread in threads:
        thread.start()
    stub = shared_service.stub()
    while any(thread.is_alive() for thread in threads):
        stub.GetTaskStats(GetTaskStatsRequest(), timeout=PATIENCE_SECONDS)
    assert codes == [grpc.StatusCode.CANCELLED] * 800


def refuses_watch(channel: grpc.Channel, watches: list[Any]) -> bool:
    """Whether a Watch is one too many; else it goes to the others, and stays open."""
    call = watch(channel)
    try:
        next(call)
    except grpc.RpcError:
        assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        return True
    watches.append(call)
    return False


def test_watches_are_so_many_at_once_on_each_port(
    start_service: Callable[..., ServiceProcess], own_database_url: str
) -> None:
    """As many as connections; an ended Watch frees its place, and Check takes none."""
    service = start_service(
        constants={"server.network.connections.MAX_CONNECTIONS": 3},
        ENVIRONMENT="staging",
        DATABASE_URL=own_database_url,
        WORKERS="1",
        HEALTH_PORT="0",
    )
    channel = service.channel()
    watches: list[Any] = []
    assert [refuses_watch(channel, watches) for _ in range(4)] == [False, False, False, True]
    assert health(channel, LIVENESS) == SERVING
    with grpc.insecure_channel(f"127.0.0.1:{service.health_port}") as probes:
        assert not refuses_watch(probes, watches)
    watches[0].cancel()
    wait_until(lambda: not refuses_watch(channel, watches), "another Watch is accepted")
    assert refuses_watch(channel, watches)


def test_one_connection_does_not_take_the_places_of_others(shared_service: ServiceProcess) -> None:
    """Clients that balance by health take a server that rejects a Watch for unhealthy."""
    watches: list[Any] = []
    greedy, other = shared_service.channel(), shared_service.channel()
    assert [refuses_watch(greedy, watches) for _ in range(17)] == [*[False] * 16, True]
    assert not refuses_watch(other, watches)
    for watch in watches:
        watch.cancel()


def test_probes_are_answered_while_every_thread_is_busy(
    start_service: Callable[..., ServiceProcess], own_database_url: str
) -> None:
    """A restart under load would make the load worse."""
    service = start_service(
        ENVIRONMENT="staging",
        DATABASE_URL=own_database_url,
        WORKERS="1",
        THREADS_PER_WORKER="2",
        SHUTDOWN_GRACE_SECONDS="0",
    )
    channel = service.channel()
    await_ready(channel)
    stubs = [TaskServiceStub(channel), service.stub()]  # One caller never has all threads.
    task = stubs[0].CreateTask(CreateTaskRequest(task=Task(title="old")))
    update = UpdateTaskRequest(task=Task(id=task.id, title="new"))
    with locked_task(own_database_url, task.id):
        calls = [stub.UpdateTask.future(update) for stub in stubs * 5]
        await_waiting(own_database_url, 2)
        assert [health(channel, LIVENESS), health(channel, READINESS)] == [SERVING, SERVING]
    for call in calls:
        call.exception()
