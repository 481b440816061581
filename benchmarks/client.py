"""Measure what the Python client adds to the CPU of a bare stub's call, side by side in rounds."""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from benchmarks.database import running_database
from benchmarks.subjects import running_subject, service_off
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest, GetTaskRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from taskservice_client import AsyncTaskClient, TaskClient

ALLOWED = 1.15

_ROWS = 1_000
_CALLS = 400
_TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True)
class Cost:
    """The CPU of a call, in microseconds: medians of the rounds."""

    name: str
    bare_us: float
    client_us: float

    @property
    def ratio(self) -> float:
        """Return the cost by the client against that by a bare stub."""
        return self.client_us / self.bare_us


def check(rounds: int) -> None:
    """Print the costs. Raises: SystemExit, if the client adds more than is allowed."""
    costs = measure(rounds)
    for cost in costs:
        print(
            f"{cost.name:20} bare {cost.bare_us:6.1f} µs, client {cost.client_us:6.1f} µs,"
            f" {cost.ratio - 1:+.1%}"
        )
    if worst := [cost.name for cost in costs if cost.ratio > ALLOWED]:
        raise SystemExit(f"The client adds more than {ALLOWED - 1:.0%}: {', '.join(worst)}")


def measure(rounds: int) -> list[Cost]:
    """Measure a read and a write, by threads and by asyncio."""
    with _service() as (address, task_id):
        return [*_by_threads(address, task_id, rounds), *_by_asyncio(address, task_id, rounds)]


@contextmanager
def _service() -> Iterator[tuple[str, str]]:
    """Run the service; yield its address and the id of a task."""
    with running_database(_ROWS) as database:
        (task_id,) = database.task_ids(1)
        with running_subject(service_off(), database) as subject:
            yield subject.address, task_id


def _by_threads(address: str, task_id: str, rounds: int) -> list[Cost]:
    with grpc.insecure_channel(address) as channel, TaskClient(address) as client:
        stub = TaskServiceStub(channel)

        def bare_get() -> object:
            return stub.GetTask(GetTaskRequest(id=task_id), timeout=_TIMEOUT_SECONDS)

        def bare_create() -> object:
            return stub.CreateTask(_creation(), timeout=_TIMEOUT_SECONDS)

        return [
            _cost("get", bare_get, lambda: client.get(task_id), rounds),
            _cost("create", bare_create, lambda: client.create(title="a task"), rounds),
        ]


def _by_asyncio(address: str, task_id: str, rounds: int) -> list[Cost]:
    async def run() -> list[Cost]:
        async with (
            grpc.aio.insecure_channel(address) as channel,
            AsyncTaskClient(address) as client,
        ):
            stub = TaskServiceStub(channel)

            async def bare_get() -> object:
                return await stub.GetTask(GetTaskRequest(id=task_id), timeout=_TIMEOUT_SECONDS)

            async def bare_create() -> object:
                return await stub.CreateTask(_creation(), timeout=_TIMEOUT_SECONDS)

            return [
                await _async_cost("get", bare_get, lambda: client.get(task_id), rounds),
                await _async_cost(
                    "create", bare_create, lambda: client.create(title="a task"), rounds
                ),
            ]

    return asyncio.run(run())


def _creation() -> CreateTaskRequest:
    return CreateTaskRequest(task=Task(title="a task"), request_id=str(uuid.uuid4()))


def _cost(name: str, bare: Callable[[], object], client: Callable[[], object], rounds: int) -> Cost:
    samples: dict[Callable[[], object], list[float]] = {bare: [], client: []}
    for _ in range(rounds + 1):
        for call, costs in samples.items():
            began = time.process_time()
            for _ in range(_CALLS):
                call()
            costs.append(time.process_time() - began)
    return _of(f"{name}, threads", samples[bare], samples[client])


async def _async_cost(
    name: str,
    bare: Callable[[], Awaitable[object]],
    client: Callable[[], Awaitable[object]],
    rounds: int,
) -> Cost:
    samples: dict[Callable[[], Awaitable[object]], list[float]] = {bare: [], client: []}
    for _ in range(rounds + 1):
        for call, costs in samples.items():
            began = time.process_time()
            for _ in range(_CALLS):
                await call()
            costs.append(time.process_time() - began)
    return _of(f"{name}, asyncio", samples[bare], samples[client])


def _of(name: str, bare: list[float], client: list[float]) -> Cost:
    """Return the medians without the first round, which opens connections."""
    of_bare, of_client = (statistics.median(costs[1:]) / _CALLS * 1e6 for costs in (bare, client))
    return Cost(name, of_bare, of_client)
