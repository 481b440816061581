"""Known attacks on HTTP/2: another client is served during each of them.

After the attack the process is the same, has released its memory, and serves.
"""

from __future__ import annotations

import gzip
import resource
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice, takewhile
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2
from hpack import Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    CreateTaskRequest,
    GetTaskStatsRequest,
    ListTasksRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.http2 import (
    HEALTH,
    PREFACE,
    SERVICE,
    RawConnection,
    call,
    call_headers,
    connected,
)
from tests.support.scrape import scrape
from tests.support.service import (
    PATIENCE_SECONDS,
    ServiceProcess,
    await_ready,
    is_alive,
    running_service,
    wait_until,
)

MEGABYTE = 1024 * 1024
MAY_REMAIN_BYTES = 100 * MEGABYTE
NO_OTHER_LIMIT = {"MAX_CONCURRENT_CALLS": "10000", "RATE_LIMIT_PER_SECOND": "1000000"}
"""Limits of calls are raised: these tests are about connections."""

CANCEL = 8
"""HTTP/2's code of an error for a stream that is not needed any more."""


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, shared_database_url: str
) -> Iterator[ServiceProcess]:
    """One process, with more to read than fits into its memory for unread answers."""
    with running_service(
        tmp_path_factory.mktemp("service"),
        (),
        {"server.calls.unread.MAX_BYTES": 16 * MEGABYTE},
        ENVIRONMENT="staging",
        DATABASE_URL=shared_database_url,
        WORKERS="1",
        METRICS_PORT="0",
        **NO_OTHER_LIMIT,
    ) as service:
        await_ready(service.channel())
        creations = [CreateTaskRequest(task=Task(title="t", description="d" * 2000))] * 1000
        service.stub().BatchCreateTasks(BatchCreateTasksRequest(requests=creations))
        _warm_up(service.stub())
        yield service


def _warm_up(stub: TaskServiceStub) -> None:
    """Allocate the memory that serving takes anyway."""
    lists = [stub.ListTasks.future(ListTasksRequest(page_size=1000)) for _ in range(40)]
    assert all(len(listed.result().tasks) == 1000 for listed in lists)


class Bystander:
    """A client that calls without a pause and records failures."""

    def __init__(self, stub: TaskServiceStub) -> None:
        self._stub = stub
        self._over = threading.Event()
        self.served = 0
        self.failures: list[str] = []
        self._thread = threading.Thread(target=self._call)
        self._thread.start()

    def _call(self) -> None:
        while not self._over.is_set():
            try:
                self._stub.GetTaskStats(GetTaskStatsRequest(), timeout=PATIENCE_SECONDS)
                self.served += 1
            except grpc.RpcError as error:
                self.failures.append(str(error))

    def is_served(self) -> None:
        """Waits for calls that began after now."""
        before = self.served
        wait_until(lambda: self.served >= before + 2 or self.failures, "the other client is served")

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


@contextmanager
def survived(service: ServiceProcess) -> Iterator[Bystander]:
    """Require that the block fails no call of another client and leaves no memory behind."""
    process = psutil.Process(service.pid)
    before = process.memory_info().rss
    bystander = Bystander(service.stub())
    try:
        bystander.is_served()
        yield bystander
        bystander.is_served()
        wait_until(
            lambda: process.memory_info().rss < before + MAY_REMAIN_BYTES, "memory is given back"
        )
    finally:
        bystander.stop()
    assert bystander.failures == []
    assert is_alive(service.channel())
    assert not service.ended, service.log


def test_rapid_reset(service: ServiceProcess) -> None:
    """CVE-2023-44487: streams that are cancelled as soon as they begin never reach the limit of
    streams at once, and yet each is work."""
    headers = call_headers(1).data
    with survived(service) as bystander, ExitStack() as opened:
        connections = [opened.enter_context(RawConnection(service.port)) for _ in range(4)]
        for first in range(1, 20_001, 200):
            resets = [
                frame
                for stream in range(first, first + 200, 2)
                for frame in (
                    HeadersFrame(stream, headers, flags=["END_HEADERS"]),
                    RstStreamFrame(stream, CANCEL),
                )
            ]
            for connection in connections:
                connection.send(*resets)
        bystander.is_served()


def test_continuation_flood(service: ServiceProcess) -> None:
    """CVE-2024-27316: headers that never end, so that no call begins and none is logged."""
    more = ContinuationFrame(1, Encoder().encode([("x-more", "a" * 15_000)]))
    with survived(service) as bystander, RawConnection(service.port) as connection:
        connection.send(HeadersFrame(1, call_headers(1).data))
        for _ in range(200):
            if not connection.send(more, times=64):
                break
        bystander.is_served()


def test_empty_continuation_flood(service: ServiceProcess) -> None:
    """Frames without a byte of headers count towards no limit of their size."""
    with survived(service) as bystander, RawConnection(service.port) as connection:
        connection.send(HeadersFrame(1, call_headers(1).data))
        for _ in range(1000):
            if not connection.send(ContinuationFrame(1), times=1000):
                break
        bystander.is_served()


def test_header_bomb(service: ServiceProcess) -> None:
    """A large header is sent once; that a byte means it again makes megabytes of kilobytes."""
    encoder = Encoder()
    with survived(service) as bystander, RawConnection(service.port) as connection:
        for stream in range(1, 500, 2):
            headers = call_headers(stream).data + encoder.encode([("x-bomb", "a" * 3000)])
            headers += encoder.encode([("x-bomb", "a" * 3000)]) * 12_000
            bomb = HeadersFrame(stream, headers, flags=["END_HEADERS", "END_STREAM"])
            if not connection.send(bomb):
                break
        bystander.is_served()


