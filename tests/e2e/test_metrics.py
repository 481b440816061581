"""The metrics that Prometheus scrapes at METRICS_PORT."""

from __future__ import annotations

import os
import platform
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib import metadata
from typing import Any

import grpc
import psutil
import pytest
from google.protobuf.message import Message
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import NullPool, create_engine, text

from server.settings import Settings
from taskservice.v1.task_pb2 import TASK_STATUS_COMPLETED, TASK_STATUS_PENDING, Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    GetTaskRequest,
    UpdateTaskRequest,
    WatchTasksRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.postgres import await_waiting, execute, locked_task
from tests.support.scrape import Scrape, await_scrape, fetch, scrape
from tests.support.service import ServiceProcess, running_service, wait_until

SERVICE = "taskservice.v1.TaskService"
CALLS = "grpc_server_call"
NO_TASK = GetTaskRequest(id="0190a8d0-1e2b-7c3d-8e4f-5a6b7c8d9e0f")


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, shared_database_url: str
) -> Iterator[ServiceProcess]:
    """A service of two workers that is scraped."""
    with running_service(
        tmp_path_factory.mktemp("pair"),
        (),
        {"server.jobs.census.INTERVAL_SECONDS": 1},
        ENVIRONMENT="staging",
        DATABASE_URL=shared_database_url,
        WORKERS="2",
        THREADS_PER_WORKER="2",
        METRICS_PORT="0",
    ) as service:
        await_both(service)
        yield service


def await_both(service: ServiceProcess) -> None:
    await_scrape(service, lambda seen: seen.workers() == {"0", "1"}, "a scrape of both workers")


@pytest.fixture(scope="module")
def channel(pair: ServiceProcess) -> grpc.Channel:
    return pair.channel()


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> TaskServiceStub:
    return TaskServiceStub(channel)


@pytest.fixture
def task(stub: TaskServiceStub) -> Task:
    return stub.CreateTask(CreateTaskRequest(task=Task(title="old")))


class Difference:
    """How much a sum has grown since this was made."""

    def __init__(self, service: ServiceProcess) -> None:
        self._service = service
        self._before = scrape(service)

    def of(self, name: str, **labels: str) -> float:
        return scrape(self._service).value(name, **labels) - self._before.value(name, **labels)

    def awaited(self, expected: float, name: str, **labels: str) -> None:
        """What is counted after the answer of a call may come after the caller has it."""
        wait_until(
            lambda: self.of(name, **labels) == expected, f"{name} {labels} grows by {expected}"
        )


# --- Calls ----------------------------------------------------------------------------------------


def test_a_call_is_counted_by_method_and_code(
    pair: ServiceProcess, stub: TaskServiceStub, task: Task
) -> None:
    method = f"{SERVICE}/GetTask"
    since = Difference(pair)
    for _ in range(3):
        stub.GetTask(GetTaskRequest(id=task.id))
    since.awaited(3, f"{CALLS}_duration_seconds_count", grpc_method=method, grpc_status="OK")
    assert since.of(f"{CALLS}_started_total", grpc_method=method) == 3
    assert since.of(f"{CALLS}_duration_seconds_count") == 3
    assert since.of(f"{CALLS}_duration_seconds_sum", grpc_method=method) > 0


def test_the_bytes_of_a_call_are_counted(
    pair: ServiceProcess, stub: TaskServiceStub, task: Task
) -> None:
    labels = {"grpc_method": f"{SERVICE}/GetTask", "grpc_status": "OK"}
    request = GetTaskRequest(id=task.id)
    since = Difference(pair)
    answer = stub.GetTask(request)
    size = "total_compressed_message_size_bytes"
    since.awaited(answer.ByteSize(), f"{CALLS}_sent_{size}_sum", **labels)
    since.awaited(request.ByteSize(), f"{CALLS}_rcvd_{size}_sum", **labels)
    assert since.of(f"{CALLS}_sent_{size}_count", **labels) == 1
    assert since.of(f"{CALLS}_rcvd_{size}_count", **labels) == 1


@pytest.mark.parametrize(
    ("request_", "code", "reason"),
    [(NO_TASK, "NOT_FOUND", "TASK_NOT_FOUND"), (b"\xff", "INVALID_ARGUMENT", "INVALID_REQUEST")],
)
def test_an_error_is_counted_by_its_reason(
    pair: ServiceProcess, channel: grpc.Channel, request_: Message | bytes, code: str, reason: str
) -> None:
    method = f"{SERVICE}/GetTask"
    since = Difference(pair)
    data = request_ if isinstance(request_, bytes) else request_.SerializeToString()
    with pytest.raises(grpc.RpcError):
        channel.unary_unary(f"/{method}", bytes, bytes)(data)
    since.awaited(1, f"{CALLS}_duration_seconds_count", grpc_method=method, grpc_status=code)
    assert since.of("taskservice_server_call_errors_total", grpc_method=method, reason=reason) == 1
    # A66 wants a call that has no answer among the sizes, too.
    sizes = f"{CALLS}_sent_total_compressed_message_size_bytes_count"
    assert since.of(sizes, grpc_method=method, grpc_status=code) == 1


