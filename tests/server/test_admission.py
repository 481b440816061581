"""Who gets a thread: calls whose request is there, and only so many of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from structlog.testing import capture_logs

from server.health import LIVENESS
from server.settings import Settings
from storage.database import Database
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    GetTaskStatsRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.conftest import running_worker
from tests.e2e.postgres import await_waiting, locked_task
from tests.e2e.service import PATIENCE_SECONDS, SERVING, health, health_stub, wait_until
from tests.e2e.watching import Watch
from tests.server.errors import Failure, fails

Serve = Callable[..., grpc.Channel]

OURS = "/taskservice.v1.TaskService/"
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture
def serve(settings: Settings, database: Database, database_url: str) -> Iterator[Serve]:
    """Starts a service with settings of its own, on the shared database, which is empty."""
    with ExitStack() as running:

        def serve(**changes: object) -> grpc.Channel:
            own = settings.model_copy(update=changes)
            return running.enter_context(running_worker(own, database_url))

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
def busy(channel: grpc.Channel, database_url: str, count: int) -> Iterator[list[Any]]:
    """So many writes of one task, none of which gets on while this holds."""
    stub = TaskServiceStub(channel)
    task = stub.CreateTask(CreateTaskRequest(task=Task(title="old")))
    with locked_task(database_url, task.id):
        request = UpdateTaskRequest(task=Task(id=task.id, title="new"))
        calls = [stub.UpdateTask.future(request, timeout=PATIENCE_SECONDS) for _ in range(count)]
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


# A request that does not come.


def test_calls_that_send_no_request_hold_no_thread(serve: Serve) -> None:
    channel = serve(threads_per_worker=1)
    with silent_calls(channel, f"{OURS}GetTask", 20):
        stub = TaskServiceStub(channel)
        stub.GetTaskStats(GetTaskStatsRequest(), timeout=PATIENCE_SECONDS)


def test_calls_that_send_no_request_are_not_in_flight(serve: Serve) -> None:
    """Else a caller would take everybody's place with headers."""
    channel = serve(threads_per_worker=1, max_concurrent_calls=1)
    with silent_calls(channel, f"{OURS}GetTask", 20):
        stub = TaskServiceStub(channel)
        stub.GetTaskStats(GetTaskStatsRequest(), timeout=PATIENCE_SECONDS)


def test_a_probe_that_sends_no_request_does_not_stop_the_others(serve: Serve) -> None:
    channel = serve()
    with silent_calls(channel, "/grpc.health.v1.Health/Check", 20):
        assert health(channel, LIVENESS) == SERVING


def test_watches_that_send_no_request_take_no_place(serve: Serve) -> None:
    channel = serve(max_watches_per_worker=1)
    with silent_calls(channel, f"{OURS}WatchTasks", 40):
        watch = Watch(TaskServiceStub(channel))
        watch.bookmark()
        watch.cancel()


def test_a_call_whose_request_does_not_come_in_time_is_ended(serve: Serve) -> None:
    channel = serve(request_timeout_seconds=0.01)
    stub = TaskServiceStub(channel)
    with silent_calls(channel, f"{OURS}GetTask", 1) as (silent,):

        def is_ended() -> bool:
            stub.GetTaskStats(GetTaskStatsRequest())  # It is the next one that ends it.
            return not silent.is_active()

        wait_until(is_ended, "the silent call is ended")
        assert silent.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert silent.details() == "the request did not arrive in time"


def test_the_oldest_of_too_many_silent_calls_are_ended(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much time they have left: each costs memory."""
    monkeypatch.setattr("server.admission._MOST_AWAITED", 5)
    with silent_calls(serve(), f"{OURS}GetTask", 8) as calls:
        await_refused(calls, 3)


def test_a_call_without_a_request_is_refused(serve: Serve) -> None:
    call: Any = serve().stream_unary(
        f"{OURS}GetTask", request_serializer=bytes, response_deserializer=bytes
    )
    with pytest.raises(grpc.RpcError) as raised:
        call(iter(()), timeout=PATIENCE_SECONDS)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_health_watch_is_served(serve: Serve) -> None:
    """It is a stream, and gets its thread as calls do."""
    call = health_stub(serve()).Watch(health_pb2.HealthCheckRequest(service=LIVENESS))
    assert next(call).status == SERVING
    call.cancel()


# Only so many.


def test_calls_over_the_limit_are_refused_while_every_thread_is_busy(
    serve: Serve, database_url: str
) -> None:
    channel = serve(threads_per_worker=2, max_concurrent_calls=5)
    with busy(channel, database_url, 12) as calls:
        await_refused(calls, 7)
        for call in refused(calls):
            failure_of(call, EXHAUSTED, "TOO_MANY_CALLS")
        taken = [call for call in calls if not call.done()]
    assert {call.result().title for call in taken} == {"new"}


def test_a_refused_call_says_when_to_come_back(serve: Serve, database_url: str) -> None:
    """For people's programs, and for gRPC's own retries."""
    channel = serve(threads_per_worker=1, max_concurrent_calls=1)
    with busy(channel, database_url, 1):
        call: Any = TaskServiceStub(channel).GetTaskStats.future(GetTaskStatsRequest())
        failure = failure_of(call, EXHAUSTED, "TOO_MANY_CALLS")
    delay = failure.detail(error_details_pb2.RetryInfo).retry_delay
    assert delay.ToMilliseconds() > 0
    assert failure.pushback == str(delay.ToMilliseconds())


def test_those_who_come_back_are_served(serve: Serve, database_url: str) -> None:
    """Again and again: neither those served nor those refused stay in the count."""
    channel = serve(threads_per_worker=1, max_concurrent_calls=2)
    for _ in range(3):
        with busy(channel, database_url, 4) as calls:
            await_refused(calls, 2)
        for call in calls:
            assert call.exception() is None or call.code() is EXHAUSTED


def test_refused_calls_get_a_line_in_a_second_and_it_says_how_many(
    serve: Serve, database_url: str
) -> None:
    channel = serve(threads_per_worker=1, max_concurrent_calls=1)
    with capture_logs() as logs, busy(channel, database_url, 1):
        for _ in range(20):
            call: Any = TaskServiceStub(channel).GetTaskStats.future(GetTaskStatsRequest())
            failure_of(call, EXHAUSTED, "TOO_MANY_CALLS")
    lines = [line for line in logs if line.get("reason") == "TOO_MANY_CALLS"]
    assert 1 <= len(lines) < 20
    assert lines[0]["calls"] == 1


def test_a_call_that_nobody_waits_for_any_more_is_not_worked_on(
    serve: Serve, database_url: str
) -> None:
    """Its deadline passes in the queue. It is accounted for, as every call is."""
    channel = serve(threads_per_worker=1)
    stub = TaskServiceStub(channel)
    with capture_logs() as logs:
        with busy(channel, database_url, 1):
            with pytest.raises(grpc.RpcError) as raised:
                stub.CreateTask(CreateTaskRequest(task=Task(title="late")), timeout=0.2)
            assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert stub.GetTaskStats(GetTaskStatsRequest()).total == 1
    late = [line for line in logs if line.get("code") == "DEADLINE_EXCEEDED"]
    assert [(line["method"], line["reason"]) for line in late] == [
        (f"{OURS[1:]}CreateTask", "CALL_CANCELLED")
    ]
