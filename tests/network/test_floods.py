"""Floods of calls that need no credentials: reflection and health."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import jwt
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from hyperframe.frame import Frame, HeadersFrame, PingFrame, RstStreamFrame

from server.calls.admission import RequestPool
from server.network.health import LIVENESS, HealthServicer
from server.process.ports import Ports, WorkerSlot
from server.process.signals import Signals
from server.settings import Settings
from server.worker import Worker
from storage.database import Database
from taskservice.v1.task_service_pb2 import GetTaskStatsRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.credentials import SECRET_KEY, authorised, claims
from tests.support.errors import fails
from tests.support.http2 import HEALTH, RawConnection, call
from tests.support.service import PATIENCE_SECONDS, SERVING, health, health_stub, wait_until
from tests.support.workers import connection, served_port

Connect = Callable[[], grpc.Channel]

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
# Those at once, and one in each second that a test may take.
MANY = 100 + PATIENCE_SECONDS


@pytest.fixture
def one_request_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the rate of reflection, so that any machine exceeds it."""
    monkeypatch.setattr("server.calls.access._REFLECTION_PER_SECOND", 1)


@contextmanager
def serving(settings: Settings, database_url: str, **changes: object) -> Iterator[Connect]:
    """Connections to a service with settings of its own."""
    own = settings.model_copy(update=changes)
    with ExitStack() as running:
        port = running.enter_context(served_port(own, database_url))
        yield lambda: running.enter_context(connection(port))


# Reflection.


def answers_to(channel: grpc.Channel, questions: int, version: str = "v1") -> Iterator[Any]:
    """The answers to so many questions in one stream, until it ends."""
    call: Any = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=ServerReflectionRequest.SerializeToString,
        response_deserializer=bytes,
    )
    question = ServerReflectionRequest(list_services="")
    return iter(call(iter([question] * questions), timeout=PATIENCE_SECONDS))


def count_until_refused(answers: Iterator[Any]) -> int:
    """How many answers come before the stream is refused; it has to be."""
    count = 0
    with fails(EXHAUSTED, "RATE_LIMIT_EXCEEDED"):
        for _ in answers:
            count += 1
    return count


@pytest.mark.usefixtures("one_request_a_second")
@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_requests_in_one_stream_are_limited_where_nothing_else_is(
    settings: Settings, database_url: str, version: str
) -> None:
    """In development, where reflection is open and calls have no rate."""
    with serving(settings, database_url) as connect:
        assert 100 <= count_until_refused(answers_to(connect(), 1000, version)) <= MANY


@pytest.mark.usefixtures("one_request_a_second")
def test_each_connection_has_its_own_limit_of_reflection(
    settings: Settings, database_url: str
) -> None:
    with serving(settings, database_url) as connect:
        count_until_refused(answers_to(connect(), 1000))
        assert len(list(answers_to(connect(), 50))) == 50


