"""Measure what open watches cost: other calls, memory, and the delivery of changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import grpc

from benchmarks.calls import CONNECTIONS, GET
from benchmarks.database import BenchDatabase
from benchmarks.load import send_load
from benchmarks.rounds import Spread, spread
from benchmarks.subjects import RunningSubject, running_subject, service_off
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest, WatchTasksRequest, WatchTasksResponse
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub

_CHANGES = 20
_CONNECTIONS = 10
_PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class WatchFigures:
    """What open watches cost on one worker."""

    watches: int
    get_cost_ratio: Spread
    """The service's CPU per GetTask with the watches open, against that without."""
    get_rate_ratio: Spread
    kilobytes_per_watch: float
    changes_per_second: float
    us_per_change: float


class _Watchers:
    """Open watches, and count the changes that they receive."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._ready = 0
        self._received = 0
        self._progress = asyncio.Event()

    async def watch(self, channel: grpc.aio.Channel) -> None:
        async for response in TaskServiceStub(channel).WatchTasks(WatchTasksRequest()):
            is_bookmark = response.type == WatchTasksResponse.TYPE_BOOKMARK
            self._ready += is_bookmark
            self._received += not is_bookmark
            self._progress.set()

    async def all_ready(self) -> None:
        await self._until(lambda: self._ready >= self._count)

    async def all_received(self, changes: int) -> None:
        await self._until(lambda: self._received >= changes * self._count)

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while not condition():
                self._progress.clear()
                await self._progress.wait()


def measure_watches(
    database: BenchDatabase, *, watches: int, rounds: int, seconds: float
) -> WatchFigures:
    """Measure a worker without watches and with them, in turns."""
    with running_subject(service_off(), database) as service:
        return asyncio.run(_measure(service, watches, rounds, seconds))


async def _measure(
    service: RunningSubject, watches: int, rounds: int, seconds: float
) -> WatchFigures:
    cost_ratios, rate_ratios = [], []
    before = service.processes.largest_megabytes()
    for _ in range(rounds):
        cost, rate = await _get_tasks(service, seconds)
        async with _open_watches(service, watches):
            cost_with, rate_with = await _get_tasks(service, seconds)
        cost_ratios.append(cost_with / cost)
        rate_ratios.append(rate_with / rate)
    async with _open_watches(service, watches) as watchers:
        grown = service.processes.largest_megabytes() - before
        elapsed, cpu = await _deliver(service, watchers)
    deliveries = _CHANGES * watches
    return WatchFigures(
        watches=watches,
        get_cost_ratio=spread(cost_ratios),
        get_rate_ratio=spread(rate_ratios),
        kilobytes_per_watch=grown * 1024 / watches,
        changes_per_second=deliveries / elapsed,
        us_per_change=cpu / deliveries * 1e6,
    )


async def _get_tasks(service: RunningSubject, seconds: float) -> tuple[float, float]:
    """Return the CPU per GetTask, and how many were answered each second."""
    load = partial(send_load, service.address, service.calls[GET], connections=CONNECTIONS)
    before = service.processes.cpu_seconds()
    done = await asyncio.to_thread(load, seconds=seconds)
    return (service.processes.cpu_seconds() - before) / done.calls, done.calls / done.seconds


@asynccontextmanager
async def _open_watches(service: RunningSubject, count: int) -> AsyncIterator[_Watchers]:
    watchers = _Watchers(count)
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(service.address, options=own_connection)
            )
            for _ in range(_CONNECTIONS)
        ]
        group = await stack.enter_async_context(asyncio.TaskGroup())
        streams = [
            group.create_task(watchers.watch(channel))
            for channel, _ in zip(cycle(channels), range(count), strict=False)
        ]
        await watchers.all_ready()
        yield watchers
        for stream in streams:
            stream.cancel()


async def _deliver(service: RunningSubject, watchers: _Watchers) -> tuple[float, float]:
    """Change tasks; return the time and the CPU until all watches have received all changes."""
    before, began = service.processes.cpu_seconds(), time.perf_counter()
    async with grpc.aio.insecure_channel(service.address) as channel:
        stub = TaskServiceStub(channel)
        for number in range(_CHANGES):
            await stub.CreateTask(CreateTaskRequest(task=Task(title=f"change {number}")))
        await watchers.all_received(_CHANGES)
    return time.perf_counter() - began, service.processes.cpu_seconds() - before
