"""Shutdown: calls during the drain, its deadline, and the processes that remain."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from server.network.health import LIVENESS, READINESS
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    GetTaskStatsRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.postgres import (
    await_none_waiting,
    await_waiting,
    connections,
    frozen,
    locked_task,
)
from tests.support.service import (
    NOT_SERVING,
    PATIENCE_SECONDS,
    SERVING,
    ServiceProcess,
    await_ready,
    health,
    health_stub,
    refuses_calls,
    wait_until,
)

NEVER = "600"
"""Seconds, more than a test waits: what does not come before that does not come."""

StartService = Callable[..., ServiceProcess]


@pytest.fixture
def start(start_service: StartService, own_database_url: str) -> StartService:
    """Starts a service in staging with a database of its own."""

    def start(**settings: str) -> ServiceProcess:
        return start_service(
            **{"ENVIRONMENT": "staging", "DATABASE_URL": own_database_url, "WORKERS": "1"}
            | settings
        )

    return start


class SlowCall:
    """A call that runs until the lock on its task is let go."""

    def __init__(self, service: ServiceProcess, url: str, lock: ExitStack) -> None:
        self.channel = service.channel()
        stub = TaskServiceStub(self.channel)
        task = stub.CreateTask(CreateTaskRequest(task=Task(title="old")))
        lock.enter_context(locked_task(url, task.id))
        self.future = stub.UpdateTask.future(UpdateTaskRequest(task=Task(id=task.id, title="new")))
        await_waiting(url)


def test_draining_service_says_not_serving_and_still_takes_calls(start: StartService) -> None:
    """Balancers stop sending calls when they receive it; until then calls are answered."""
    service = start(SHUTDOWN_DELAY_SECONDS=NEVER)
    channel = service.channel()
    await_ready(channel)
    service.signal(signal.SIGTERM)
    wait_until(lambda: health(channel, LIVENESS) == NOT_SERVING, "liveness ends")
    wait_until(lambda: health(channel, READINESS) == NOT_SERVING, "readiness ends")
    assert not refuses_calls(service.channel())


@pytest.mark.parametrize("workers", ["1", "2"])
def test_running_call_is_answered_before_the_end(
    start: StartService, own_database_url: str, workers: str
) -> None:
    service = start(WORKERS=workers, SHUTDOWN_GRACE_SECONDS=NEVER)
    with ExitStack() as lock:
        call = SlowCall(service, own_database_url, lock)
        service.signal(signal.SIGTERM)
        wait_until(lambda: refuses_calls(call.channel), "no new call gets in")
    assert call.future.result(PATIENCE_SECONDS).title == "new"
    assert service.wait() == 0, service.log


@pytest.mark.parametrize("workers", ["1", "2"])
def test_call_that_outlasts_the_grace_is_ended(
    start: StartService, own_database_url: str, workers: str
) -> None:
    service = start(WORKERS=workers, SHUTDOWN_GRACE_SECONDS="0.5")
    with ExitStack() as lock:
        call = SlowCall(service, own_database_url, lock)
        service.signal(signal.SIGTERM)
        assert service.wait() == 0, service.log
        await_none_waiting(own_database_url)
        assert call.future.code() in {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_second_signal_ends_a_running_call_at_once(
    start: StartService, own_database_url: str, workers: str
) -> None:
    """Exit code 1 says that the call was not awaited."""
    service = start(WORKERS=workers, SHUTDOWN_GRACE_SECONDS=NEVER)
    with ExitStack() as lock:
        call = SlowCall(service, own_database_url, lock)
        service.signal(signal.SIGTERM)
        wait_until(lambda: refuses_calls(call.channel), "no new call gets in")
        service.signal(signal.SIGTERM)
        assert service.wait() == 1, service.log
        await_none_waiting(own_database_url)


def test_second_signal_ends_the_delay_at_once(start: StartService) -> None:
    service = start(SHUTDOWN_DELAY_SECONDS=NEVER)
    assert service.port
    service.signal(signal.SIGTERM)
    service.await_log("draining")
    service.signal(signal.SIGINT)
    assert service.wait() == 1, service.log


@pytest.mark.parametrize("name", [LIVENESS, READINESS], ids=["liveness", "readiness"])
def test_health_watch_ends_with_not_serving(start: StartService, name: str) -> None:
    """A stream without an end must not keep the service from its own."""
    service = start(SHUTDOWN_GRACE_SECONDS=NEVER)
    channel = service.channel()
    await_ready(channel)
    request = health_pb2.HealthCheckRequest(service=name)
    watch = health_stub(channel).Watch(request)
    seen = [next(watch).status]
    service.signal(signal.SIGTERM)
    seen += [response.status for response in watch]
    assert seen == [SERVING, NOT_SERVING]
    assert service.wait() == 0, service.log


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_connection_to_the_database_is_left(
    start: StartService, own_database_url: str, workers: str
) -> None:
    service = start(WORKERS=workers)
    service.stub().GetTaskStats(GetTaskStatsRequest())
    assert connections(own_database_url) > 0
    assert service.stop() == 0, service.log
    wait_until(lambda: connections(own_database_url) == 0, "the service's connections are closed")


def test_development_service_stops_its_database(start_service: StartService) -> None:
    service = start_service(ENVIRONMENT="development")
    service.stub().GetTaskStats(GetTaskStatsRequest())
    assert service.stop() == 0, service.log
    assert not (service.data_dir / "postgres" / "postmaster.pid").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_before_it_serves_ends_it_at_once(
    start: StartService, number: signal.Signals
) -> None:
    service = start()
    service.await_log("starting")
    service.signal(number)
    assert service.wait() == 128 + number
    assert "Traceback" not in service.log


@pytest.mark.parametrize("workers", ["1", "2"])
def test_service_ends_while_the_database_does_not_answer(
    start_service: StartService, workers: str
) -> None:
    service = start_service(
        ENVIRONMENT="development", WORKERS=workers, SHUTDOWN_GRACE_SECONDS="0.5"
    )
    stub = service.stub()
    stub.GetTaskStats(GetTaskStatsRequest())
    with frozen(service.data_dir):
        call = stub.GetTaskStats.future(GetTaskStatsRequest())
        service.signal(signal.SIGTERM)
        assert call.exception() is not None
        wait_until(lambda: service.log.count("stopped") == int(workers), "it stops serving")
    assert service.wait() == 0, service.log


def test_open_reflection_stream_does_not_delay_the_end(start: StartService) -> None:
    """Interactive clients keep one open for as long as they run."""
    service = start(SHUTDOWN_GRACE_SECONDS=NEVER, REFLECTION="on")
    asked: SimpleQueue[bytes | None] = SimpleQueue()
    asked.put(ServerReflectionRequest(list_services="").SerializeToString())
    reflect: Any = service.channel().stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=bytes,
        response_deserializer=bytes,
    )
    answers = reflect(iter(asked.get, None))
    next(answers)
    assert service.stop() == 0
    asked.put(None)
