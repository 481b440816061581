"""The limits of a connection: how it begins, what it may carry, and when it ends."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import psutil
import pytest
from hyperframe.frame import GoAwayFrame, PingFrame, RstStreamFrame

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    GetTaskStatsRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.e2e.test_example import await_titles, create, watcher
from tests.support.http2 import PREFACE, RawConnection, call_headers, connected
from tests.support.postgres import await_none_waiting, await_waiting, locked_task
from tests.support.service import (
    PATIENCE_SECONDS,
    ServiceProcess,
    await_ready,
    running_service,
    wait_until,
)

ENHANCE_YOUR_CALM = 0xB
"""HTTP/2's error code for excessive load by a client."""

CONNECTIONS = "server.network.connections"

StartService = Callable[..., ServiceProcess]


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, shared_database_url: str
) -> Iterator[ServiceProcess]:
    """One process that takes little of everything."""
    with running_service(
        tmp_path_factory.mktemp("service"),
        (),
        {
            f"{CONNECTIONS}.MAX_STREAMS": 3,
            f"{CONNECTIONS}.HANDSHAKE_SECONDS": 0.5,
            f"{CONNECTIONS}.MAX_METADATA_BYTES": 8000,
        },
        ENVIRONMENT="staging",
        DATABASE_URL=shared_database_url,
        WORKERS="1",
    ) as service:
        await_ready(service.channel())
        yield service


@pytest.fixture
def start(start_service: StartService, own_database_url: str) -> StartService:
    """Starts a service in staging with a database of its own, and these limits of connections."""

    def start(**constants: float) -> ServiceProcess:
        return start_service(
            constants={f"{CONNECTIONS}.{name}": value for name, value in constants.items()},
            ENVIRONMENT="staging",
            DATABASE_URL=own_database_url,
            WORKERS="1",
        )

    return start


def call(stub: TaskServiceStub, *metadata: tuple[str, str]) -> None:
    stub.GetTaskStats(GetTaskStatsRequest(), timeout=PATIENCE_SECONDS, metadata=metadata)


def peers(service: ServiceProcess) -> set[str]:
    """The connections on which calls came so far."""
    return {event["peer"] for event in service.events("call")}


def await_younger_connections(service: ServiceProcess, stub: TaskServiceStub, count: int) -> None:
    """Calls until so many more of them have served. No call fails."""
    before = len(peers(service))

    def is_renewed() -> bool:
        call(stub)
        return len(peers(service)) >= before + count

    wait_until(is_renewed, f"{count} younger connections serve")


# --- How it begins --------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", PREFACE[:10], PREFACE], ids=["nothing", "half", "no more"])
def test_connection_without_a_complete_preface_is_closed(
    service: ServiceProcess, said: bytes
) -> None:
    with connected(service.port) as connection, suppress(ConnectionError):
        connection.sendall(said)
        while connection.recv(1000):  # Until it is closed, or else this times out.
            pass


def test_more_connections_than_allowed_are_closed_at_once(start: StartService) -> None:
    """Open connections stay; when one of them ends, another is accepted."""
    service = start(MAX_CONNECTIONS=3)
    with ExitStack() as opened:
        connections = [opened.enter_context(connected(service.port)) for _ in range(5)]
        # An accepted connection receives the server's settings first.
        assert [bool(connection.recv(1000)) for connection in connections] == [True] * 3 + [
            False
        ] * 2
        connections[0].close()
        service.channel()  # It tries until it is connected.


