"""Watches at their limits: slow readers, quotas, threads, connections, a drain."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from structlog.testing import capture_logs

from server.process.signals import Signals
from server.settings import Settings
from server.worker import Worker
from storage.database import Database
from storage.events import Batch, EventLog, Position
from taskservice.v1.task_service_pb2 import GetTaskRequest, WatchTasksRequest, WatchTasksResponse
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.access import StubOf
from tests.support.credentials import SECRET_KEY
from tests.support.errors import EXHAUSTED, INVALID, UNAVAILABLE, fails
from tests.support.service import PATIENCE_SECONDS, wait_until
from tests.support.watching import (
    ADDED,
    BOOKMARK,
    NUMBERS,
    Gate,
    OpenWatch,
    Serve,
    Watch,
    create,
    failure_of,
    joined,
    titles,
    titles_by_id,
    up_to_bookmark,
)
from tests.support.workers import running_worker

NEVER = 600.0
"""Seconds: longer than any test waits."""


def test_a_watch_that_does_not_keep_up_reads_for_itself(
    stub: TaskServiceStub, watch: OpenWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than its buffer holds is neither lost nor repeated."""
    monkeypatch.setattr("server.tasks.watch._BUFFER", 2)
    monkeypatch.setattr("server.tasks.watch_readers._BATCH", 5)
    watches = [joined(watch), joined(watch, filter='title != "3"')]
    written = [title for n in range(10) for title in _created(stub, n)]
    for one, expected in zip(watches, (written, [t for t in written if t != "3"]), strict=True):
        received = [one.next()]
        while received[-1].type != BOOKMARK or written[-1] not in titles(received):
            received.append(one.next())  # A bookmark ends its own reading.
        assert [response.task.title for response in received if response.type == ADDED] == expected


def _created(stub: TaskServiceStub, number: int) -> list[str]:
    """The titles of a batch, whose tasks' ids are in the same order."""
    return titles_by_id(create(stub, *(f"{number * 7 + n}" for n in range(7))))