def test_requests_in_one_stream_count_against_the_rate_of_the_principal(
    token_settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.calls.access.BURST_SECONDS", 5)
    limits = {"reflection": "authenticated", "rate_limit_per_second": 1}
    token = jwt.encode(claims(iss=None, aud=None), SECRET_KEY, "HS256")
    with serving(token_settings, database_url, **limits) as connect:
        channel = authorised(connect(), token)
        assert count_until_refused(answers_to(channel, 100)) < 100
        with fails(EXHAUSTED, "RATE_LIMIT_EXCEEDED"):
            for _ in range(100):
                TaskServiceStub(channel).GetTaskStats(GetTaskStatsRequest())


def test_unauthenticated_reflection_is_limited_by_connection(
    token_settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.calls.access.BURST_SECONDS", 5)
    limits = {"reflection": "on", "rate_limit_per_second": 1}
    with serving(token_settings, database_url, **limits) as connect:
        for _ in range(2):
            assert 4 <= count_until_refused(answers_to(connect(), 100)) < 100


def test_a_client_of_reflection_is_not_refused(settings: Settings, database_url: str) -> None:
    """A client of reflection sends some twenty requests."""
    with serving(settings, database_url) as connect:
        assert len(list(answers_to(connect(), 100))) == 100


# Health.


class Gate:
    """Checks wait here, with the thread of health, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        check: Any = HealthServicer._check

        def held(servicer: HealthServicer, request: Any, context: Any) -> Any:
            self.reached.set()
            self.opened.wait(PATIENCE_SECONDS)
            return check(servicer, request, context)

        monkeypatch.setattr(HealthServicer, "_check", held)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


def checks(channel: grpc.Channel, count: int) -> list[Any]:
    check: Any = health_stub(channel).Check
    request = health_pb2.HealthCheckRequest(service=LIVENESS)
    return [check.future(request, timeout=PATIENCE_SECONDS) for _ in range(count)]


def await_refused(calls: list[Any], count: int) -> None:
    wait_until(lambda: sum(call.done() for call in calls) == count, f"{count} are refused")
    assert {call.code() for call in calls if call.done()} == {EXHAUSTED}


def test_few_checks_of_a_connection_wait(
    settings: Settings, database: Database, database_url: str, gate: Gate
) -> None:
    """Others are checked, and served, all the same."""
    with serving(settings, database_url) as connect:
        flood = checks(connect(), 100)
        await_refused(flood, 100 - 16)
        other = checks(connect(), 10)
        stats = TaskServiceStub(connect()).GetTaskStats(GetTaskStatsRequest())
        assert stats.total == 0
        gate.opened.set()
        assert {call.result().status for call in other} == {SERVING}
        assert [call.code() for call in flood].count(grpc.StatusCode.OK) == 16


def test_few_checks_of_all_connections_wait(
    settings: Settings, database_url: str, gate: Gate
) -> None:
    with serving(settings, database_url) as connect:
        flood = [call for _ in range(8) for call in checks(connect(), 16)]
        await_refused(flood, 128 - 64)
        gate.opened.set()
        assert [call.code() for call in flood].count(grpc.StatusCode.OK) == 64
        assert health(connect(), LIVENESS) == SERVING


def test_a_probe_on_its_own_port_is_never_refused(
    settings: Settings, database_url: str, gate: Gate
) -> None:
    """A prober restarts a service that does not answer."""
    worker = Worker(settings, database_url, WorkerSlot(Ports(grpc=0, health=0)))
    port = worker.start().health
    assert port
    try:
        with connection(port) as channel:
            probes = checks(channel, 200)
            wait_until(gate.reached.is_set, "the thread of health is busy")
            gate.opened.set()
            assert {call.result().status for call in probes} == {SERVING}
    finally:
        with Signals() as signals:
            worker.drain(signals)


def _ends(frame: Frame) -> bool:
    return isinstance(frame, RstStreamFrame) or "END_STREAM" in frame.flags


def test_calls_that_wait_for_the_polling_thread_all_get_a_status(
    settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over 3,000, gRPC's core would drop new calls of every client."""
    submit, opened = RequestPool.submit, threading.Event()

    def held(pool: RequestPool, *arguments: Any, **names: Any) -> Any:
        opened.wait(PATIENCE_SECONDS)
        return submit(pool, *arguments, **names)

    monkeypatch.setattr(RequestPool, "submit", held)
    request = health_pb2.HealthCheckRequest(service=LIVENESS)
    streams = range(1, 401, 2)
    with ExitStack() as running:
        port = running.enter_context(served_port(settings, database_url))
        connections = [running.enter_context(RawConnection(port)) for _ in range(17)]
        for one in connections:
            for stream in streams:
                one.send(*call(stream, "Check", request, HEALTH))
            one.send(PingFrame(0, b"all sent"))
            one.await_frame(PingFrame)
        opened.set()
        for one in connections:
            frames = one.received()
            for _ in streams:
                last = next(frame for frame in frames if frame.stream_id and _ends(frame))
                assert isinstance(last, HeadersFrame), last


def test_a_name_that_is_too_long_for_a_service_is_unknown(channel: grpc.Channel) -> None:
    """It is not kept, however many wait."""
    with pytest.raises(grpc.RpcError) as raised:
        health(channel, "x" * 100_000)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
