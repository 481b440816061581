"""Watches during restarts and crashes: each acknowledged change exactly once, in order.

Many write at the same time, some of them in transactions that commit in another order than they
began in. Some watch, break off at any moment and resume, while services and PostgreSQL go down.
"""

from __future__ import annotations

import random
import signal
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import psycopg2
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from sqlalchemy.exc import SQLAlchemyError

from storage import schema
from storage.database import Database
from storage.embedded import EmbeddedPostgres
from storage.errors import StorageError
from storage.events import EventLog
from storage.repository import TaskRepository
from storage.tables import TaskRow
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    UndeleteTaskRequest,
    UpdateTaskRequest,
    WatchTasksRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.errors import fails
from tests.support.postgres import killed
from tests.support.service import PATIENCE_SECONDS, ServiceProcess, wait_until
from tests.support.watching import (
    BOOKMARK,
    Watch,
    create_by_hand,
    delete_by_hand,
    one_transaction,
    update_by_hand,
)

UNAVAILABLE, CANCELLED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED

NEVER = "600"
"""Seconds, more than a test waits."""

_WORKERS = 2
_CHANNEL = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
]


class Services:
    """Two services on one database; the second can be replaced, in part or as a whole."""

    def __init__(self, folder: Path, url: str, running: ExitStack) -> None:
        self._folder = folder
        self._url = url
        self._running = running
        first = self._start("first")
        self._second = self._start("second")
        self._port = self._second.port
        self.stubs = [self._stub(first.port), self._stub(self._port)]

    def upgrade(self) -> None:
        """Start a third service on the port of the second; stop the second when it is ready."""
        old, self._second = self._second, self._start("third", GRPC_PORT=str(self._port))
        wait_until(lambda: len(self._second.events("ready")) == _WORKERS, "it is ready")
        assert old.stop() == 0

    def restart(self) -> None:
        assert self._second.stop() == 0
        self._second = self._start("second", GRPC_PORT=str(self._port))
        assert self._second.port == self._port

    def _start(self, name: str, **settings: str) -> ServiceProcess:
        service = ServiceProcess(
            self._folder / name,
            **{"ENVIRONMENT": "staging", "DATABASE_URL": self._url, "WORKERS": str(_WORKERS)}
            | settings,
        )
        self._running.callback(service.clean_up)
        return service

    def _stub(self, port: int) -> TaskServiceStub:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=_CHANNEL)
        return TaskServiceStub(self._running.enter_context(channel))


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    folder = tmp_path_factory.mktemp("postgres")
    with EmbeddedPostgres(folder, settings={"fsync": "off"}) as postgres:
        schema.upgrade(postgres.url)
        yield postgres


@pytest.fixture(scope="module")
def url(postgres: EmbeddedPostgres) -> str:
    return postgres.url


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, url: str) -> Iterator[Services]:
    with ExitStack() as running:
        yield Services(tmp_path_factory.mktemp("services"), url, running)


@pytest.fixture(scope="module")
def by_hand(url: str) -> Iterator[Database]:
    database = Database(url)
    yield database
    database.close()


class State(NamedTuple):
    """What a write leaves: the task as it is from then on."""

    task_id: str
    version: int


Write = Callable[[random.Random], list[State]]


def state_of(task: Task) -> State:
    return State(task.id, int(task.etag.strip('"'), 16))


