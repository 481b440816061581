"""The published service configs: the calls that a real gRPC client retries, and where."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from server.network.health import READINESS, HealthServicer
from taskservice.v1 import task_service_pb2
from taskservice.v1.task_service_pb2 import (
    GetTaskRequest,
    GetTaskStatsRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.ports import held_port
from tests.support.service import (
    NOT_SERVING,
    PATIENCE_SECONDS,
    SERVING,
    ServiceProcess,
    await_ready,
    wait_until,
)

CLIENT = Path(__file__).parents[2] / "deploy" / "client"
PLAIN = (CLIENT / "service_config.json").read_text()
WITH_REQUEST_IDS = (CLIENT / "service_config.request_ids.json").read_text()

SERVICE = task_service_pb2.DESCRIPTOR.services_by_name["TaskService"]
READS = ["GetTask", "ListTasks", "GetTaskStats", "ListTaskEvents", "BatchGetTasks"]
WITH_REQUEST_ID = ["CreateTask", "UpdateTask", "BatchCreateTasks", "BatchUpdateTasks"]
OTHER_WRITES = ["DeleteTask", "UndeleteTask", "BatchDeleteTasks", "PurgeTasks"]

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


class FailingServer(grpc.GenericRpcHandler):
    """A server that fails a set number of times, then answers every call with no bytes."""

    def __init__(self, port: int = 0) -> None:
        self.failures = 0
        self.code = UNAVAILABLE
        self.pushback = ""
        self.attempts: Counter[str] = Counter()
        self.health = HealthServicer()
        self.health.set(READINESS, SERVING)
        self._server = grpc.server(ThreadPoolExecutor(4))
        self.health.add_to(self._server)
        self._server.add_generic_rpc_handlers((self,))  # All that is not health.
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = details.method.rpartition("/")[2]
        return grpc.unary_unary_rpc_method_handler(lambda _, context: self._answer(method, context))

    def _answer(self, method: str, context: grpc.ServicerContext) -> bytes:
        self.attempts[method] += 1
        if self.attempts[method] <= self.failures:
            if self.pushback:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", self.pushback),))
            context.abort(self.code, "as configured")
        return b""

    def stop(self) -> None:
        self.health.end_watches()
        self._server.stop(0).wait()


@contextmanager
def closing_server(server: FailingServer) -> Iterator[FailingServer]:
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def serve() -> Iterator[Callable[[], FailingServer]]:
    with ExitStack() as servers:

        def start() -> FailingServer:
            server = FailingServer()
            servers.callback(server.stop)
            return server

        yield start


@pytest.fixture
def server(serve: Callable[[], FailingServer]) -> FailingServer:
    return serve()


@contextmanager
def client(config: str, *ports: int) -> Iterator[TaskServiceStub]:
    """A stub as gRPC makes it of a published config, for a service at these ports."""
    addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
    options = [("grpc.service_config", config), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"ipv4:{addresses}", options=options) as channel:
        yield TaskServiceStub(channel)


def call(stub: TaskServiceStub, method: str) -> grpc.StatusCode:
    """What a call with an empty request ends with."""
    request: type[Message] = GetMessageClass(SERVICE.methods_by_name[method].input_type)
    future: Any = getattr(stub, method).future(request(), wait_for_ready=True)
    return future.code()  # type: ignore[no-any-return]


# What is repeated.


@pytest.mark.parametrize("config", [PLAIN, WITH_REQUEST_IDS])
@pytest.mark.parametrize("method", READS)
def test_a_read_survives_three_failures(server: FailingServer, config: str, method: str) -> None:
    server.failures = 3
    with client(config, server.port) as stub:
        assert call(stub, method) is grpc.StatusCode.OK
    assert server.attempts[method] == 4


def test_a_read_gives_up_at_the_fourth_failure(server: FailingServer) -> None:
    server.failures = 4
    with client(PLAIN, server.port) as stub:
        assert call(stub, "GetTask") is UNAVAILABLE


@pytest.mark.parametrize("method", WITH_REQUEST_ID + OTHER_WRITES)
def test_a_write_is_not_repeated(server: FailingServer, method: str) -> None:
    """It may have taken place before the connection broke."""
    server.failures = 1
    with client(PLAIN, server.port) as stub:
        assert call(stub, method) is UNAVAILABLE
    assert server.attempts[method] == 1


@pytest.mark.parametrize("method", WITH_REQUEST_ID)
def test_a_write_with_a_request_id_is_repeated(server: FailingServer, method: str) -> None:
    server.failures = 3
    with client(WITH_REQUEST_IDS, server.port) as stub:
        assert call(stub, method) is grpc.StatusCode.OK


@pytest.mark.parametrize("method", OTHER_WRITES)
def test_a_write_that_has_no_request_id_is_never_repeated(
    server: FailingServer, method: str
) -> None:
    server.failures = 1
    with client(WITH_REQUEST_IDS, server.port) as stub:
        assert call(stub, method) is UNAVAILABLE
    assert server.attempts[method] == 1


@pytest.mark.parametrize("method", READS + WITH_REQUEST_ID + OTHER_WRITES)
def test_what_was_refused_is_repeated_when_the_server_says(
    server: FailingServer, method: str
) -> None:
    """Writes too: a call that was refused was not begun."""
    server.failures, server.code, server.pushback = 3, EXHAUSTED, "1"
    with client(PLAIN, server.port) as stub:
        assert call(stub, method) is grpc.StatusCode.OK


def test_a_permanent_failure_is_not_repeated(server: FailingServer) -> None:
    server.failures, server.code, server.pushback = 1, EXHAUSTED, "-1"
    with client(PLAIN, server.port) as stub:
        assert call(stub, "GetTask") is EXHAUSTED
    assert server.attempts["GetTask"] == 1


def test_what_is_wrong_with_a_request_is_not_repeated(server: FailingServer) -> None:
    server.failures, server.code = 1, grpc.StatusCode.INVALID_ARGUMENT
    with client(PLAIN, server.port) as stub:
        assert call(stub, "GetTask") is grpc.StatusCode.INVALID_ARGUMENT
    assert server.attempts["GetTask"] == 1


def test_a_storm_of_retries_is_throttled(server: FailingServer) -> None:
    """Four attempts for each call are what a server that fails needs least. As many are repeated as
    break off with a connection that is full of calls, and few of those that follow."""
    server.failures = 10**6
    with client(PLAIN, server.port) as stub:
        calls: list[Any] = [
            stub.GetTask.future(GetTaskRequest(), wait_for_ready=True) for _ in range(1000)
        ]
        assert {call.code() for call in calls} == {UNAVAILABLE}
    assert 1000 < server.attempts["GetTask"] < 1400


# What waits.


@pytest.mark.parametrize("config", [PLAIN, WITH_REQUEST_IDS])
@pytest.mark.parametrize("method", READS + WITH_REQUEST_ID + OTHER_WRITES)
def test_a_call_waits_for_a_connection(config: str, method: str) -> None:
    """A write, too: nothing of it was sent. Reconnecting takes gRPC a second and more."""
    with held_port() as port, client(config, port) as stub:
        request: type[Message] = GetMessageClass(SERVICE.methods_by_name[method].input_type)
        failed = getattr(stub, method).future(request(), wait_for_ready=False)
        assert failed.code() is UNAVAILABLE  # The connection has failed by now.
        waiting: Any = getattr(stub, method).future(request())
        with closing_server(FailingServer(port)):
            assert waiting.code() is grpc.StatusCode.OK


# Where to.


def test_calls_go_to_all_that_are_ready(serve: Callable[[], FailingServer]) -> None:
    servers = [serve(), serve()]
    with client(PLAIN, *(server.port for server in servers)) as stub:

        def have_both_been_called() -> bool:
            assert call(stub, "GetTask") is grpc.StatusCode.OK
            return all(server.attempts["GetTask"] for server in servers)

        wait_until(have_both_been_called, "both are called")


def test_calls_go_only_to_those_that_are_ready(serve: Callable[[], FailingServer]) -> None:
    """And to the others as soon as these are."""
    ready, other = serve(), serve()
    other.health.set(READINESS, NOT_SERVING)
    with client(PLAIN, ready.port, other.port) as stub:
        for _ in range(100):
            assert call(stub, "GetTask") is grpc.StatusCode.OK
        assert not other.attempts
        other.health.set(READINESS, SERVING)

        def has_been_called() -> bool:
            return call(stub, "GetTask") is grpc.StatusCode.OK and bool(other.attempts)

        wait_until(has_been_called, "the other one is called")


# The service itself.


@pytest.mark.parametrize("config", [PLAIN, WITH_REQUEST_IDS])
def test_the_service_is_found_ready(shared_service: ServiceProcess, config: str) -> None:
    """The config names the service whose health is readiness."""
    await_ready(shared_service.channel())
    with client(config, shared_service.port) as stub:
        stub.GetTaskStats(GetTaskStatsRequest(), wait_for_ready=True, timeout=PATIENCE_SECONDS)


def test_a_client_that_calls_too_often_waits_and_is_served(
    start_service: Callable[..., ServiceProcess], shared_database_url: str
) -> None:
    """gRPC's own retries follow the pushback of the service."""
    service = start_service(DATABASE_URL=shared_database_url, RATE_LIMIT_PER_SECOND="1")
    with client(PLAIN, service.port) as stub:
        for _ in range(4):
            stub.GetTaskStats(GetTaskStatsRequest(), wait_for_ready=True)


# The files.


@pytest.mark.parametrize("config", [PLAIN, WITH_REQUEST_IDS])
def test_every_method_stands_in_a_config_once(config: str) -> None:
    methods = [name for method in json.loads(config)["methodConfig"] for name in method["name"]]
    assert Counter((name["service"], name["method"]) for name in methods) == Counter(
        (SERVICE.full_name, method.name) for method in SERVICE.methods
    )


@pytest.mark.parametrize("config", [PLAIN, WITH_REQUEST_IDS])
def test_every_call_ends_but_a_watch(config: str) -> None:
    endless = [
        entry["name"] for entry in json.loads(config)["methodConfig"] if "timeout" not in entry
    ]
    assert [name["method"] for names in endless for name in names] == ["WatchTasks"]
