"""Measure a call: throughput, latency, CPU of service and PostgreSQL, and round trips.

    make bench                                     every call, 32 in flight
    .venv/bin/python -m benchmarks.calls GetTask   one call, or some

Starts a PostgreSQL and a service of its own on this machine, and ends them. CPU µs per call is the
figure to compare; calls per second depend on what else the machine does, client included.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast
from uuid import uuid4

import grpc
import psutil
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy import NullPool, create_engine, make_url, text

from storage import schema
from storage.embedded import EmbeddedPostgres
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    BatchGetTasksRequest,
    BatchUpdateTasksRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    GetTaskRequest,
    GetTaskStatsRequest,
    ListTaskEventsRequest,
    ListTasksRequest,
    UndeleteTaskRequest,
    UpdateTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub

PORT = 50951
BATCH = 1000
TITLE = FieldMask(paths=["title"])
FILTER = "status = PENDING AND priority >= HIGH"

Call = Callable[[], Awaitable[Any]]


def calls(stub: Any, ids: list[str]) -> dict[str, Call]:
    """Return the calls to measure, by name."""
    some = cycle(ids)
    title = cycle(["one title", "another title", "a third title"])

    def write(**options: Any) -> CreateTaskRequest:
        return CreateTaskRequest(task=Task(title="a task", tags=["billing"]), **options)

    def update() -> Awaitable[Any]:
        task = Task(id=next(some), title=next(title))
        request = UpdateTaskRequest(task=task, update_mask=TITLE)
        return cast("Awaitable[Any]", stub.UpdateTask(request))

    def create_batch() -> Awaitable[Any]:
        request = BatchCreateTasksRequest(requests=[write() for _ in range(BATCH)])
        return cast("Awaitable[Any]", stub.BatchCreateTasks(request))

    def update_batch() -> Awaitable[Any]:
        updates = [
            UpdateTaskRequest(task=Task(id=id_, title=next(title)), update_mask=TITLE)
            for id_ in ids[:BATCH]
        ]
        return cast(
            "Awaitable[Any]", stub.BatchUpdateTasks(BatchUpdateTasksRequest(requests=updates))
        )

    async def delete_and_undelete() -> None:
        task = await stub.CreateTask(write())
        await stub.DeleteTask(DeleteTaskRequest(id=task.id))
        await stub.UndeleteTask(UndeleteTaskRequest(id=task.id))

    return {
        "GetTask": lambda: stub.GetTask(GetTaskRequest(id=next(some))),
        "ListTasks": lambda: stub.ListTasks(ListTasksRequest()),
        "ListTasks, filter": lambda: stub.ListTasks(ListTasksRequest(filter=FILTER)),
        "GetTaskStats": lambda: stub.GetTaskStats(GetTaskStatsRequest()),
        "CreateTask": lambda: stub.CreateTask(write()),
        "CreateTask, request_id": lambda: stub.CreateTask(write(request_id=str(uuid4()))),
        "UpdateTask": update,
        "Create, delete, undelete": delete_and_undelete,
        "ListTaskEvents": lambda: stub.ListTaskEvents(ListTaskEventsRequest(task_id=next(some))),
        f"BatchCreateTasks, {BATCH}": create_batch,
        f"BatchUpdateTasks, {BATCH}": update_batch,
        f"BatchGetTasks, {BATCH}": lambda: stub.BatchGetTasks(BatchGetTasksRequest(ids=ids)),
    }


class Machine:
    """Read the CPU seconds that the service and PostgreSQL have used."""

    def __init__(self, service: int, postgres: int) -> None:
        self._service = psutil.Process(service)
        self._postgres = psutil.Process(postgres)

    def cpu_seconds(self) -> tuple[float, float]:
        return _cpu_seconds(self._service), _cpu_seconds(self._postgres)


def _cpu_seconds(root: psutil.Process) -> float:
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system
    return total


async def measure(call: Call, machine: Machine, *, seconds: float, in_flight: int) -> str:
    """Call for some seconds; return a row of the table."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def caller() -> None:
        while (began := time.perf_counter()) < end:
            await call()
            latencies.append(time.perf_counter() - began)

    before = machine.cpu_seconds()
    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    elapsed = time.perf_counter() - began
    service, postgres = (
        (b - a) / len(latencies) * 1e6 for a, b in zip(before, machine.cpu_seconds(), strict=True)
    )
    latencies.sort()
    p50, p99 = (latencies[int(len(latencies) * share)] * 1000 for share in (0.5, 0.99))
    rate = len(latencies) / elapsed
    return f"{rate:8.0f} {p50:8.1f} {p99:8.1f} {service:10.0f} {postgres:11.0f}"


