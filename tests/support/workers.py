"""Run a worker in the process of the test, and connect to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from server.process.signals import Signals
from server.settings import Settings
from server.worker import Worker


@contextmanager
def served_port(settings: Settings, database_url: str) -> Iterator[int]:
    """The whole service in this process, and the port that it serves on."""
    worker = Worker(settings, database_url)
    port = worker.start().grpc
    try:
        yield port
    finally:
        with Signals() as signals:
            worker.drain(signals)


@contextmanager
def connection(port: int) -> Iterator[grpc.Channel]:
    """A channel with a connection of its own; others to one address share theirs."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        grpc.channel_ready_future(channel).result(10)
        yield channel


@contextmanager
def running_worker(settings: Settings, database_url: str) -> Iterator[grpc.Channel]:
    """The whole service in this process, and a channel to it."""
    with served_port(settings, database_url) as port, connection(port) as channel:
        yield channel