def test_limit_of_open_files_is_raised(start: StartService) -> None:
    """Each connection is one, and the soft limit of a shell or a container may be 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        service = start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert service.port
    assert psutil.Process(service.pid).rlimit(psutil.RLIMIT_NOFILE) == (hard, hard)


# --- What it carries ------------------------------------------------------------------------------


def test_clients_queue_calls_when_all_streams_are_taken(service: ServiceProcess) -> None:
    """The server announces its limit of streams. No call fails, not even while streams that have
    ended still count."""
    stub = service.stub()
    calls = [stub.GetTaskStats.future(GetTaskStatsRequest()) for _ in range(500)]
    assert {call.code() for call in calls} == {grpc.StatusCode.OK}


def test_stream_over_the_limit_is_refused(service: ServiceProcess) -> None:
    with RawConnection(service.port) as connection:
        connection.send(*(call_headers(stream) for stream in (1, 3, 5, 7)))
        refused = connection.await_frame(RstStreamFrame)
    assert (refused.stream_id, refused.error_code) == (7, ENHANCE_YOUR_CALM)


def test_metadata_within_the_limit_is_taken(service: ServiceProcess) -> None:
    """Every time: between a soft limit and a hard one chance would decide."""
    stub = service.stub()
    for _ in range(20):
        call(stub, ("x-large", "a" * 7000))


def test_metadata_over_the_limit_is_refused(service: ServiceProcess) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        call(service.stub(), ("x-large", "a" * 8001))
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_client_that_pings_all_the_time_is_disconnected(service: ServiceProcess) -> None:
    with RawConnection(service.port) as connection:
        connection.send(PingFrame(0, b"answer !"), times=10)
        goodbye = connection.await_frame(GoAwayFrame)
    assert (goodbye.error_code, goodbye.additional_data) == (ENHANCE_YOUR_CALM, b"too_many_pings")


def test_client_that_pings_as_often_as_it_may_stays(start: StartService) -> None:
    """With an open call, to detect a lost connection."""
    service = start(MIN_PING_INTERVAL_SECONDS=0.1)
    with RawConnection(service.port) as connection:
        connection.send(call_headers(1))
        connection.socket.settimeout(0.2)
        for _ in range(8):
            connection.send(PingFrame(0, b"you here"))
            with pytest.raises(TimeoutError):  # It has no more to say, for twice that long.
                assert [f for f in connection.received() if isinstance(f, GoAwayFrame)] == []


# --- When it ends ---------------------------------------------------------------------------------


def test_connection_without_calls_is_ended(start: StartService) -> None:
    service = start(IDLE_SECONDS=0.5)
    with RawConnection(service.port) as connection:
        assert connection.await_frame(GoAwayFrame).additional_data == b"connection idle"


def test_connection_with_a_call_is_not_idle(start: StartService, own_database_url: str) -> None:
    service = start(IDLE_SECONDS=0.5)
    stub = service.stub()
    task = stub.CreateTask(CreateTaskRequest(task=Task(title="a task")))
    with locked_task(own_database_url, task.id):
        update = stub.UpdateTask.future(UpdateTaskRequest(task=Task(id=task.id, title="new")))
        await_waiting(own_database_url)
        with RawConnection(service.port) as younger:
            younger.await_frame(GoAwayFrame)
    assert update.result(PATIENCE_SECONDS).title == "new"


def test_no_call_fails_when_connections_come_of_age(start: StartService) -> None:
    service = start(AGE_SECONDS=0.3)
    stub = service.stub()
    await_younger_connections(service, stub, 4)


def test_call_under_way_outlasts_the_age_of_its_connection(
    start: StartService, own_database_url: str
) -> None:
    service = start(AGE_SECONDS=0.3)
    stub = service.stub()
    task = stub.CreateTask(CreateTaskRequest(task=Task(title="a task")))
    with locked_task(own_database_url, task.id):
        update = stub.UpdateTask.future(UpdateTaskRequest(task=Task(id=task.id, title="new")))
        await_waiting(own_database_url)
        await_younger_connections(service, stub, 2)
    assert update.result(PATIENCE_SECONDS).title == "new"


def test_call_that_outlasts_the_grace_too_is_ended(
    start: StartService, own_database_url: str
) -> None:
    """And nothing runs for it any more."""
    service = start(AGE_SECONDS=0.3, AGE_GRACE_SECONDS=0.3)
    stub = service.stub()
    task = stub.CreateTask(CreateTaskRequest(task=Task(title="a task")))
    with locked_task(own_database_url, task.id):
        update = stub.UpdateTask.future(UpdateTaskRequest(task=Task(id=task.id, title="new")))
        assert update.code() is grpc.StatusCode.UNAVAILABLE
        await_none_waiting(own_database_url)


def test_watches_go_on_when_connections_come_of_age(start: StartService, tmp_path: Path) -> None:
    """On the next connection, by their tokens: the example misses nothing and repeats nothing."""
    service = start(AGE_SECONDS=0.3, AGE_GRACE_SECONDS=0.3)
    titles: list[str] = []

    def watches_ended() -> int:
        calls = service.events("call")
        return sum(call["method"].endswith("/WatchTasks") for call in calls)

    with watcher(service.port, tmp_path / "token") as received:
        while watches_ended() < 4:
            titles.append(f"task-{len(titles)}")
            create(service, titles[-1])
            await_titles(received, *titles)