class Writers:
    """Write until stopped. A failed write is not repeated: it may have been committed."""

    def __init__(self, stubs: list[TaskServiceStub], by_hand: Database, seed: int) -> None:
        self._by_hand = by_hand
        self._stopped = threading.Event()
        self.acknowledged: list[State] = []
        self._shared = [_created(stubs[0]).id for _ in range(4)]
        self._writers = [
            (write, random.Random(f"{seed} writer {n}"))  # noqa: S311
            for n, write in enumerate(
                [
                    *(self._over(stubs[n % 2]) for n in range(4)),
                    *(self._in_a_transaction() for _ in range(4)),
                ]
            )
        ]

    def start(self, pool: ThreadPoolExecutor) -> None:
        self._writing = [pool.submit(self._write, *writer) for writer in self._writers]

    def await_writes(self, number: int) -> None:
        """Returns once so many more were acknowledged."""
        enough = len(self.acknowledged) + number
        wait_until(lambda: len(self.acknowledged) >= enough, f"{number} writes")

    def stop(self) -> None:
        self._stopped.set()
        for writing in self._writing:
            writing.result(PATIENCE_SECONDS)

    def _write(self, write: Write, dice: random.Random) -> None:
        while not self._stopped.is_set():
            try:
                self.acknowledged += write(dice)
            except (grpc.RpcError, StorageError, SQLAlchemyError, psycopg2.Error):
                self._stopped.wait(0.01)

    def _over(self, stub: TaskServiceStub) -> Write:
        own = [_created(stub).id]

        def write(dice: random.Random) -> list[State]:
            task_id, title = dice.choice([*self._shared, own[-1]]), str(dice.random())
            match dice.randrange(8):
                case 0:
                    own.append((task := _created(stub)).id)
                case 1:
                    task = stub.DeleteTask(DeleteTaskRequest(id=task_id))
                case 2 | 3:
                    task = stub.UndeleteTask(UndeleteTaskRequest(id=task_id))
                case _:
                    request = UpdateTaskRequest(
                        task=Task(id=task_id, title=title), update_mask=FieldMask(paths=["title"])
                    )
                    task = stub.UpdateTask(request)
            return [state_of(task)]

        return write

    def _in_a_transaction(self) -> Write:
        """Takes its place in the order of transactions early, and commits late."""
        own: list[str] = []

        def write(dice: random.Random) -> list[State]:
            with one_transaction(self._by_hand) as repository:
                if dice.random() < 0.3 or not own:
                    rows = [create_by_hand(repository, str(uuid.uuid4()))]
                else:
                    rows = [update_by_hand(repository, own[-1], title=str(dice.random()))]
                time.sleep(dice.uniform(0, 0.004))
                if dice.random() < 0.5:
                    change = delete_by_hand if dice.random() < 0.2 else _retitled
                    rows.append(change(repository, dice.choice(self._shared)))
                time.sleep(dice.uniform(0, 0.006))
            own.append(rows[0].id)
            return [State(row.id, row.version) for row in rows]

        return write


def _created(stub: TaskServiceStub) -> Task:
    return stub.CreateTask(CreateTaskRequest(task=Task(title="by call")))


def _created_or_not(stub: TaskServiceStub) -> Task | None:
    with suppress(grpc.RpcError):
        return _created(stub)
    return None


def _retitled(repository: TaskRepository, task_id: str) -> TaskRow:
    return update_by_hand(repository, task_id, title=str(uuid.uuid4()))


class Watcher:
    """Watches, breaks off at any moment and resumes: on one of these services, then the next."""

    def __init__(self, stubs: list[TaskServiceStub], seed: str) -> None:
        self.received: list[State] = []
        self._stubs = stubs
        self._dice = random.Random(seed)  # noqa: S311
        first = Watch(stubs[0])
        self._token = first.bookmark()
        first.cancel()

    def watch_until(self, last: Future[State], given_up: threading.Event) -> None:
        for turn in count():
            if given_up.is_set():
                return
            call: Any = self._stubs[turn % len(self._stubs)].WatchTasks(
                WatchTasksRequest(resume_token=self._token), wait_for_ready=True
            )
            breaking_off = threading.Timer(self._dice.uniform(0, 0.3), call.cancel)
            breaking_off.start()
            try:
                for response in call:
                    if response.type != BOOKMARK:
                        self.received.append(state_of(response.task))
                    self._token = response.resume_token
                    if last.done() and last.result() in self.received:
                        return
            except grpc.RpcError as error:
                assert error.code() in {UNAVAILABLE, CANCELLED}, error  # noqa: PT017
            finally:
                breaking_off.cancel()
                call.cancel()


