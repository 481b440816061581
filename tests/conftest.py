"""What every test stands on: a real PostgreSQL, a real server, a client over a real socket.

The server is the embedded one, started once; TEST_DATABASE_URL names another whose role may create
databases.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest
from sqlalchemy import NullPool, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from server.process import Signals
from server.settings import Settings
from server.worker import Worker
from storage import schema
from storage.database import Database
from storage.embedded import EmbeddedPostgres
from storage.repository import TaskRepository
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub

_numbers = itertools.count(1)


def debian_program(name: str, package: str) -> str:
    """Where a program of a package of Debian's is: no Python package, so not all have it.

    Tests that need it do not pass CI without.
    """
    if path := shutil.which(name):
        return path
    missing = f"{name} is not installed: apt-get install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture(scope="session", autouse=True)
def _own_settings() -> Iterator[None]:
    """The settings of whoever runs the tests, from the environment or .env, are not theirs."""
    patch = pytest.MonkeyPatch()
    for name in Settings.model_fields:
        patch.delenv(name.upper(), raising=False)
    patch.setitem(Settings.model_config, "env_file", None)
    yield
    patch.undo()


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server to make databases on."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield (
            make_url(given)
            .set(drivername="postgresql+psycopg2")
            .render_as_string(hide_password=False)
        )
        return
    folder = tmp_path_factory.mktemp("postgres")
    with EmbeddedPostgres(folder, settings={"fsync": "off"}) as embedded:
        yield embedded.url


@contextmanager
def made_database(postgres_url: str, *, migrated: bool = True) -> Iterator[str]:
    """A database of its own, dropped at the end."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    engine = create_engine(postgres_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    try:
        if migrated:
            schema.upgrade(url)
        yield url
    finally:
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """A database without a schema, for one test."""
    with made_database(postgres_url, migrated=False) as url:
        yield url


@pytest.fixture
def own_database_url(postgres_url: str) -> Iterator[str]:
    """A migrated database for one test."""
    with made_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="session")
def database_url(postgres_url: str) -> Iterator[str]:
    """A migrated database that the tests share; `database` empties it."""
    with made_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="session")
def _shared_database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


def _empty(database: Database) -> None:
    with database.engine.connect() as connection:
        connection.execute(text("TRUNCATE tasks, requests, task_events"))


@pytest.fixture
def database(_shared_database: Database) -> Database:
    """The shared database, empty."""
    try:
        _empty(_shared_database)
    except OperationalError:  # A deadlock with what a service reads in the background.
        _empty(_shared_database)
    return _shared_database


@pytest.fixture
def repository(database: Database) -> TaskRepository:
    return TaskRepository(database)


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        data_dir=tmp_path_factory.mktemp("data"),
        health_check_interval_seconds=0.1,
        shutdown_grace_seconds=5,
    )


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


@pytest.fixture(scope="session")
def channel(settings: Settings, database_url: str) -> Iterator[grpc.Channel]:
    """A channel to a service that the tests share."""
    with running_worker(settings, database_url) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.Channel, database: Database) -> TaskServiceStub:
    """The service's stub, on an empty database."""
    return TaskServiceStub(channel)


@pytest.fixture
def create_task(stub: TaskServiceStub) -> Callable[..., Task]:
    """Creates a task with these fields, by the service."""

    def create(**fields: object) -> Task:
        task = Task(**{"title": "a task", **fields})  # type: ignore[arg-type]
        return stub.CreateTask(CreateTaskRequest(task=task))

    return create