def test_all_methods_that_there_are_not_are_one(
    pair: ServiceProcess, channel: grpc.Channel
) -> None:
    """Each invented method name would otherwise be a time series that is never removed."""
    since = Difference(pair)
    names = [secrets.token_hex(8) for _ in range(3)]
    for name in names:
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(f"/{SERVICE}/{name}", bytes, bytes)(b"")
    since.awaited(
        3, f"{CALLS}_duration_seconds_count", grpc_method="other", grpc_status="UNIMPLEMENTED"
    )
    assert since.of(f"{CALLS}_started_total", grpc_method="other") == 3
    exported = fetch(pair)[1]
    assert not any(name in exported for name in names)


def test_a_stream_is_counted_when_it_ends_with_all_that_it_sent(
    pair: ServiceProcess, stub: TaskServiceStub
) -> None:
    method = f"{SERVICE}/WatchTasks"
    since = Difference(pair)
    watch: Any = stub.WatchTasks(WatchTasksRequest())
    first = next(watch)
    since.awaited(1, f"{CALLS}_started_total", grpc_method=method)
    assert since.of(f"{CALLS}_duration_seconds_count", grpc_method=method) == 0
    watch.cancel()
    since.awaited(1, f"{CALLS}_duration_seconds_count", grpc_method=method, grpc_status="CANCELLED")
    sent = since.of(f"{CALLS}_sent_total_compressed_message_size_bytes_sum", grpc_method=method)
    assert sent == first.ByteSize()


def test_open_watches_are_shown(pair: ServiceProcess, stub: TaskServiceStub) -> None:
    watch: Any = stub.WatchTasks(WatchTasksRequest())
    next(watch)
    await_scrape(pair, lambda seen: seen.value("taskservice_watches", state="joined") == 1, "one")
    watch.cancel()
    await_scrape(pair, lambda seen: seen.value("taskservice_watches") == 0, "none")


def test_calls_in_flight_are_shown_those_that_run_and_those_that_wait(
    pair: ServiceProcess, stub: TaskServiceStub, task: Task, shared_database_url: str
) -> None:
    """A channel has one connection, and so one worker; that one has two threads, and gives one
    caller one of them."""
    update = UpdateTaskRequest(task=Task(id=task.id, title="new"))

    def in_flight(seen: Scrape) -> tuple[float, float]:
        calls = "taskservice_server_calls"
        return seen.value(calls, state="running"), seen.value(calls, state="queued")

    with locked_task(shared_database_url, task.id):
        calls: list[Any] = [stub.UpdateTask.future(update) for _ in range(5)]
        await_waiting(shared_database_url)
        await_scrape(pair, lambda seen: in_flight(seen) == (1, 4), "one runs, four wait")
    assert [call.exception() for call in calls] == [None] * 5
    await_scrape(pair, lambda seen: in_flight(seen) == (0, 0), "none is in flight")


# --- The database ---------------------------------------------------------------------------------


def test_connections_in_use_are_shown(
    pair: ServiceProcess, stub: TaskServiceStub, task: Task, shared_database_url: str
) -> None:
    connections = "db_client_connection_count"
    update = UpdateTaskRequest(task=Task(id=task.id, title="new"))
    with locked_task(shared_database_url, task.id):
        call: Any = stub.UpdateTask.future(update)
        await_waiting(shared_database_url)
        seen = scrape(pair)
        assert seen.value(connections, db_client_connection_state="used") >= 1
    assert call.exception() is None
    await_scrape(
        pair,
        lambda seen: (
            seen.value(connections, db_client_connection_state="used") == 0
            and seen.value(connections, db_client_connection_state="idle") >= 1
        ),
        "all connections are idle",
    )
    assert seen.value("db_client_connection_max") == 2 * (2 + 9 + 10)
    assert seen.samples("db_client_connection_pending_requests")


def test_statements_are_measured_by_what_they_are_for(
    pair: ServiceProcess, stub: TaskServiceStub, task: Task
) -> None:
    since = Difference(pair)
    stub.GetTask(GetTaskRequest(id=task.id))
    stub.GetTask(GetTaskRequest(id=task.id))
    assert since.of("db_client_operation_duration_seconds_count", db_operation_name="get") == 2
    assert since.of("db_client_connection_wait_time_seconds_count") >= 2


def test_a_statement_that_fails_is_measured_with_its_sqlstate(
    pair: ServiceProcess, stub: TaskServiceStub, task: Task, shared_database_url: str
) -> None:
    since = Difference(pair)
    update = UpdateTaskRequest(task=Task(id=task.id, title="new"))
    with locked_task(shared_database_url, task.id):
        call: Any = stub.UpdateTask.future(update)
        await_waiting(shared_database_url)
        call.cancel()
        since.awaited(
            1,
            "db_client_operation_duration_seconds_count",
            db_operation_name="update",
            error_type="57014",
        )


