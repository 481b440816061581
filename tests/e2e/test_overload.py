"""Overload: calls above the limit are rejected, and nothing of them remains."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, NamedTuple

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status

from server.network.health import READINESS
from server.settings import Settings
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    CreateTaskRequest,
    ListTasksRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.postgres import (
    await_waiting,
    locked_task,
    running_statements,
    waiting_statements,
)
from tests.support.scrape import scrape
from tests.support.service import (
    SERVING,
    ServiceProcess,
    await_ready,
    health,
    running_service,
    wait_until,
)

THREADS = 4
LIMIT = 16
# A call leaves its place a moment after it is answered: the next one may find all threads' taken.
FULL = LIMIT - THREADS
# Each is a caller of its own, which gets at most half of the limit.
CONNECTIONS = 3
WAVES = 4
WAVE_SECONDS = 1.5
LIST = "/taskservice.v1.TaskService/ListTasks"


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, shared_database_url: str
) -> Iterator[ServiceProcess]:
    """A service with a small pool and a low limit of calls."""
    with running_service(
        tmp_path_factory.mktemp("service"),
        (),
        {"server.settings.Settings.pool_overflow": 0},
        ENVIRONMENT="staging",
        DATABASE_URL=shared_database_url,
        HEALTH_PORT="0",
        MAX_CONCURRENT_CALLS=str(LIMIT),
        METRICS_PORT="0",
        THREADS_PER_WORKER=str(THREADS),
        WORKERS="1",
    ) as service:
        await_ready(service.channel())
        yield service


def port(service: ServiceProcess, name: str) -> int:
    service.await_log('"serving"')
    return int(service.events("serving")[0][name])


def in_flight_calls(service: ServiceProcess) -> float:
    return scrape(service).value("taskservice_server_calls")


def used_connections(service: ServiceProcess) -> float:
    return scrape(service).value("db_client_connection_count", db_client_connection_state="used")


@contextmanager
def over_and_over(action: Callable[[], object], results: list[Any]) -> Iterator[None]:
    """Does something again and again beside the block, and keeps what it returns."""
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            try:
                results.append(action())
            except Exception as error:
                results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Wave(NamedTuple):
    """The answers and refusals of callers that began at once."""

    answers: int
    refusals: list[grpc.aio.AioRpcError]


def retry_seconds(refusal: grpc.aio.AioRpcError) -> float | None:
    """Return the wait that the refusal names, or None."""
    status = rpc_status.from_call(refusal)  # type: ignore[arg-type]
    retry = RetryInfo()
    if status is None or not any(detail.Unpack(retry) for detail in status.details):
        return None
    return retry.retry_delay.ToMilliseconds() / 1000


@asynccontextmanager
async def connections(address: str) -> AsyncIterator[list[grpc.aio.Channel]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
            )
            for _ in range(CONNECTIONS)
        ]


async def wave(channels: list[grpc.aio.Channel], callers: int) -> Wave:
    """Run callers that call again after each answer, or after the wait that a refusal names."""
    methods: list[Any] = [
        channel.unary_unary(
            LIST, request_serializer=ListTasksRequest.SerializeToString, response_deserializer=bytes
        )
        for channel in channels
    ]
    end = time.monotonic() + WAVE_SECONDS
    answers, refusals = 0, []

    async def caller(list_tasks: Any) -> None:
        nonlocal answers
        while (left := end - time.monotonic()) > 0:
            try:
                await list_tasks(ListTasksRequest(page_size=20))
                answers += 1
            except grpc.aio.AioRpcError as error:
                refusals.append(error)
                await asyncio.sleep(min(left, retry_seconds(error) or 0))

    await asyncio.gather(*(caller(methods[n % CONNECTIONS]) for n in range(callers)))
    return Wave(answers, refusals)


class Overload(NamedTuple):
    """Waves of as many callers as are taken, each followed by one of four times as many."""

    full: list[Wave]
    over: list[Wave]
    in_flight: list[float]
    probes: list[int]

    @property
    def refusals(self) -> list[grpc.aio.AioRpcError]:
        return [refusal for wave in self.over for refusal in wave.refusals]


async def _waves(address: str) -> tuple[list[Wave], list[Wave]]:
    full, over = [], []
    async with connections(address) as channels:
        await wave(channels, FULL)  # Connections and caches are filled.
        for _ in range(WAVES):
            full.append(await wave(channels, FULL))
            over.append(await wave(channels, 4 * LIMIT))
    return full, over


@pytest.fixture(scope="module")
def overload(service: ServiceProcess) -> Overload:
    tasks = [CreateTaskRequest(task=Task(title=f"task {n}")) for n in range(100)]
    service.stub().BatchCreateTasks(BatchCreateTasksRequest(requests=tasks))
    in_flight: list[Any] = []
    probes: list[Any] = []
    with (
        grpc.insecure_channel(f"127.0.0.1:{port(service, 'health')}") as channel,
        over_and_over(lambda: health(channel, READINESS), probes),
        over_and_over(lambda: in_flight_calls(service), in_flight),
    ):
        full, over = asyncio.run(_waves(f"127.0.0.1:{service.port}"))
    return Overload(full, over, in_flight, probes)


def test_work_goes_on_while_four_times_the_callers_call(overload: Overload) -> None:
    assert all(wave.answers >= LIMIT for wave in overload.over)


def test_every_refusal_says_when_to_retry(overload: Overload) -> None:
    assert overload.refusals
    assert all(retry_seconds(refusal) for refusal in overload.refusals)


def test_calls_fail_only_with_resource_exhausted(overload: Overload) -> None:
    """An admitted call always gets a connection."""
    codes = {refusal.code() for refusal in overload.refusals}
    assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_as_many_callers_as_are_taken_are_not_refused(overload: Overload) -> None:
    assert not [refusal for wave in overload.full for refusal in wave.refusals]


def test_calls_in_flight_never_exceed_the_limit(overload: Overload) -> None:
    assert 0 < max(overload.in_flight) <= LIMIT


def test_probes_are_answered_throughout(overload: Overload) -> None:
    assert set(overload.probes) == {SERVING}


def test_every_refusal_is_counted(service: ServiceProcess, overload: Overload) -> None:
    seen, name = scrape(service), "taskservice_server_call_errors_total"
    reasons = "TOO_MANY_CALLS", "TOO_MANY_CALLS_OF_CALLER"
    assert sum(seen.value(name, reason=reason) for reason in reasons) == len(overload.refusals)


def test_clients_see_no_more_calls_accepted_than_there_are_places(
    service: ServiceProcess, shared_database_url: str
) -> None:
    """As the clients and PostgreSQL count them, whatever the service says."""
    task = service.stub().CreateTask(CreateTaskRequest(task=Task(title="old")))
    request = UpdateTaskRequest(task=Task(id=task.id, title="new"))
    stubs = [service.stub() for _ in range(4)]
    with locked_task(shared_database_url, task.id):
        calls: list[Any] = [stub.UpdateTask.future(request) for stub in stubs * LIMIT]
        await_waiting(shared_database_url, THREADS)
        wait_until(
            lambda: sum(not call.done() for call in calls) == LIMIT, "only the accepted are left"
        )
        assert waiting_statements(shared_database_url) == THREADS
        most = Settings(threads_per_worker=THREADS).pool_size
        assert THREADS <= running_statements(shared_database_url) <= most
        accepted = [call for call in calls if not call.done()]
    assert {call.code() for call in accepted} == {grpc.StatusCode.OK}


def test_nothing_is_left_of_ten_thousand_cancelled_calls(
    service: ServiceProcess, shared_database_url: str
) -> None:
    task = service.stub().CreateTask(CreateTaskRequest(task=Task(title="old")))
    request = UpdateTaskRequest(task=Task(id=task.id, title="new"))

    async def call_and_cancel() -> None:
        async with connections(f"127.0.0.1:{service.port}") as channels:
            stubs: list[Any] = [TaskServiceStub(channel) for channel in channels]
            for _ in range(100):
                calls = [stubs[n % CONNECTIONS].UpdateTask(request) for n in range(100)]
                # The first to be refused: all others have arrived, or are about to.
                waits = [asyncio.ensure_future(call.code()) for call in calls]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for call in calls:
                    call.cancel()
                await asyncio.wait(waits)

    with locked_task(shared_database_url, task.id):
        asyncio.run(call_and_cancel())
        wait_until(
            lambda: (
                running_statements(shared_database_url) == 0
                and in_flight_calls(service) == used_connections(service) == 0
            ),
            "no statement of them runs, no call is in flight, no connection in use",
        )