def test_a_watch_that_is_not_read_is_ended_and_can_resume(
    serve: Serve, watch: OpenWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not hold a thread; other watches are not affected, and it loses nothing."""
    monkeypatch.setattr("server.tasks.watches.STALL_SECONDS", 0.2)
    stub = serve()
    unread: Any = stub.WatchTasks(WatchTasksRequest())
    received: list[WatchTasksResponse] = [next(unread)]
    watching = joined(watch, stub)
    written: list[str] = []
    with capture_logs() as logs:
        while not [line for line in logs if line["event"] == "watch stalled"]:
            written += titles_by_id(create(stub, *NUMBERS, description="x" * 2000))
    assert titles(watching.changes(len(written))) == written
    with pytest.raises(grpc.RpcError) as raised:
        received.extend(unread)
    assert raised.value.code() == UNAVAILABLE
    resumed = watch(stub, resume_token=received[-1].resume_token)
    assert titles(received[1:] + resumed.changes(len(written) - len(received[1:]))) == written


def test_more_filters_than_one_statement_asks_about_are_answered(
    stub: TaskServiceStub, watch: OpenWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One connection opens them all here; else they are those of several callers."""
    monkeypatch.setattr("server.tasks.watches._FILTERS_PER_CLIENT", 80)
    numbers = range(40)
    watches = [joined(watch, filter=f"assigned_to = person{n} OR id:*") for n in numbers]
    own = [joined(watch, filter=f"assigned_to = person{n}") for n in numbers]
    for number in numbers:
        create(stub, f"{number}", assigned_to=f"person{number}")
    assert all(len(one.changes(len(numbers))) == len(numbers) for one in watches)
    assert [one.change().task.title for one in own] == [str(number) for number in numbers]


def test_a_filter_with_too_many_searches_is_refused(watch: OpenWatch) -> None:
    """There is no index to search in what has just changed; every change would be searched."""
    watch(filter=" OR ".join(f"word{n}" for n in range(5))).bookmark()
    failure = failure_of(INVALID, "INVALID_REQUEST", watch(filter="a b c (d OR -title:e) f"))
    assert failure.violations == {"filter": "FILTER_TOO_COSTLY"}


def test_watches_that_read_for_themselves_leave_the_pool_to_calls(
    serve: Serve, watch: OpenWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart, when all of them resume at once."""
    gate = Gate()
    read = EventLog.read

    def held(self: EventLog, position: Position, **options: Any) -> Batch:
        if threading.current_thread().name.startswith("stream"):
            with self._database.engine.connect():
                gate.pass_through()
        return read(self, position, **options)

    monkeypatch.setattr("storage.events.EventLog.read", held)
    monkeypatch.setattr(Settings, "own_connections", -1)
    monkeypatch.setattr(Settings, "pool_overflow", 0)
    stub = serve(threads_per_worker=4)
    with gate.closed():
        watches = [watch(stub) for _ in range(20)]
        gate.await_arrival()
        (task,) = create(stub, "task")
        assert stub.GetTask(GetTaskRequest(id=task.id), timeout=PATIENCE_SECONDS) == task
    for one in watches:
        up_to_bookmark(one)


def test_one_watch_too_many_is_refused_until_another_ends(
    serve: Serve, watch: OpenWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.tasks.watches.MAX_WATCHES", 2)
    stub = serve()
    watches = [joined(watch, stub) for _ in range(2)]
    failure = failure_of(EXHAUSTED, "TOO_MANY_WATCHES", watch(stub))
    assert failure.detail(error_details_pb2.RetryInfo).retry_delay.seconds
    watches[0].cancel()

    def begins() -> str | None:
        with suppress(grpc.RpcError):
            return watch(stub).bookmark()
        return None

    wait_until(begins, "another watch begins")
    create(stub, "one")
    assert watches[1].change().task.title == "one"


def test_one_watch_too_many_of_a_principal_is_refused(
    watch: OpenWatch,
    stub_of: StubOf,
    token_settings: Settings,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.tasks.watches.MAX_PER_PRINCIPAL", 2)
    with running_worker(token_settings, database_url) as channel:
        stub = stub_of("ann", "tasks:read", at=(channel, SECRET_KEY))
        for _ in range(2):
            watch(stub).bookmark()
        failure = failure_of(EXHAUSTED, "TOO_MANY_WATCHES", watch(stub))
    assert failure.detail(error_details_pb2.RetryInfo).retry_delay.seconds
    (violation,) = failure.detail(error_details_pb2.QuotaFailure).violations
    assert violation.subject == "ann"


def test_watches_take_no_thread_of_calls_and_no_connection_of_the_pool(
    serve: Serve, watch: OpenWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settings, "own_connections", 0)
    monkeypatch.setattr(Settings, "pool_overflow", 0)
    stub = serve(threads_per_worker=1)
    watches = [joined(watch, stub, filter=f'title != "{n}"') for n in range(10)]
    (task,) = create(stub, "task")
    assert [one.change().task for one in watches] == [task] * 10
    assert stub.GetTask(GetTaskRequest(id=task.id), timeout=PATIENCE_SECONDS) == task


def test_draining_ends_watches_at_once(
    settings: Settings, database: Database, database_url: str
) -> None:
    """However long calls have to finish: a watch never would."""
    worker = Worker(settings.model_copy(update={"shutdown_grace_seconds": NEVER}), database_url)
    with grpc.insecure_channel(f"127.0.0.1:{worker.start().grpc}") as channel:
        watches = [Watch(TaskServiceStub(channel)) for _ in range(3)]
        for one in watches:
            one.bookmark()
        with Signals() as signals:
            assert worker.drain(signals)
        for one in watches:
            failure = failure_of(UNAVAILABLE, "SHUTTING_DOWN", one)
            assert failure.detail(error_details_pb2.RetryInfo).retry_delay.seconds


def test_draining_ends_a_watch_that_is_still_at_its_initial_tasks(
    stub: TaskServiceStub, settings: Settings, database_url: str
) -> None:
    """Its caller begins anew elsewhere, and need not take the rest first."""
    standing = [
        task for _ in range(8) for task in create(stub, *NUMBERS, *NUMBERS, description="x" * 2000)
    ]
    worker = Worker(settings.model_copy(update={"shutdown_grace_seconds": NEVER}), database_url)
    with grpc.insecure_channel(f"127.0.0.1:{worker.start().grpc}") as channel:
        unread: Any = TaskServiceStub(channel).WatchTasks(
            WatchTasksRequest(send_initial_tasks=True)
        )
        received = [next(unread)]
        with ThreadPoolExecutor() as pool, Signals() as signals:
            drained = pool.submit(worker.drain, signals)
            with fails(UNAVAILABLE, "SHUTTING_DOWN"):
                received.extend(unread)
            assert drained.result()
    assert len(received) < len(standing)
