"""Admission: calls whose request has arrived get a thread, up to the limits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from server.network.health import LIVENESS
from server.settings import Settings
from storage.database import Database
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    GetTaskStatsRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import Failure, fails
from tests.support.postgres import await_waiting, locked_task
from tests.support.service import PATIENCE_SECONDS, SERVING, health, health_stub, wait_until
from tests.support.watching import Watch
from tests.support.workers import connection, served_port

Serve = Callable[..., Any]

OURS = "/taskservice.v1.TaskService/"
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture
def serve(settings: Settings, database: Database, database_url: str) -> Iterator[Serve]:
    """Starts a service with settings of its own, on the shared database, which is empty; returns
    so many connections to it, or the only one."""
    with ExitStack() as running:

        def serve(connections: int = 1, **changes: object) -> Any:
            own = settings.model_copy(update=changes)
            port = running.enter_context(served_port(own, database_url))
            all_ = [running.enter_context(connection(port)) for _ in range(connections)]
            return all_ if connections > 1 else all_[0]

        yield serve


@contextmanager
def silent_calls(channel: grpc.Channel, method: str, count: int) -> Iterator[list[Any]]:
    """Calls of which the service has the headers and, while this holds, no request."""
    silence = threading.Event()

    def nothing() -> Iterator[bytes]:
        silence.wait(PATIENCE_SECONDS)
        yield from ()

    call: Any = channel.stream_stream(method, request_serializer=bytes, response_deserializer=bytes)
    calls = [call(nothing()) for _ in range(count)]
    try:
        yield calls
    finally:
        for one in calls:
            one.cancel()
        silence.set()


@contextmanager
def busy(channels: list[grpc.Channel], database_url: str, count: int) -> Iterator[list[Any]]:
    """So many writes of one task, by the channels in turns; none gets on while this holds."""
    stubs = [TaskServiceStub(channel) for channel in channels]
    task = stubs[0].CreateTask(CreateTaskRequest(task=Task(title="old")))
    with locked_task(database_url, task.id):
        request = UpdateTaskRequest(task=Task(id=task.id, title="new"))
        calls = [
            stubs[n % len(stubs)].UpdateTask.future(request, timeout=PATIENCE_SECONDS)
            for n in range(count)
        ]
        await_waiting(database_url)
        yield calls


def refused(calls: list[Any]) -> list[Any]:
    return [call for call in calls if call.done()]


def await_refused(calls: list[Any], count: int) -> None:
    wait_until(lambda: len(refused(calls)) == count, f"{count} of {len(calls)} are refused")


def failure_of(call: Any, code: grpc.StatusCode, reason: str) -> Failure:
    with fails(code, reason) as failure:
        call.result()
    return failure


def errors_counted(reason: str) -> float:
    """How many errors this process has counted, of all methods."""
    return sum(
        sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == "taskservice_server_call_errors_total"
        and sample.labels["reason"] == reason
    )


def lines_of(logs: list[Any], method: str) -> list[Any]:
    return [line for line in logs if line.get("method", "").endswith(method)]


# A request that does not come.


def test_calls_that_send_no_request_hold_no_thread(serve: Serve) -> None:
    channel = serve(threads_per_worker=1)
    with silent_calls(channel, f"{OURS}GetTask", 20):
        stub = TaskServiceStub(channel)
        stub.GetTaskStats(GetTaskStatsRequest(), timeout=PATIENCE_SECONDS)


def test_calls_that_send_no_request_are_not_in_flight(serve: Serve) -> None:
    """Otherwise headers alone would use up the limit."""
    channel = serve(threads_per_worker=1, max_concurrent_calls=1)
    with silent_calls(channel, f"{OURS}GetTask", 20):
        stub = TaskServiceStub(channel)
        stub.GetTaskStats(GetTaskStatsRequest(), timeout=PATIENCE_SECONDS)


def test_a_probe_that_sends_no_request_does_not_stop_the_others(serve: Serve) -> None:
    channel = serve()
    with silent_calls(channel, "/grpc.health.v1.Health/Check", 20):
        assert health(channel, LIVENESS) == SERVING


def test_watches_that_send_no_request_take_no_place(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.tasks.watches.MAX_WATCHES", 1)
    channel = serve()
    with silent_calls(channel, f"{OURS}WatchTasks", 40):
        watch = Watch(TaskServiceStub(channel))
        watch.bookmark()
        watch.cancel()


def test_a_call_whose_request_does_not_come_in_time_is_ended(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock: no other call needs to come."""
    monkeypatch.setattr("server.calls.arrivals.REQUEST_SECONDS", 0.01)
    with silent_calls(serve(), f"{OURS}GetTask", 1) as (silent,):
        failure = failure_of(silent, grpc.StatusCode.DEADLINE_EXCEEDED, "REQUEST_TIMEOUT")
    assert failure.message == "the request did not arrive in time"


