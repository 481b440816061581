"""Measure what open watches cost: unary calls with and without them, memory, delivery.

    .venv/bin/python -m benchmarks.watches [--watches 1000] [--filters 20]

One worker, on a PostgreSQL of its own. The unary calls are measured in turns, without and with the
watches open, so that what else the machine does falls on both; compare the ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import psutil

from benchmarks.calls import PORT, fill, running_service
from storage import schema
from storage.embedded import EmbeddedPostgres
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    WatchTasksRequest,
    WatchTasksResponse,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub

ADDRESS = f"127.0.0.1:{PORT}"
IN_FLIGHT = 16
TURNS = 4
CHANGES = 20


class Watchers:
    """Open watches and count the changes that they receive."""

    def __init__(self) -> None:
        self.ready = 0
        self.received = 0

    async def watch(self, stub: Any, filter_: str) -> None:
        async for response in stub.WatchTasks(WatchTasksRequest(filter=filter_)):
            if response.type == WatchTasksResponse.TYPE_BOOKMARK:
                self.ready += 1
            else:
                self.received += 1


@asynccontextmanager
async def open_watches(stub: Any, filters: list[str]) -> AsyncIterator[Watchers]:
    watchers = Watchers()
    tasks = [asyncio.create_task(watchers.watch(stub, filter_)) for filter_ in filters]
    while watchers.ready < len(filters):
        await asyncio.sleep(0.05)
    yield watchers
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def unary(stub: Any, ids: list[str], service: psutil.Process, seconds: float) -> list[float]:
    """Measure calls/s, CPU µs a call, and the 99th percentile of the latency in ms, of GetTask."""
    some, latencies = cycle(ids), []
    before, began = sum(service.cpu_times()[:2]), time.perf_counter()
    end = began + seconds

    async def caller() -> None:
        while (start := time.perf_counter()) < end:
            await stub.GetTask(GetTaskRequest(id=next(some)))
            latencies.append(time.perf_counter() - start)

    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    elapsed = time.perf_counter() - began
    cpu = sum(service.cpu_times()[:2]) - before
    latencies.sort()
    p99 = latencies[int(len(latencies) * 0.99)] * 1000
    return [len(latencies) / elapsed, cpu / len(latencies) * 1e6, p99]


async def run(filters: list[str], seconds: float, service: psutil.Process) -> None:
    async with (
        grpc.aio.insecure_channel(ADDRESS) as calls,
        grpc.aio.insecure_channel(
            ADDRESS, options=[("grpc.use_local_subchannel_pool", 1)]
        ) as streams,
    ):
        await asyncio.gather(calls.channel_ready(), streams.channel_ready())
        stub: Any = TaskServiceStub(calls)
        watching: Any = TaskServiceStub(streams)
        page = await stub.ListTasks(ListTasksRequest(page_size=1000))
        ids = [task.id for task in page.tasks]
        count = len(filters)
        await unary(stub, ids, service, 1)
        small = service.memory_info().rss
        without, with_ = [], []
        for _ in range(TURNS):
            without.append(await unary(stub, ids, service, seconds))
            async with open_watches(watching, filters):
                with_.append(await unary(stub, ids, service, seconds))
        report("without watches", without)
        report(f"with {count} open", with_)
        ratio = [b / a for a, b in zip(medians(without), medians(with_), strict=True)]
        print(f"{'ratio':20}{ratio[0]:10.2f}{ratio[1]:10.2f}{ratio[2]:10.2f}")
        async with open_watches(watching, filters) as watchers:
            grown = service.memory_info().rss - small
            print(f"memory: {grown / count / 1024:.0f} KiB a watch ({grown / 2**20:.0f} MiB)")
            before, began = sum(service.cpu_times()[:2]), time.perf_counter()
            for number in range(CHANGES):
                task = Task(title=f"change {number}")
                await stub.CreateTask(CreateTaskRequest(task=task))
            while watchers.received < CHANGES * count:
                await asyncio.sleep(0.01)
            elapsed = time.perf_counter() - began
            cpu = sum(service.cpu_times()[:2]) - before
            sent = CHANGES * count
            print(f"delivery: {sent / elapsed:.0f} changes/s, {cpu / sent * 1e6:.0f} CPU µs each")


def medians(turns: list[list[float]]) -> list[float]:
    return [statistics.median(column) for column in zip(*turns, strict=True)]


def report(name: str, turns: list[list[float]]) -> None:
    rate, cpu, p99 = medians(turns)
    print(f"{name:20}{rate:8.0f}/s{cpu:7.0f} µs{p99:7.1f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--watches", type=int, default=1000)
    parser.add_argument("--filters", type=int, default=0, help="how many, 20 at most")
    parser.add_argument("--seconds", type=float, default=4)
    arguments = parser.parse_args()
    # Each matches every change, so that all of them receive it.
    different = [f'assigned_to != "{n}" AND priority > LOW' for n in range(arguments.filters)]
    filters = [
        filter_
        for filter_, _ in zip(cycle(different or [""]), range(arguments.watches), strict=False)
    ]
    with TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder)) as postgres:
        schema.upgrade(postgres.url)
        fill(postgres.url, 10_000)
        with running_service(postgres.url, 1) as service:
            print(f"{'GetTask':20}{'rate':>10}{'CPU':>10}{'p99':>10}")
            asyncio.run(run(filters, arguments.seconds, psutil.Process(service.pid)))


if __name__ == "__main__":
    main()
