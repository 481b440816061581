"""Measure how a client's connections spread over two workers: `python -m benchmarks.connections`.

Each run opens connections one after the other and sends a call on each; the metrics show which
workers answered.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from urllib.request import urlopen

import grpc

from benchmarks.database import running_database
from benchmarks.subjects import free_port, running_subject, service_off
from taskservice.v1.task_service_pb2 import GetTaskStatsRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub

_WORKERS = 2
_ANSWERED = re.compile(
    r'^grpc_server_call_duration_seconds_count\{(?=.*GetTaskStats)(?=.*"OK").*worker="(\d+)".*\} '
    r"([\d.]+)$",
    re.MULTILINE,
)


def main() -> None:
    """Print in how many runs all connections reached one worker."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.connections")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--connections", type=int, default=4)
    arguments = parser.parse_args()
    metrics = free_port()
    ports = {"METRICS_PORT": str(metrics), "HEALTH_PORT": str(free_port())}
    service = service_off(_WORKERS)
    service = replace(service, environment={**service.environment, **ports})
    used: Counter[int] = Counter()
    with running_database(rows=1000) as database, running_subject(service, database) as running:
        for _ in range(arguments.runs):
            before = _answered(metrics)
            _call_on_each(running.address, arguments.connections)
            used[len(_answered(metrics) - before)] += 1
    for workers, runs in sorted(used.items()):
        print(f"{arguments.connections} connections used {workers} of {_WORKERS} workers: {runs}")


def _call_on_each(address: str, connections: int) -> None:
    options = [("grpc.use_local_subchannel_pool", 1)]
    with ExitStack() as opened:
        for _ in range(connections):
            channel = opened.enter_context(grpc.insecure_channel(address, options))
            TaskServiceStub(channel).GetTaskStats(GetTaskStatsRequest(), wait_for_ready=True)


def _answered(port: int) -> Counter[str]:
    """Return how many calls each worker has answered."""
    with urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        metrics = response.read().decode()
    return Counter({worker: int(float(count)) for worker, count in _ANSWERED.findall(metrics)})


if __name__ == "__main__":
    main()
