"""A collector that is unreachable, rejects or hangs costs callers nothing, and one log line."""

from __future__ import annotations

import json
import secrets
import signal
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    GetTaskStatsRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.collector import Collector, running_collector
from tests.support.postgres import await_waiting, locked_task
from tests.support.service import PATIENCE_SECONDS, ServiceProcess, wait_until

# Before Kubernetes kills what it has told to end.
ORCHESTRATORS_PATIENCE_SECONDS = 25

OFTEN, NEVER = "50", "3600000"
OFTEN_PUSHED = {"OTEL_BSP_SCHEDULE_DELAY": OFTEN}
OFTEN_GIVEN_UP = OFTEN_PUSHED | {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
PUSHED_AT_THE_END = {"OTEL_BSP_SCHEDULE_DELAY": NEVER}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with running_collector() as collector:
        yield collector


@pytest.fixture
def start(
    start_service: Callable[..., ServiceProcess], shared_database_url: str, collector: Collector
) -> Callable[..., ServiceProcess]:
    """Start a service that exports every call to the collector."""

    def start(**settings: str) -> ServiceProcess:
        return start_service(
            ENVIRONMENT="staging",
            DATABASE_URL=shared_database_url,
            WORKERS="1",
            OTEL_EXPORTER_ENDPOINT=collector.endpoint,
            OTEL_TRACES_SAMPLER_ARG="1",
            **settings,
        )

    return start


def call(stub: TaskServiceStub) -> str:
    """Makes a call that succeeds; returns the id of its trace."""
    trace_id = secrets.token_hex(16)
    stub.GetTaskStats(
        GetTaskStatsRequest(),
        timeout=PATIENCE_SECONDS,
        metadata=(("traceparent", f"00-{trace_id}-{secrets.token_hex(8)}-01"),),
    )
    return trace_id


def complaints(service: ServiceProcess) -> list[str]:
    """The log lines that are not about the service itself."""
    own = service.events("starting", "serving", "ready", "call", "draining", "stopped")
    return [line for line in list(service.lines) if parsed(line) not in own]


def parsed(line: str) -> Any:
    return json.loads(line) if line.startswith("{") else line


def test_a_collector_that_refuses_costs_one_line(
    start: Callable[..., ServiceProcess], collector: Collector
) -> None:
    """For every retry and every failed export within a minute."""
    service = start(**OFTEN_GIVEN_UP)
    stub = service.stub()
    with collector.refusing(grpc.StatusCode.UNAVAILABLE):

        def refused_often() -> bool:
            call(stub)
            return collector.requests > 12

        wait_until(refused_often, "more than a dozen requests are refused")
        assert service.stop() == 0
    assert len(complaints(service)) == 1, complaints(service)
    assert "UNAVAILABLE" in complaints(service)[0]


def test_a_collector_that_is_away_costs_one_line(
    start: Callable[..., ServiceProcess], collector: Collector
) -> None:
    collector.stop()
    service = start(**OFTEN_GIVEN_UP)
    stub = service.stub()

    def told() -> list[str]:
        call(stub)
        return complaints(service)

    assert "UNAVAILABLE" in wait_until(told, "the log tells of the collector")[0]
    for _ in range(100):
        call(stub)
    assert service.stop() == 0
    assert len(complaints(service)) == 1, complaints(service)


def test_a_collector_that_comes_back_gets_what_follows(
    start: Callable[..., ServiceProcess], collector: Collector
) -> None:
    service = start(**OFTEN_GIVEN_UP)
    stub = service.stub()
    collector.await_server_span(call(stub))
    collector.stop()
    call(stub)
    wait_until(lambda: complaints(service), "the service has missed it")
    collector.start()
    wait_until(lambda: collector.trace(call(stub)), "spans arrive again")


def test_calls_do_not_wait_for_a_collector_that_hangs(
    start: Callable[..., ServiceProcess], collector: Collector
) -> None:
    """Nor does the end of the service, which would be killed for that."""
    service = start(**OFTEN_PUSHED, OTEL_EXPORTER_OTLP_TIMEOUT="3600")
    stub = service.stub()
    with collector.hanging():
        wait_until(lambda: call(stub) and collector.requests, "an export hangs")
        for _ in range(100):
            call(stub)
        service.signal(signal.SIGTERM)
        assert service.wait(ORCHESTRATORS_PATIENCE_SECONDS) == 0


def test_the_last_spans_are_exported_at_the_end(
    start: Callable[..., ServiceProcess], collector: Collector
) -> None:
    service = start(**PUSHED_AT_THE_END)
    trace_id = call(service.stub())
    assert collector.requests == 0
    assert service.stop() == 0
    assert collector.trace(trace_id)


def test_the_span_of_a_call_that_the_end_waits_for_is_sent(
    start: Callable[..., ServiceProcess], collector: Collector, shared_database_url: str
) -> None:
    service = start(**PUSHED_AT_THE_END)
    stub = service.stub()
    task = stub.CreateTask(CreateTaskRequest(task=Task(title="old")))
    trace_id = secrets.token_hex(16)
    with locked_task(shared_database_url, task.id):
        running: Any = stub.UpdateTask.future(
            UpdateTaskRequest(task=Task(id=task.id, title="new")),
            metadata=(("traceparent", f"00-{trace_id}-{secrets.token_hex(8)}-01"),),
        )
        await_waiting(shared_database_url)
        service.signal(signal.SIGTERM)
        service.await_log('"draining"')
    assert running.result().title == "new"
    assert service.wait() == 0
    assert collector.await_server_span(trace_id).attributes["rpc.method"] == "UpdateTask"
