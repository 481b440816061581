"""The log: its reader may disappear, and it never contains the clients' data."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from sqlalchemy import make_url

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    CreateTaskRequest,
    GetTaskRequest,
    GetTaskStatsRequest,
    ListTasksRequest,
    UpdateTaskRequest,
    WatchTasksRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.postgres import await_waiting, closed, execute, locked_task
from tests.support.scrape import await_scrape
from tests.support.service import PATIENCE_SECONDS, ServiceProcess, environment, wait_until

StartService = Callable[..., ServiceProcess]

SERVICE = "taskservice.v1.TaskService"
NO_TASK = GetTaskRequest(id="0190a8d0-1e2b-7c3d-8e4f-5a6b7c8d9e0f")


def call_lines(service: ServiceProcess, count: int = 1, **fields: str) -> list[dict[str, Any]]:
    """The lines of so many calls with these fields, once they are written."""

    def lines() -> list[dict[str, Any]]:
        found = [line for line in service.events("call") if fields.items() <= line.items()]
        return found if len(found) >= count else []

    lines_ = wait_until(lines, f"{count} lines of calls with {fields}")
    assert len(lines_) == count
    return lines_


def request_id(value: str) -> tuple[tuple[str, str], ...]:
    return (("x-request-id", value),)


def test_calls_succeed_when_the_log_is_not_read(tmp_path: Path, own_database_url: str) -> None:
    """The write is committed before it is logged."""
    settings = {"ENVIRONMENT": "development", "DATABASE_URL": own_database_url, "GRPC_PORT": "0"}
    reader, writer = os.pipe()
    service = subprocess.Popen(
        [sys.executable, "-m", "server", "serve"],
        env=environment(tmp_path, settings),
        cwd=tmp_path,
        stdout=writer,
    )
    os.close(writer)
    with os.fdopen(reader) as log:
        serving = next(line for line in log if "serving" in line)
    port = serving.partition("address=")[2].split()[0].rpartition(":")[2]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        grpc.channel_ready_future(channel).result(PATIENCE_SECONDS)
        task = TaskServiceStub(channel).CreateTask(CreateTaskRequest(task=Task(title="logged")))
    assert task.title == "logged"
    service.terminate()
    assert service.wait(PATIENCE_SECONDS) == 0


# --- A line for each call -------------------------------------------------------------------------

FIELDS = {
    "method",
    "code",
    "duration_ms",
    "principal",
    "peer",
    "request_id",
    "level",
    "trace_id",
    "span_id",
    "timestamp",
    "message",
}


def test_a_call_has_one_line_that_says_which_whose_and_how(shared_service: ServiceProcess) -> None:
    shared_service.stub().GetTaskStats(GetTaskStatsRequest(), metadata=request_id("one-line"))
    (line,) = call_lines(shared_service, request_id="one-line")
    assert line.keys() == FIELDS
    assert line["method"] == f"{SERVICE}/GetTaskStats"
    assert (line["code"], line["level"], line["principal"]) == ("OK", "info", "anonymous")
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert line["duration_ms"] > 0


def test_the_line_of_a_failed_call_has_its_reason(shared_service: ServiceProcess) -> None:
    with pytest.raises(grpc.RpcError):
        shared_service.stub().GetTask(NO_TASK, metadata=request_id("failed"))
    (line,) = call_lines(shared_service, request_id="failed")
    assert line.keys() == FIELDS | {"reason"}
    assert (line["code"], line["reason"]) == ("NOT_FOUND", "TASK_NOT_FOUND")
    assert line["level"] == "info"


@pytest.mark.parametrize("given", ["", "two words", "a" * 129])
def test_a_request_id_that_could_spoil_the_log_is_replaced(
    shared_service: ServiceProcess, given: str
) -> None:
    trace_id = uuid.uuid4().hex
    metadata = (("x-request-id", given), ("traceparent", f"00-{trace_id}-00f067aa0ba902b7-00"))
    shared_service.stub().GetTaskStats(GetTaskStatsRequest(), metadata=metadata)
    (line,) = call_lines(shared_service, trace_id=trace_id)
    assert re.fullmatch("[0-9a-f]{32}", line["request_id"])


def test_an_unknown_method_has_a_short_line(shared_service: ServiceProcess) -> None:
    """Without credentials, a client may send names of up to 8 KiB."""
    name = "a.Service/" + 4000 * "x"
    with pytest.raises(grpc.RpcError):
        shared_service.channel().unary_unary(f"/{name}", bytes, bytes)(b"")
    (line,) = call_lines(shared_service, method=name[:100])
    assert line["code"] == "UNIMPLEMENTED"
    assert 101 * "x" not in shared_service.log


# --- Slow calls -----------------------------------------------------------------------------------


def test_a_slow_call_is_a_warning_that_says_where_its_time_went(
    start_service: StartService, own_database_url: str
) -> None:
    """The first call waits in the database; the second one for a thread, of which there is one."""
    service = start_service(
        constants={"server.calls.accounting.SLOW_CALL_SECONDS": 0.001},
        ENVIRONMENT="staging",
        DATABASE_URL=own_database_url,
        WORKERS="1",
        THREADS_PER_WORKER="1",
        METRICS_PORT="0",
    )
    stub = service.stub()
    task = stub.CreateTask(CreateTaskRequest(task=Task(title="old")))
    update = UpdateTaskRequest(task=Task(id=task.id, title="new"))
    with locked_task(own_database_url, task.id):
        first: Any = stub.UpdateTask.future(update, metadata=request_id("first"))
        await_waiting(own_database_url)
        second: Any = stub.UpdateTask.future(update, metadata=request_id("second"))
        await_scrape(
            service, lambda seen: seen.value("taskservice_server_calls", state="queued") == 1, "one"
        )
        both_wait = time.monotonic()
        execute(own_database_url, "SELECT pg_sleep(0.01)")
        held_ms = (time.monotonic() - both_wait) * 1000
    assert [first.exception(), second.exception()] == [None, None]
    (first_line,) = call_lines(service, request_id="first")
    (second_line,) = call_lines(service, request_id="second")
    assert (first_line["level"], second_line["level"]) == ("warning", "warning")
    assert first_line["db_ms"] > held_ms
    assert second_line["queued_ms"] > held_ms
    for line in (first_line, second_line):
        assert line.keys() == FIELDS | {"queued_ms", "db_ms", "pool_ms"}
        assert line["queued_ms"] + line["db_ms"] + line["pool_ms"] < line["duration_ms"]


def test_a_watch_is_not_slow_however_long_it_lasts(
    start_service: StartService, own_database_url: str
) -> None:
    service = start_service(
        constants={"server.calls.accounting.SLOW_CALL_SECONDS": 0.000001},
        ENVIRONMENT="staging",
        DATABASE_URL=own_database_url,
        WORKERS="1",
    )
    watch: Any = service.stub().WatchTasks(WatchTasksRequest(), metadata=request_id("watch"))
    next(watch)
    watch.cancel()
    (line,) = call_lines(service, request_id="watch")
    assert line["level"] == "info"
    assert "db_ms" not in line


# --- What no line says ----------------------------------------------------------------------------

MARKER = "a-marker-of-mine"


def session(stub: TaskServiceStub, url: str) -> None:
    """All that a caller can write, in calls that go well and in calls that fail."""
    task = Task(title=MARKER, description=MARKER, assigned_to=MARKER, tags=[MARKER])
    metadata = (
        ("authorization", f"Bearer {MARKER}"),
        ("baggage", f"a={MARKER}"),
        ("cookie", MARKER),
        ("traceparent", f"00-{'1' * 32}-{'1' * 16}-01"),
        ("tracestate", MARKER),
    )
    made = stub.CreateTask(CreateTaskRequest(task=task), metadata=metadata)
    stub.BatchCreateTasks(BatchCreateTasksRequest(requests=[CreateTaskRequest(task=task)]))
    stub.UpdateTask(UpdateTaskRequest(task=Task(id=made.id, title=f"{MARKER} again")))
    stub.ListTasks(ListTasksRequest(filter=f'title = "{MARKER}" OR tags:"{MARKER}"'))
    watch: Any = stub.WatchTasks(
        WatchTasksRequest(filter=f'title = "{MARKER}"', send_initial_tasks=True)
    )
    next(watch)
    watch.cancel()
    execute(url, f"ALTER TABLE tasks ADD CONSTRAINT c CHECK (title <> '{MARKER}') NOT VALID")
    for fail in (
        lambda: stub.GetTask(GetTaskRequest(id=MARKER)),
        lambda: stub.ListTasks(ListTasksRequest(filter=f"{MARKER} = = {MARKER}")),
        lambda: stub.ListTasks(ListTasksRequest(page_token=MARKER, order_by=MARKER)),
        lambda: stub.CreateTask(CreateTaskRequest(task=task, request_id=MARKER)),
        lambda: stub.CreateTask(CreateTaskRequest(task=task)),
        lambda: stub.BatchCreateTasks(
            BatchCreateTasksRequest(requests=[CreateTaskRequest(task=task)])
        ),
    ):
        with pytest.raises(grpc.RpcError):
            fail()


def test_no_line_holds_what_callers_write_or_what_opens_the_database(
    start_service: StartService, own_database_url: str
) -> None:
    """At the level that says most: statements, and spans of all calls, are lines, too."""
    url = make_url(own_database_url).set(password="hush-hush")  # noqa: S106
    service = start_service(
        ENVIRONMENT="staging",
        DATABASE_URL=url.render_as_string(hide_password=False),
        SECRET_KEY="a-secret-key-of-at-least-32-characters",  # noqa: S106
        WORKERS="1",
        DEBUG="true",
        OTEL_TRACES_SAMPLER_ARG="1",
    )
    stub = service.stub()
    session(stub, own_database_url)
    with closed(own_database_url), pytest.raises(grpc.RpcError):
        stub.GetTask(NO_TASK)
    assert service.stop() == 0
    for line in (
        "INSERT INTO tasks",
        "DATABASE_UNAVAILABLE",
        "internal error",
        "db.operation.name",
    ):
        assert line in service.log
    for secret in (MARKER, "hush-hush", "a-secret-key"):
        lines = [line for line in service.lines if secret in line]
        assert lines == [], secret


# --- The level ------------------------------------------------------------------------------------


def listening(service: ServiceProcess) -> set[int]:
    """The workers that serve, and so receive signals."""
    return {pid for pid in service.workers() if _listens(pid)}


def _listens(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):  # It may be one that was just killed.
        sockets = psutil.Process(pid).net_connections("tcp")
        return any(socket.status == "LISTEN" for socket in sockets)
    return False


def test_signals_change_the_level_of_all_processes(
    start_service: StartService, own_database_url: str
) -> None:
    """Of those, too, that are started later. The supervisor passes a signal on to two workers."""
    service = start_service(ENVIRONMENT="staging", DATABASE_URL=own_database_url, WORKERS="2")
    service.await_log('"serving"')

    def send(number: signal.Signals, level: str, times: int) -> None:
        service.signal(number)
        wait_until(
            lambda: [e["to"] for e in service.events("log level changed")].count(level) == times,
            f"{level} {times} times",
        )

    send(signal.SIGUSR1, "DEBUG", 3)
    send(signal.SIGUSR1, "DEBUG", 6)  # There is no more to be said.
    service.stub().GetTaskStats(GetTaskStatsRequest(), metadata=request_id("verbose"))
    (line,) = call_lines(service, request_id="verbose")
    assert {"db_ms", "pool_ms", "queued_ms"} <= line.keys()
    assert [event["request_id"] for event in service.events("call began")] == ["verbose"]
    before = service.workers()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(listening(service) - before) == len(before), "other workers")
    service.stub().GetTaskStats(GetTaskStatsRequest(), metadata=request_id("verbose-too"))
    wait_until(lambda: len(service.events("call began")) == 2, "others are verbose, too")
    send(signal.SIGUSR2, "INFO", 3)
    send(signal.SIGUSR2, "WARNING", 3)
    service.stub().GetTaskStats(GetTaskStatsRequest(), metadata=request_id("silent"))
    assert service.stop() == 0
    assert "silent" not in service.log
