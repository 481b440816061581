"""HEALTH_PORT: the health service on a port of its own, for probes."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from server.network.health import LIVENESS, READINESS
from taskservice.v1.task_service_pb2 import GetTaskStatsRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.service import (
    NOT_SERVING,
    PATIENCE_SECONDS,
    SERVING,
    ServiceProcess,
    health,
    health_stub,
    running_service,
    wait_until,
)


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, shared_database_url: str
) -> Iterator[ServiceProcess]:
    """A service of two workers with a port for probes."""
    with running_service(
        tmp_path_factory.mktemp("service"),
        ENVIRONMENT="staging",
        DATABASE_URL=shared_database_url,
        WORKERS="2",
        HEALTH_PORT="0",
    ) as service:
        yield service


def probe_channel(service: ServiceProcess) -> grpc.Channel:
    service.await_log('"serving"')
    port = service.events("serving")[0]["health"]
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    grpc.channel_ready_future(channel).result(PATIENCE_SECONDS)
    return channel


@pytest.fixture(scope="module")
def probes(service: ServiceProcess) -> Iterator[grpc.Channel]:
    with probe_channel(service) as channel:
        yield channel


def is_unimplemented(raised: pytest.ExceptionInfo[grpc.RpcError]) -> bool:
    return raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("name", [LIVENESS, READINESS], ids=["liveness", "readiness"])
def test_probes_are_answered_on_their_port(probes: grpc.Channel, name: str) -> None:
    wait_until(lambda: health(probes, name) == SERVING, "the probe receives SERVING")


def test_probes_are_answered_on_the_port_of_the_service_too(service: ServiceProcess) -> None:
    assert health(service.channel(), LIVENESS) == SERVING


def test_tasks_are_not_served_on_the_port_for_probes(probes: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        TaskServiceStub(probes).GetTaskStats(GetTaskStatsRequest())
    assert is_unimplemented(raised)


def test_the_port_for_probes_does_not_describe_itself(probes: grpc.Channel) -> None:
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(probes)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with pytest.raises(grpc.RpcError) as raised:
        list(reflection.ServerReflectionInfo(iter([request])))
    assert is_unimplemented(raised)


@pytest.fixture
def plain(start_service: Callable[..., ServiceProcess], shared_database_url: str) -> ServiceProcess:
    """A service with a port for probes alone."""
    return start_service(
        ENVIRONMENT="staging", DATABASE_URL=shared_database_url, WORKERS="1", HEALTH_PORT="0"
    )


def test_a_watching_probe_receives_the_end(plain: ServiceProcess) -> None:
    with probe_channel(plain) as channel:
        watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest(service=LIVENESS))
        assert next(watch).status == SERVING
        assert plain.stop() == 0
        assert next(watch).status == NOT_SERVING


def test_a_port_for_probes_that_is_taken_ends_the_start(
    start_service: Callable[..., ServiceProcess], shared_database_url: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        other = start_service(
            ENVIRONMENT="staging", DATABASE_URL=shared_database_url, HEALTH_PORT=str(port)
        )
        assert other.wait() == 1
    assert f"cannot listen on 127.0.0.1:{port}" in other.log
    assert "HEALTH_PORT" in other.log
