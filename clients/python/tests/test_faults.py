"""Workers and PostgreSQL are killed while clients call: no call fails, no task is doubled.

CLIENT_FAULT_SECONDS sets how long: 15 by default.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage import schema
from storage.embedded import EmbeddedPostgres
from taskservice_client import AsyncTaskClient, Task, TaskClient, WatchEventType
from tests.support.postgres import killed
from tests.support.service import (
    PATIENCE_SECONDS,
    ServiceProcess,
    await_ready,
    running_service,
    wait_until,
)

SECONDS = float(os.environ.get("CLIENT_FAULT_SECONDS", "15"))
CALLERS = 8
CALLS_BETWEEN_FAULTS = 50
TIMEOUT_SECONDS = 20.0  # A call that takes longer fails.
OUTAGE_SECONDS = 12.0  # Longer than the service config waits.

Version = tuple[str, str]
"""The id and the etag of a task."""


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path / "postgres", settings={"fsync": "off"}) as postgres:
        schema.upgrade(postgres.url)
        yield postgres


@pytest.fixture
def service(tmp_path: Path, postgres: EmbeddedPostgres) -> Iterator[ServiceProcess]:
    """Two workers on a database that is killed without them."""
    settings = {"DATABASE_URL": postgres.url, "WORKERS": "2", "ENVIRONMENT": "staging"}
    with running_service(tmp_path / "service", **settings) as service:
        channel = service.channel()
        await_ready(channel)
        channel.close()
        yield service


class Load:
    """What callers did: the calls that succeeded, their slowest, and the errors."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.errors: list[str] = []
        self.written: list[Version] = []
        self.calls = 0
        self.slowest = 0.0
        self._numbers = itertools.count()

    def new_title(self) -> str:
        return f"task {next(self._numbers)}"

    def note(self, began: float, *tasks: Task) -> None:
        self.calls += 1
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.written += [(task.id, task.etag) for task in tasks]

    @contextmanager
    def noting_errors(self) -> Iterator[None]:
        """Note any error of a caller, which ends with it."""
        try:
            yield
        except Exception as error:
            self.errors.append(repr(error))

    def await_more(self) -> None:
        calls = self.calls
        wait_until(
            lambda: self.errors or self.calls > calls + CALLS_BETWEEN_FAULTS, "more calls succeed"
        )


def call_by_threads(address: str, load: Load) -> None:
    """Write and read in threads until the load ends."""

    def run() -> None:
        with load.noting_errors():
            while not load.ended.is_set():
                began = time.monotonic()
                task = client.create(title=load.new_title())
                load.note(began, task)
                began = time.monotonic()
                load.note(began, client.update(task.id, priority="HIGH"))
                began = time.monotonic()
                assert client.get(task.id).priority
                load.note(began)

    with (
        TaskClient(address, timeout=TIMEOUT_SECONDS) as client,
        ThreadPoolExecutor(CALLERS) as threads,
    ):
        for future in [threads.submit(run) for _ in range(CALLERS)]:
            future.result()


def call_by_asyncio(address: str, load: Load) -> None:
    """Write and read in tasks until the load ends."""

    async def run(client: AsyncTaskClient) -> None:
        with load.noting_errors():
            while not load.ended.is_set():
                began = time.monotonic()
                task = await client.create(title=load.new_title())
                load.note(began, task)
                began = time.monotonic()
                load.note(began, await client.update(task.id, priority="HIGH"))
                began = time.monotonic()
                assert (await client.get(task.id)).priority
                load.note(began)

    async def run_all() -> None:
        async with (
            AsyncTaskClient(address, timeout=TIMEOUT_SECONDS) as client,
            asyncio.TaskGroup() as tasks,
        ):
            for _ in range(CALLERS):
                tasks.create_task(run(client))

    asyncio.run(run_all())


def write_last(address: str, load: Load) -> Version:
    """Write a task after the others: a watch yields its last change after theirs."""
    with TaskClient(address) as client:
        created = client.create(title=load.new_title())
        updated = client.update(created.id, priority="HIGH")
    load.note(time.monotonic(), created, updated)
    return updated.id, updated.etag


@contextmanager
def watching(address: str) -> Iterator[Counter[Version]]:
    """Count the changes that a watch yields; a restart counts as a change of no task."""
    seen: Counter[Version] = Counter()
    with TaskClient(address) as client, client.watch() as watch:
        assert next(watch).type is WatchEventType.BOOKMARK

        def follow() -> None:
            for event in watch:
                if event.type is not WatchEventType.BOOKMARK:
                    seen[event.task.id, event.task.etag] += 1

        follower = threading.Thread(target=follow)
        follower.start()
        try:
            yield seen
        finally:
            watch.cancel()
            follower.join(PATIENCE_SECONDS)


def inject_faults(load: Load, service: ServiceProcess, postgres: EmbeddedPostgres) -> Counter[str]:
    """Kill workers and PostgreSQL in turn for SECONDS, each at least once; count the kills.

    PostgreSQL is away for long once, and for a moment else.
    """
    ends = time.monotonic() + SECONDS
    kills: Counter[str] = Counter()
    while (time.monotonic() < ends or not kills["postgres"]) and not load.errors:
        load.await_more()
        if kills.total() % 4 == 3:
            with killed(postgres):
                time.sleep(0 if kills["postgres"] else OUTAGE_SECONDS)
            kills["postgres"] += 1
        else:
            os.kill(min(service.workers()), signal.SIGKILL)
            wait_until(lambda: len(service.workers()) == 2, "another worker")
            kills["worker"] += 1
    load.await_more()
    return kills


@pytest.mark.timeout(300 + 2 * SECONDS)
@pytest.mark.parametrize("call", [call_by_threads, call_by_asyncio])
def test_no_call_fails_while_workers_and_postgresql_are_killed(
    service: ServiceProcess,
    postgres: EmbeddedPostgres,
    call: Callable[[str, Load], None],
) -> None:
    """Each change is watched once, and no creation is doubled."""
    address, load = f"127.0.0.1:{service.port}", Load()
    with watching(address) as seen:
        callers = threading.Thread(target=call, args=[address, load])
        callers.start()
        try:
            kills = inject_faults(load, service, postgres)
        finally:
            load.ended.set()
            callers.join(PATIENCE_SECONDS)
        assert not load.errors
        assert not callers.is_alive(), "a call did not end at its deadline"
        last = write_last(address, load)
        wait_until(lambda: last in seen, "the last change is watched")
    sys.stdout.write(f"{kills}, {load.calls} calls, the slowest {load.slowest:.1f} s\n")
    assert kills["postgres"]
    with TaskClient(address) as client:
        titles = Counter(task.title for task in client.list())
    assert len(titles) == titles.total() == len(load.written) // 2
    assert seen == Counter(load.written)
