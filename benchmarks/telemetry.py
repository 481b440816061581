"""Measure what telemetry costs: the service's CPU per GetTask, by the ratio of sampled calls.

    .venv/bin/python -m benchmarks.telemetry [--baseline CHECKOUT]

One service after another, in turns, each with a collector that discards what it receives.
The ratio to the first row is the figure to compare: telemetry off, or another checkout, say of the
commit before a change.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from sqlalchemy import make_url

from benchmarks.calls import PORT, Machine, calls, fill, measure, running_service
from storage import schema
from storage.embedded import EmbeddedPostgres
from taskservice.v1.task_service_pb2 import ListTasksRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub

COLLECTOR_PORT = 50952

ON = {
    "METRICS_PORT": "50953",
    "OTEL_EXPORTER_ENDPOINT": f"http://127.0.0.1:{COLLECTOR_PORT}",
}
OFF = {"OTEL_ENABLED": "false"}
MODES = {
    "off": OFF,
    "0 % sampled": ON | {"OTEL_TRACES_SAMPLER_ARG": "0"},
    "10 % sampled": ON | {"OTEL_TRACES_SAMPLER_ARG": "0.1"},
    "100 % sampled": ON | {"OTEL_TRACES_SAMPLER_ARG": "1"},
}


def collect() -> None:
    """Serve a collector's endpoint until the process ends."""

    class Traces(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]
        Traces(), server
    )
    server.add_insecure_port(f"127.0.0.1:{COLLECTOR_PORT}")
    server.start()
    threading.Event().wait()


@contextmanager
def running_collector() -> Iterator[None]:
    process = multiprocessing.get_context("spawn").Process(target=collect)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


async def service_cpu(machine: Machine, seconds: float) -> float:
    """Measure the service's CPU µs per GetTask."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{PORT}") as channel:
        await channel.channel_ready()
        stub: Any = TaskServiceStub(channel)
        page = await stub.ListTasks(ListTasksRequest(page_size=1000))
        call = calls(stub, [task.id for task in page.tasks])["GetTask"]
        await measure(call, machine, seconds=1, in_flight=32)
        row = await measure(call, machine, seconds=seconds, in_flight=32)
        return float(row.split()[3])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--baseline", type=Path, help="another checkout, to compare with")
    arguments = parser.parse_args()
    modes = {mode: (settings, Path()) for mode, settings in MODES.items()}
    if arguments.baseline:
        modes = {"the baseline": ({}, arguments.baseline)} | modes
    found: dict[str, list[float]] = {mode: [] for mode in modes}
    with (
        TemporaryDirectory() as folder,
        EmbeddedPostgres(Path(folder)) as postgres,
        running_collector(),
    ):
        schema.upgrade(postgres.url)
        fill(postgres.url, 10_000)
        url = make_url(postgres.url).render_as_string(hide_password=False)
        server = int((Path(folder) / "postgres/postmaster.pid").read_text().split()[0])
        for _ in range(arguments.rounds):
            for mode, (settings, checkout) in modes.items():
                with running_service(url, 1, settings, checkout) as service:
                    machine = Machine(service.pid, server)
                    found[mode].append(asyncio.run(service_cpu(machine, arguments.seconds)))
    first = statistics.median(next(iter(found.values())))
    print(f"{'':24}{'service µs':>11} {'ratio':>7}")
    for mode, figures in found.items():
        median = statistics.median(figures)
        print(f"{mode:24}{median:11.0f} {median / first:7.2f}")


if __name__ == "__main__":
    main()
