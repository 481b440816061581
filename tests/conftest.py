"""Fixtures of all tests: a real PostgreSQL, a real server, a client over a real socket.

The server is the embedded one, started once; TEST_DATABASE_URL names another whose role may create
databases.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import grpc
import hypothesis
import jwt
import pytest
from pydantic import SecretStr
from sqlalchemy import make_url, text
from sqlalchemy.exc import OperationalError

from server.settings import Settings
from storage.database import Database
from storage.embedded import EmbeddedPostgres
from storage.repository import TaskRepository
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.access import StubOf
from tests.support.credentials import SECRET_KEY, authorised, claims
from tests.support.databases import made_database
from tests.support.service import ServiceProcess, running_service
from tests.support.workers import running_worker

# Examples take calls of the service, whose time varies, and share the fixtures of their test.
# `--hypothesis-profile quick` is for a second server, which differs in SQL only.
hypothesis.settings.register_profile(
    "thorough",
    max_examples=60,
    deadline=None,
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture,
        hypothesis.HealthCheck.too_slow,
    ],
)
hypothesis.settings.register_profile(
    "quick", hypothesis.settings.get_profile("thorough"), max_examples=15
)
hypothesis.settings.load_profile("thorough")


@pytest.fixture(scope="session", autouse=True)
def _own_settings() -> Iterator[None]:
    """Hide the developer's settings, from the environment or .env, from the tests."""
    patch = pytest.MonkeyPatch()
    for name in Settings.model_fields:
        patch.delenv(name.upper(), raising=False)
    patch.setitem(Settings.model_config, "env_file", None)
    patch.setattr("server.jobs.readiness.INTERVAL_SECONDS", 0.1)
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


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, postgres_url: str
) -> Iterator[ServiceProcess]:
    """A service on a database of its own."""
    with (
        made_database(postgres_url) as url,
        running_service(tmp_path_factory.mktemp("service"), DATABASE_URL=url) as service,
    ):
        yield service


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
    """A migrated database that tests share; `database` empties it."""
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
        shutdown_grace_seconds=5,
    )


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


@pytest.fixture(scope="session")
def token_settings(settings: Settings) -> Settings:
    changes = {"auth_mode": "jwt", "secret_key": SecretStr(SECRET_KEY)}
    return settings.model_copy(update=changes)


@pytest.fixture(scope="session")
def token_channel(token_settings: Settings, database_url: str) -> Iterator[grpc.Channel]:
    """A channel to a service that requires tokens signed with SECRET_KEY."""
    with running_worker(token_settings, database_url) as channel:
        yield channel


@pytest.fixture
def stub_of(token_channel: grpc.Channel, database: Database) -> StubOf:
    """The stub of a caller with this name and these scopes: words, or whatever the claim is.

    At the service that requires tokens, unless another is given with its key.
    """

    def stub_of(
        name: str,
        *scopes: str,
        at: tuple[grpc.Channel, str] = (token_channel, SECRET_KEY),
        **claim: object,
    ) -> TaskServiceStub:
        channel, key = at
        content = {"iss": None, "aud": None, "scope": " ".join(scopes), **claim}
        return TaskServiceStub(
            authorised(channel, jwt.encode(claims(name, **content), key, "HS256"))
        )

    return stub_of