class RoundTrips:
    """Count the statements that PostgreSQL receives, in its log."""

    def __init__(self, url: str, log: Path) -> None:
        self._engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._log = log

    async def of(self, call: Call, times: int = 20) -> float:
        with self._logging():
            # The statements of the readiness probe are recognised by their text.
            start = self._log.stat().st_size
            for _ in range(times):
                await call()
            with self._log.open() as log:
                log.seek(start)
                seen = re.findall(
                    r"statement: (?!SELECT to_regclass|SELECT version_num)", log.read()
                )
        return len(seen) / times

    @contextmanager
    def _logging(self) -> Iterator[None]:
        self._set("ALTER SYSTEM SET log_statement = 'all'")
        try:
            yield
        finally:
            self._set("ALTER SYSTEM RESET log_statement")

    def _set(self, statement: str) -> None:
        with self._engine.connect() as connection:
            connection.execute(text(statement))
            connection.execute(text("SELECT pg_reload_conf()"))
        time.sleep(0.2)


@contextmanager
def running_service(
    url: str, workers: int, settings: Mapping[str, str] | None = None, checkout: Path = Path()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a service with these settings, of this checkout or another."""
    environment = os.environ | {
        "ENVIRONMENT": "staging",
        "AUTH_MODE": "none",
        "RATE_LIMIT_PER_SECOND": "1000000",  # Counted, and never reached; nor is the next.
        "MAX_CONCURRENT_CALLS": "1000",
        "SHUTDOWN_DELAY_SECONDS": "0",
        "DATABASE_URL": url,
        "GRPC_PORT": str(PORT),
        "WORKERS": str(workers),
        "SECRET_KEY": "benchmarks-run-on-this-machine-only",
        **(settings or {}),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "server", "serve"],
        env=environment,
        cwd=checkout,
        stdout=subprocess.DEVNULL,
    ) as service:
        try:
            yield service
        finally:
            service.terminate()


def fill(url: str, rows: int) -> None:
    """Create tasks of every status and priority, half of them with a due date."""
    with create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect() as database:
        database.execute(
            text(
                "INSERT INTO tasks (id, title, status, priority, assigned_to, due_date, tags,"
                " created_by, created_at, completed_at)"
                " SELECT gen_random_uuid(), 'task ' || n, 1 + n % 4, 1 + n / 4 % 4,"
                " 'person ' || n % 50, CASE n % 2 WHEN 0 THEN now() + n * interval '1 minute' END,"
                " ARRAY['tag ' || n % 20], 'benchmark', now() - n * interval '1 second',"
                " CASE n % 4 WHEN 2 THEN now() END FROM generate_series(1, :rows) AS n"
            ),
            {"rows": rows},
        )
        database.execute(text("VACUUM ANALYZE tasks"))


async def run(arguments: argparse.Namespace, url: str, machine: Machine, log: Path) -> None:
    address = f"127.0.0.1:{PORT}"
    async with grpc.aio.insecure_channel(address) as channel:
        await channel.channel_ready()
        stub: Any = TaskServiceStub(channel)
        page = await stub.ListTasks(ListTasksRequest(page_size=1000))
        table = calls(stub, [task.id for task in page.tasks])
        print(f"{'':24}{'calls/s':>8} {'p50 ms':>8} {'p99 ms':>8}", end="")
        print(f" {'service µs':>10} {'postgres µs':>11} {'round trips':>11}")
        for name, call in table.items():
            if not arguments.calls or name in arguments.calls:
                await measure(call, machine, seconds=0.5, in_flight=arguments.in_flight)
                row = await measure(
                    call, machine, seconds=arguments.seconds, in_flight=arguments.in_flight
                )
                trips = await RoundTrips(url, log).of(call)
                print(f"{name:24}{row} {trips:11.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("calls", nargs="*", help="their names; all of them by default")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder)) as postgres:
        schema.upgrade(postgres.url)
        fill(postgres.url, arguments.rows)
        url = make_url(postgres.url).render_as_string(hide_password=False)
        server = int((Path(folder) / "postgres/postmaster.pid").read_text().split()[0])
        with running_service(url, arguments.workers) as service:
            machine = Machine(service.pid, server)
            asyncio.run(run(arguments, url, machine, Path(folder) / "postgres.log"))


if __name__ == "__main__":
    main()