def check_watchers(
    services: Services, by_hand: Database, seed: int, disturb: Callable[[Writers], None]
) -> None:
    """Require that every watcher receives each acknowledged change exactly once."""
    first, second = services.stubs
    writers = Writers(services.stubs, by_hand, seed)
    watchers = [
        Watcher(stubs, f"{seed} watcher {n}")
        for n, stubs in enumerate(([first], [second], [first, second]))
    ]
    last: Future[State] = Future()
    given_up = threading.Event()
    with ThreadPoolExecutor(16) as pool, ExitStack() as at_the_end:
        at_the_end.callback(given_up.set)
        watching = [pool.submit(watcher.watch_until, last, given_up) for watcher in watchers]
        try:
            writers.start(pool)
            writers.await_writes(50)
            disturb(writers)
            writers.await_writes(100)
        finally:
            try:
                writers.stop()
            finally:
                task = wait_until(lambda: _created_or_not(first), "the last")
                assert task is not None
                last.set_result(state_of(task))
        wait(watching, PATIENCE_SECONDS)
    for one in watching:
        one.result()
    for watcher in watchers:
        check(watcher.received, {*writers.acknowledged, last.result()}, EventLog(by_hand))


def check(received: list[State], acknowledged: set[State], events: EventLog) -> None:
    assert acknowledged - set(received) == set(), "lost"
    assert [state for state, times in Counter(received).items() if times > 1] == [], "repeated"
    versions = defaultdict(list)
    for state in received:
        versions[state.task_id].append(state.version)
    for task_id, of_one in versions.items():
        # The history has the writes that were not acknowledged, too.
        history = events.history(task_id, limit=10_000)
        written = [event.after.version for event in reversed(history)]
        assert of_one == written[written.index(of_one[0]) :], "out of order"


@pytest.mark.parametrize("seed", range(20))
def test_each_acknowledged_change_is_received_once(
    services: Services, by_hand: Database, seed: int
) -> None:
    def disturb(_: Writers) -> None:
        if seed == 3:
            services.upgrade()
        elif seed == 7:
            services.restart()

    check_watchers(services, by_hand, seed, disturb)


@pytest.mark.parametrize("seed", range(100, 103))
def test_each_acknowledged_change_is_received_once_despite_crashes(
    services: Services, by_hand: Database, postgres: EmbeddedPostgres, seed: int
) -> None:
    def disturb(writers: Writers) -> None:
        for _ in range(2):
            with killed(postgres):
                pass
            writers.await_writes(20)

    check_watchers(services, by_hand, seed, disturb)


def test_transactions_that_a_crash_forgets_hide_none_that_come_after_it(
    services: Services, postgres: EmbeddedPostgres
) -> None:
    """PostgreSQL gives the ids of those again that had left nothing on disk."""
    stub = services.stubs[0]
    for _ in range(3):
        _created(stub)
        for _ in range(5):
            stub.CreateTask(CreateTaskRequest(task=Task(title="not meant"), validate_only=True))
        first = Watch(stub)
        token = first.bookmark()
        with killed(postgres):
            first.cancel()
        task = wait_until(lambda: _created_or_not(stub), "the database is back")
        resumed = Watch(stub, resume_token=token)
        assert resumed.change().task == task
        resumed.cancel()


def test_a_watch_goes_on_when_the_database_is_back(
    services: Services, postgres: EmbeddedPostgres
) -> None:
    """A short outage of the database ends no watch."""
    stub = services.stubs[0]
    watching = Watch(stub)
    watching.bookmark()
    with killed(postgres):
        pass
    task = wait_until(lambda: _created_or_not(stub), "the database is back")
    assert watching.change().task == task
    watching.cancel()


def test_a_service_that_stops_ends_its_watches(
    start_service: Callable[..., ServiceProcess], url: str
) -> None:
    service = start_service(
        ENVIRONMENT="staging",
        DATABASE_URL=url,
        WORKERS="1",
        SHUTDOWN_GRACE_SECONDS=NEVER,
    )
    watching = Watch(service.stub())
    watching.bookmark()
    service.signal(signal.SIGTERM)
    with fails(UNAVAILABLE, "SHUTTING_DOWN"):
        raise watching.error()
    assert service.wait() == 0