def test_a_probe_whose_request_does_not_come_in_time_is_ended(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not ours, and takes no way through the interceptors."""
    monkeypatch.setattr("server.calls.arrivals.REQUEST_SECONDS", 0.01)
    channel = serve()
    with silent_calls(channel, "/grpc.health.v1.Health/Check", 1) as (silent,):
        await_refused([silent], 1)
        assert silent.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert silent.details() == "the request did not arrive in time"


def test_the_oldest_of_too_many_silent_calls_are_ended(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much time they have left: each costs memory."""
    monkeypatch.setattr("server.calls.arrivals._MAX_WAITING", 5)
    with silent_calls(serve(), f"{OURS}GetTask", 8) as calls:
        await_refused(calls, 3)
        for call in refused(calls):
            failure_of(call, EXHAUSTED, "TOO_MANY_WAITING")


def test_silent_calls_that_are_ended_are_counted_and_share_log_lines(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.calls.arrivals.REQUEST_SECONDS", 0.01)
    before = errors_counted("REQUEST_TIMEOUT")
    with capture_logs() as logs:
        channel = serve()
        with silent_calls(channel, f"{OURS}GetTask", 20) as calls:
            await_refused(calls, 20)
    assert errors_counted("REQUEST_TIMEOUT") == before + 20
    lines = [line for line in logs if line.get("reason") == "REQUEST_TIMEOUT"]
    assert 1 <= len(lines) < 20


def test_a_call_without_a_request_is_refused(serve: Serve) -> None:
    call: Any = serve().stream_unary(
        f"{OURS}GetTask", request_serializer=bytes, response_deserializer=bytes
    )
    with fails(grpc.StatusCode.UNIMPLEMENTED, "REQUEST_MISSING"):
        call(iter(()), timeout=PATIENCE_SECONDS)


def test_a_call_that_is_cancelled_before_its_request_is_no_error(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.calls.arrivals.REQUEST_SECONDS", 0.01)
    before = errors_counted("REQUEST_MISSING")
    channel = serve()
    with silent_calls(channel, f"{OURS}GetTask", 20):
        pass
    with silent_calls(channel, f"{OURS}GetTask", 1) as (later,):
        await_refused([later], 1)
    assert errors_counted("REQUEST_MISSING") == before


def test_the_wait_for_the_request_is_not_one_for_a_thread(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a caller's slow upload would look like a service that is too busy."""
    monkeypatch.setattr("server.calls.accounting.SLOW_CALL_SECONDS", 1e-06)
    request = GetTaskStatsRequest().SerializeToString()
    channel = serve()
    call: Any = channel.stream_stream(
        f"{OURS}GetTaskStats", request_serializer=bytes, response_deserializer=bytes
    )
    stub = TaskServiceStub(channel)

    def late() -> Iterator[bytes]:
        for _ in range(20):
            stub.GetTaskStats(GetTaskStatsRequest())
        yield request

    with capture_logs() as logs:
        list(call(late(), timeout=PATIENCE_SECONDS))
    (line,) = sorted(lines_of(logs, "GetTaskStats"), key=lambda line: line["duration_ms"])[-1:]
    assert line["queued_ms"] < line["duration_ms"] / 2


def test_a_health_watch_is_served(serve: Serve) -> None:
    """It is a stream, and gets its thread as calls do."""
    call = health_stub(serve()).Watch(health_pb2.HealthCheckRequest(service=LIVENESS))
    assert next(call).status == SERVING
    call.cancel()


# Only so many.


def test_calls_over_the_limit_are_refused_while_every_thread_is_busy(
    serve: Serve, database_url: str
) -> None:
    channels = serve(6, threads_per_worker=2, max_concurrent_calls=5)
    with busy(channels, database_url, 12) as calls:
        await_refused(calls, 7)
        for call in refused(calls):
            failure_of(call, EXHAUSTED, "TOO_MANY_CALLS")
        taken = [call for call in calls if not call.done()]
    assert {call.result().title for call in taken} == {"new"}


def test_no_caller_has_more_than_half_of_the_places(serve: Serve, database_url: str) -> None:
    greedy, modest = serve(2, threads_per_worker=1, max_concurrent_calls=6)
    with busy([greedy], database_url, 10) as calls:
        await_refused(calls, 7)
        for call in refused(calls):
            failure_of(call, EXHAUSTED, "TOO_MANY_CALLS_OF_CALLER")
        other: Any = TaskServiceStub(modest).GetTaskStats.future(GetTaskStatsRequest())
    assert other.result().total == 1


def test_a_refused_call_says_when_to_retry(serve: Serve, database_url: str) -> None:
    """In the details, and in the trailer of gRPC's own retries."""
    channel = serve(threads_per_worker=1, max_concurrent_calls=1)
    with busy([channel], database_url, 1):
        call: Any = TaskServiceStub(channel).GetTaskStats.future(GetTaskStatsRequest())
        failure = failure_of(call, EXHAUSTED, "TOO_MANY_CALLS")
    delay = failure.detail(error_details_pb2.RetryInfo).retry_delay
    assert delay.ToMilliseconds() > 0
    assert failure.pushback == str(delay.ToMilliseconds())


def test_later_calls_are_served_after_refusals(serve: Serve, database_url: str) -> None:
    """Neither served nor refused calls stay in the count."""
    channels = serve(2, threads_per_worker=1, max_concurrent_calls=2)
    for _ in range(3):
        with busy(channels, database_url, 4) as calls:
            await_refused(calls, 2)
        for call in calls:
            assert call.exception() is None or call.code() is EXHAUSTED


def test_refused_calls_share_a_log_line_that_counts_them(serve: Serve, database_url: str) -> None:
    channel = serve(threads_per_worker=1, max_concurrent_calls=1)
    with capture_logs() as logs, busy([channel], database_url, 1):
        for _ in range(20):
            call: Any = TaskServiceStub(channel).GetTaskStats.future(GetTaskStatsRequest())
            failure_of(call, EXHAUSTED, "TOO_MANY_CALLS")
    lines = [line for line in logs if line.get("reason") == "TOO_MANY_CALLS"]
    assert 1 <= len(lines) < 20
    assert lines[0]["calls"] == 1


def test_a_call_whose_deadline_passes_in_the_queue_is_not_executed(
    serve: Serve, database_url: str
) -> None:
    """It is logged and counted like every call."""
    channel = serve(threads_per_worker=1)
    stub = TaskServiceStub(channel)
    with capture_logs() as logs:
        with busy([channel], database_url, 1):
            with pytest.raises(grpc.RpcError) as raised:
                stub.CreateTask(CreateTaskRequest(task=Task(title="late")), timeout=0.2)
            assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert stub.GetTaskStats(GetTaskStatsRequest()).total == 1
    late = [line for line in logs if line.get("code") == "DEADLINE_EXCEEDED"]
    assert [(line["method"], line["reason"]) for line in late] == [
        (f"{OURS[1:]}CreateTask", "CALL_CANCELLED")
    ]


# What goes wrong on the polling thread.


@pytest.mark.parametrize("name", ["call_", "stream_"])
def test_a_call_without_a_thread_is_refused_and_the_next_is_served(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As under a limit of processes. An exception on the polling thread would end the server."""
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name.startswith(name):
            raise RuntimeError("can't start new thread")
        start(thread)

    stub = TaskServiceStub(serve(threads_per_worker=1, max_concurrent_calls=1))
    calls: dict[str, Callable[[], object]] = {
        "call_": lambda: stub.GetTaskStats(GetTaskStatsRequest(), timeout=PATIENCE_SECONDS),
        "stream_": lambda: Watch(stub).bookmark(),
    }
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        for _ in range(2):
            with fails(grpc.StatusCode.UNAVAILABLE, "NO_THREAD"):
                calls[name]()
    calls[name]()


def test_an_error_in_admission_ends_its_call_and_no_other(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = TaskServiceStub(serve())
    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr("server.calls.arrivals.IncomingCall.peer", property({}.__getitem__))
        with pytest.raises(grpc.RpcError) as raised:
            stub.GetTaskStats(GetTaskStatsRequest(), timeout=PATIENCE_SECONDS)
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert "call admission failed" in [line["event"] for line in logs]
    stub.GetTaskStats(GetTaskStatsRequest(), timeout=PATIENCE_SECONDS)
