"""Expensive watches: those of one caller do not delay those of another."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from sqlalchemy import text

from server.calls.current import current_call
from server.settings import Settings
from server.tasks.filters import parse_watch_filter
from storage.database import Database
from storage.events import EventLog
from storage.query import Filter
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    BatchCreateTasksRequest,
    CreateTaskRequest,
    DeleteTaskRequest,
    GetTaskRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.access import StubOf
from tests.support.errors import fails
from tests.support.postgres import await_waiting, execute
from tests.support.service import PATIENCE_SECONDS, wait_until
from tests.support.watching import ADDED, BOOKMARK, Watch
from tests.support.workers import connection, served_port

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
MOST_FILTERS = 20
STUCK = text("SELECT pg_sleep(600)")

Connect = Callable[[], TaskServiceStub]
OpenWatch = Callable[..., Watch]


@pytest.fixture
def connect(settings: Settings, database: Database, database_url: str) -> Iterator[Connect]:
    """Stubs on connections of their own, each a caller, to one service."""
    with ExitStack() as running:
        port = running.enter_context(served_port(settings, database_url))
        yield lambda: TaskServiceStub(running.enter_context(connection(port)))


@pytest.fixture
def watch(connect: Connect) -> Iterator[OpenWatch]:
    """Opens a watch, which ends with the test."""
    opened: list[Watch] = []

    def open_watch(at: TaskServiceStub, filter_: str, *, initial: bool = False) -> Watch:
        opened.append(Watch(at, filter=filter_, send_initial_tasks=initial))
        return opened[-1]

    yield open_watch
    for one in opened:
        one.cancel()


class Gate:
    """The first pages of those watches that are costly wait here until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.inside: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        read: Any = EventLog.tasks_as_they_stand

        def held(log: EventLog, filter_: Any, **options: Any) -> Any:
            if "costly" not in str(filter_):
                return read(log, filter_, **options)
            name = current_call().principal.name
            self.inside[name] += 1
            self.most[name] = max(self.most[name], self.inside[name])
            self.opened.wait(PATIENCE_SECONDS)
            self.inside[name] -= 1
            return read(log, filter_, **options)

        monkeypatch.setattr(EventLog, "tasks_as_they_stand", held)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


def create(stub: TaskServiceStub, *titles: str) -> list[Task]:
    requests = [CreateTaskRequest(task=Task(title=title)) for title in titles]
    return list(stub.BatchCreateTasks(BatchCreateTasksRequest(requests=requests)).tasks)


def initial_titles(watching: Watch) -> set[str]:
    titles = set()
    while (response := watching.next()).type != BOOKMARK:
        assert response.type == ADDED
        titles.add(response.task.title)
    return titles


# Turns.


def test_watches_of_others_open_while_those_of_one_connection_read(
    connect: Connect, watch: OpenWatch, gate: Gate
) -> None:
    greedy, modest = connect(), connect()
    costly = [watch(greedy, "assigned_to = costly", initial=True) for _ in range(12)]
    wait_until(lambda: gate.inside["anonymous"] == 1, "one of them reads")
    for _ in range(5):
        assert initial_titles(watch(modest, "assigned_to = cheap", initial=True)) == set()
    assert gate.most["anonymous"] == 1
    gate.opened.set()
    for one in costly:
        assert initial_titles(one) == set()


def test_watches_of_others_open_while_those_of_one_principal_read(
    stub_of: StubOf, gate: Gate
) -> None:
    """Also on one connection."""
    request = {"filter": "assigned_to = costly", "send_initial_tasks": True}
    costly = [Watch(stub_of("ann", "tasks:read"), **request) for _ in range(12)]
    try:
        wait_until(lambda: gate.inside["ann"] == 1, "one of them reads")
        Watch(stub_of("bob", "tasks:read"), send_initial_tasks=True).bookmark()
        assert gate.most == {"ann": 1}
    finally:
        gate.opened.set()
        for one in costly:
            one.bookmark()
            one.cancel()


def test_cancelled_watches_leave_the_queue(connect: Connect, watch: OpenWatch, gate: Gate) -> None:
    stub = connect()
    given_up = [watch(stub, "assigned_to = costly", initial=True) for _ in range(5)]
    wait_until(lambda: gate.inside["anonymous"] == 1, "one of them reads")
    last = watch(stub, "assigned_to = last", initial=True)
    for one in given_up:
        one.cancel()
    gate.opened.set()
    assert initial_titles(last) == set()


