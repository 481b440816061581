"""Measure throughput while four times as many clients call as the service accepts.

    .venv/bin/python -m benchmarks.overload

Waves of clients that list tasks, in turns: as many as there are places, then four times as many. A
refused client waits as long as RetryInfo says. The ratio of both is the figure to compare.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status

from benchmarks.calls import PORT, fill, running_service
from storage import schema
from storage.embedded import EmbeddedPostgres
from taskservice.v1.task_service_pb2 import ListTasksRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub

LIMIT = 16
CONNECTIONS = 3


def retry_seconds(refusal: grpc.aio.AioRpcError) -> float:
    status, retry = rpc_status.from_call(refusal), RetryInfo()  # type: ignore[arg-type]
    if status is None or not any(detail.Unpack(retry) for detail in status.details):
        raise refusal
    return retry.retry_delay.ToMilliseconds() / 1000


async def wave(stubs: list[Any], clients: int, seconds: float) -> int:
    """Return how many calls were answered."""
    end = time.monotonic() + seconds
    answers = 0

    async def client(stub: Any) -> None:
        nonlocal answers
        while (left := end - time.monotonic()) > 0:
            try:
                await stub.ListTasks(ListTasksRequest(page_size=20))
                answers += 1
            except grpc.aio.AioRpcError as error:
                await asyncio.sleep(min(left, retry_seconds(error)))

    await asyncio.gather(*(client(stubs[n % CONNECTIONS]) for n in range(clients)))
    return answers


async def run(rounds: int, seconds: float) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(f"127.0.0.1:{PORT}", options=options)
            )
            for _ in range(CONNECTIONS)
        ]
        for channel in channels:
            await channel.channel_ready()
        stubs = [TaskServiceStub(channel) for channel in channels]
        await wave(stubs, LIMIT, 1)
        found = [
            [await wave(stubs, clients, seconds) for clients in (LIMIT, 4 * LIMIT)]
            for _ in range(rounds)
        ]
    ratio = statistics.median(over / full for full, over in found)
    full, over = (statistics.median(column) / seconds for column in zip(*found, strict=True))
    print(
        f"calls/s with {LIMIT} clients {full:.0f}, with {4 * LIMIT} {over:.0f}, ratio {ratio:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder)) as postgres:
        schema.upgrade(postgres.url)
        fill(postgres.url, 1000)
        with running_service(postgres.url, 1, {"MAX_CONCURRENT_CALLS": str(LIMIT)}):
            asyncio.run(run(arguments.rounds, arguments.seconds))


if __name__ == "__main__":
    main()