def test_tasks_are_counted_by_status_by_one_worker(
    pair: ServiceProcess, stub: TaskServiceStub, shared_database_url: str
) -> None:
    execute(shared_database_url, "TRUNCATE tasks")
    for status in (TASK_STATUS_PENDING, TASK_STATUS_PENDING, TASK_STATUS_COMPLETED):
        stub.CreateTask(CreateTaskRequest(task=Task(title="one", status=status)))
    execute(
        shared_database_url,
        "UPDATE tasks SET due_date = now() - interval '1 day' "
        "WHERE id IN (SELECT id FROM tasks WHERE completed_at IS NULL LIMIT 1)",
    )
    expected = {"PENDING": 2, "IN_PROGRESS": 0, "COMPLETED": 1, "CANCELLED": 0}

    def counted(seen: Scrape) -> bool:
        counts = [(each.labels["status"], each.value) for each in seen.samples("taskservice_tasks")]
        return sorted(counts) == sorted(expected.items())

    await_scrape(
        pair,
        lambda seen: counted(seen) and seen.value("taskservice_tasks_overdue") == 1,
        "the tasks are counted",
    )


@contextmanager
def open_transaction(url: str) -> Iterator[None]:
    """While this transaction is open, no watch receives what is written after it began."""
    with create_engine(url, poolclass=NullPool).begin() as connection:
        connection.execute(text("SELECT pg_current_xact_id()"))
        yield


def test_the_lag_of_events_is_shown(
    pair: ServiceProcess, stub: TaskServiceStub, shared_database_url: str
) -> None:
    with open_transaction(shared_database_url):
        stub.CreateTask(CreateTaskRequest(task=Task(title="not yet to be seen")))
        await_scrape(pair, lambda seen: seen.value("taskservice_events_lag_seconds") > 0, "a lag")
    await_scrape(pair, lambda seen: seen.value("taskservice_events_lag_seconds") == 0, "no lag")


# --- The process ----------------------------------------------------------------------------------


def test_what_a_process_uses_is_shown_for_each(pair: ServiceProcess) -> None:
    seen = scrape(pair)
    for name in (
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
    ):
        workers = sorted(sample.labels["worker"] for sample in seen.samples(name))
        assert workers == ["0", "1"], name
        assert all(sample.value > 0 for sample in seen.samples(name)), name


def test_the_build_is_shown(pair: ServiceProcess) -> None:
    builds = scrape(pair).samples(
        "taskservice_build_info",
        version=Settings().version,
        python_version=platform.python_version(),
        grpc_version=metadata.version("grpcio"),
    )
    assert [build.value for build in builds] == [1, 1]


# --- The port -------------------------------------------------------------------------------------


def test_every_scrape_has_all_workers(pair: ServiceProcess) -> None:
    """Whichever of them answers."""
    assert [scrape(pair).workers() for _ in range(20)] == [{"0", "1"}] * 20


def test_no_series_is_there_twice(pair: ServiceProcess) -> None:
    seen = scrape(pair)
    series = [
        (sample.name, *sorted(sample.labels.items()))
        for family in seen.families.values()
        for sample in family.samples
    ]
    assert len(series) == len(set(series))


def test_who_does_not_ask_for_openmetrics_gets_plain_text(pair: ServiceProcess) -> None:
    content_type, text = fetch(pair, accept="text/plain")
    assert content_type.startswith("text/plain")
    names = {family.name for family in text_string_to_metric_families(text)}
    assert f"{CALLS}_duration_seconds" in names
    assert "# EOF" not in text


# --- Workers that come and go: the last tests, for they leave others behind -----------------------


def test_scrapes_are_answered_while_a_worker_hangs(pair: ServiceProcess) -> None:
    """All but those that reach this very worker: they have to wait for it."""
    hung = min(pair.workers())
    with ThreadPoolExecutor(40) as scrapers:
        os.kill(hung, signal.SIGSTOP)
        try:
            scrapes = [scrapers.submit(scrape, pair) for _ in range(40)]
            answered = wait_until(
                lambda: [each for each in scrapes if each.done()][4:], "more than four are answered"
            )
        finally:
            os.kill(hung, signal.SIGCONT)
    assert all(len(each.result().workers()) == 1 for each in answered)
    await_both(pair)


def test_a_killed_worker_is_scraped_again_once_it_is_replaced(pair: ServiceProcess) -> None:
    victim = min(pair.workers())
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(pair.workers() - {victim}) == 2, "a new worker beside the old one")
    await_both(pair)


# --- Who keeps the port busy ----------------------------------------------------------------------


def test_silent_connections_take_few_threads_and_a_scrape_gets_through(
    start_service: Callable[..., ServiceProcess], own_database_url: str
) -> None:
    """The port has no authentication, and is in the process that serves."""
    service = start_service(ENVIRONMENT="staging", DATABASE_URL=own_database_url, METRICS_PORT="0")
    await_scrape(service, lambda _: True, "a scrape")
    process = psutil.Process(service.pid)
    before = process.num_threads()
    port = next(event["metrics"] for event in service.events("serving"))
    with ExitStack() as silent:
        for _ in range(100):
            silent.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert process.num_threads() < before + 50
        await_scrape(service, lambda _: True, "a scrape beside them")