def test_a_caller_opens_one_watch_at_a_time(
    connect: Connect, watch: OpenWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a restart: threads that all have work to do would hold up every call."""
    opened, inside = threading.Event(), Counter[str]()
    most: Counter[str] = Counter()

    def held(given: str) -> Filter | None:
        inside[given] += 1
        most[given] = max(most[given], inside[given])
        opened.wait(PATIENCE_SECONDS)
        inside[given] -= 1
        return parse_watch_filter(given)

    monkeypatch.setattr("server.tasks.servicer.parse_watch_filter", held)
    greedy = connect()
    watches = [watch(greedy, "status = PENDING") for _ in range(20)]
    wait_until(lambda: inside["status = PENDING"], "one is being opened")
    watch(connect(), "").bookmark()
    opened.set()
    for one in watches:
        one.bookmark()
    assert most["status = PENDING"] == 1


# Steps.

STEPS_WAITING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE query LIKE '%AS last_id%' AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()
"""


def test_a_page_that_takes_too_long_is_looked_for_in_steps(
    connect: Connect, watch: OpenWatch, database: Database, database_url: str
) -> None:
    """A locked table simulates a page that takes too long."""
    stub = connect()
    create(stub, "a", "b", "c")
    with database.engine.connect() as locker:
        locker.exec_driver_sql("BEGIN; LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
        watching = watch(stub, "priority = MEDIUM", initial=True)
        await_waiting(database_url)
        wait_until(lambda: execute(database_url, STEPS_WAITING), "a step waits for the lock")
        locker.exec_driver_sql("ROLLBACK")
    assert initial_titles(watching) == {"a", "b", "c"}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_steps_report_existing_tasks_and_later_changes(
    connect: Connect, watch: OpenWatch, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Each task exactly once, wherever a step ends."""
    monkeypatch.setattr("server.tasks.watch_readers._READ_SECONDS", 0)
    monkeypatch.setattr("server.tasks.watch_readers._SCANNED", size)
    monkeypatch.setattr(
        EventLog,
        "tasks_as_they_stand",
        lambda log, _, seconds, **__: log._database.read(STUCK, seconds=seconds),
    )
    stub = connect()
    tasks = create(stub, *"abcdefg")
    stub.DeleteTask(DeleteTaskRequest(id=tasks[3].id))
    watching = watch(stub, 'title != "f"', initial=True)
    assert initial_titles(watching) == set("abceg")
    (new,) = create(stub, "new")
    assert watching.change().task == stub.GetTask(GetTaskRequest(id=new.id))


# Filters.


def filters(count: int) -> list[str]:
    return [f'assigned_to = "{number}"' for number in range(count)]


def test_the_filters_of_a_caller_are_limited(connect: Connect, watch: OpenWatch) -> None:
    """Every write is matched against each of them."""
    stub = connect()
    for filter_ in filters(MOST_FILTERS):
        watch(stub, filter_).bookmark()
    with fails(EXHAUSTED, "TOO_MANY_WATCH_FILTERS") as failure:
        raise watch(stub, 'assigned_to = "one more"').error()
    assert failure.detail(error_details_pb2.RetryInfo).retry_delay.seconds
    (violation,) = failure.detail(error_details_pb2.QuotaFailure).violations
    assert violation.subject == "anonymous"


def test_watches_by_the_same_filter_or_by_none_are_not_counted(
    connect: Connect, watch: OpenWatch
) -> None:
    stub = connect()
    for filter_ in [*filters(MOST_FILTERS), *filters(MOST_FILTERS), *[""] * 10]:
        watch(stub, filter_).bookmark()


def test_the_filters_of_one_caller_are_not_those_of_another(
    connect: Connect, watch: OpenWatch
) -> None:
    for _ in range(2):
        stub = connect()
        for filter_ in filters(MOST_FILTERS):
            watch(stub, filter_).bookmark()


def test_a_filter_is_given_back_with_its_last_watch(connect: Connect, watch: OpenWatch) -> None:
    stub = connect()
    first, *_ = [watch(stub, filter_) for filter_ in filters(MOST_FILTERS)]
    first.bookmark()
    first.cancel()

    def opens() -> bool:
        try:
            return bool(watch(stub, 'assigned_to = "another"').bookmark())
        except grpc.RpcError:
            return False

    wait_until(opens, "another filter is accepted")