@pytest.mark.parametrize(
    "frame",
    [SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: 65_535}), PingFrame(0, b"flooding")],
    ids=["settings", "pings"],
)
def test_flood_of_frames_that_require_an_answer(
    service: ServiceProcess, frame: SettingsFrame | PingFrame
) -> None:
    """CVE-2019-9512, -9515: answers that are not read pile up."""
    with survived(service) as bystander, RawConnection(service.port) as connection:
        connection.socket.settimeout(1)
        for _ in range(200):
            try:
                if not connection.send(frame, times=1000):
                    break
            except TimeoutError:  # It reads no more of them before we read.
                break
        bystander.is_served()


def test_slow_handshakes(service: ServiceProcess) -> None:
    """Slow loris: connections that never complete a request."""
    with survived(service) as bystander, ExitStack() as opened:
        for size in range(500):
            connection = opened.enter_context(connected(service.port))
            connection.sendall(PREFACE[: size % len(PREFACE)])
        bystander.is_served()


def test_2000_idle_connections(service: ServiceProcess) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # For this side of them.
    with survived(service) as bystander, ExitStack() as opened:
        for _ in range(2000):
            opened.enter_context(RawConnection(service.port)).await_frame(SettingsFrame)
        bystander.is_served()


def test_gzip_bomb(service: ServiceProcess) -> None:
    """A request within the limit that would be 500 MB when it is unpacked."""
    bomb: Any = service.channel().unary_unary(
        f"{SERVICE}/BatchCreateTasks",
        request_serializer=lambda _: bytes(500 * MEGABYTE),
        response_deserializer=bytes,
    )
    assert len(gzip.compress(bytes(500 * MEGABYTE))) < MEGABYTE
    with survived(service):
        bombs = [bomb.future(None, compression=grpc.Compression.Gzip) for _ in range(2)]
        codes = {bomb.code() for bomb in bombs}
    assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_message_of_100_megabytes(service: ServiceProcess) -> None:
    """It is rejected by its announced size; the bytes that arrive anyway are dropped."""
    announced = bytes(1) + (100 * MEGABYTE).to_bytes(4, "big")
    with survived(service) as bystander, RawConnection(service.port) as connection:
        connection.send(call_headers(1), DataFrame(1, announced + bytes(16_000)))
        assert connection.await_frame(RstStreamFrame).stream_id == 1
        connection.socket.settimeout(1)
        for _ in range(100):
            try:
                if not connection.send(DataFrame(1, bytes(16_000)), times=64):
                    break
            except TimeoutError:  # It reads no more of this connection.
                break
        bystander.is_served()


def test_answers_that_are_not_read(service: ServiceProcess) -> None:
    """CVE-2019-9517: a window of 0 bytes keeps every answer in the server's memory.

    200 lists of 2 MB are asked for. What one reads oneself is not what gives way.
    """
    process = psutil.Process(service.pid)
    list_tasks = ListTasksRequest(page_size=1000)
    with survived(service) as bystander:
        before = process.memory_info().rss
        with RawConnection(service.port, {SettingsFrame.INITIAL_WINDOW_SIZE: 0}) as connection:
            for stream in range(1, 401, 2):
                connection.send(*call(stream, "ListTasks", list_tasks))
            ends = (f for f in connection.received() if isinstance(f, RstStreamFrame))
            dropped = islice(ends, 180)
            assert len(list(dropped)) == 180
            assert process.memory_info().rss < before + MAY_REMAIN_BYTES
            assert len(service.stub().ListTasks(list_tasks).tasks) == 1000
            bystander.is_served()
    dropped_count = scrape(service).value(
        "taskservice_server_call_errors_total", reason="ANSWER_NOT_READ"
    )
    assert 180 <= dropped_count <= 200
    assert 0 < len(service.events("answers were not read, and are dropped")) < 90


def test_a_slow_reader_keeps_its_answer_when_another_reads_nothing(
    service: ServiceProcess,
) -> None:
    """Its answer is the oldest; the connection with the most unread bytes is evicted from."""
    list_tasks = ListTasksRequest(page_size=1000)
    closed = {SettingsFrame.INITIAL_WINDOW_SIZE: 0}
    opened = SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: 8 * MEGABYTE})
    with RawConnection(service.port, closed) as slow, RawConnection(service.port, closed) as other:
        slow.send(*call(1, "ListTasks", list_tasks))
        frames = slow.received()
        next(frame for frame in frames if isinstance(frame, HeadersFrame))
        for stream in range(1, 101, 2):
            other.send(*call(stream, "ListTasks", list_tasks))
        ends = (f for f in other.received() if isinstance(f, RstStreamFrame))
        assert len(list(islice(ends, 30))) == 30
        slow.send(opened, WindowUpdateFrame(0, window_increment=8 * MEGABYTE))
        answer = list(takewhile(lambda frame: "END_STREAM" not in frame.flags, frames))
    assert sum(len(f.data) for f in answer if isinstance(f, DataFrame)) > 2_000_000


def test_watches_of_health_by_the_thousand(service: ServiceProcess) -> None:
    """Health needs no credentials: 40 connections with 255 Watches each."""
    request = health_pb2.HealthCheckRequest(service="x" * 10_000)
    with survived(service) as bystander, ExitStack() as opened:
        for _ in range(40):
            connection = opened.enter_context(RawConnection(service.port))
            for stream in range(1, 511, 2):
                connection.send(*call(stream, "Watch", request, HEALTH))
        bystander.is_served()
