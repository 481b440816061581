"""The service is not ready while PostgreSQL is unreachable, hangs, or does not fit this build.

The embedded PostgreSQL stands for a remote one: the service knows only its URL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status

from server.network.health import LIVENESS, READINESS, STARTUP
from storage import schema
from storage.embedded import EmbeddedPostgres
from taskservice.v1.task_service_pb2 import GetTaskStatsRequest
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.postgres import execute, frozen, killed
from tests.support.service import (
    NOT_SERVING,
    PATIENCE_SECONDS,
    SERVING,
    ServiceProcess,
    await_ready,
    await_unready,
    health,
    health_stub,
    is_alive,
    run_command,
    running_service,
    wait_until,
)

SECRET_KEY = "0123456789abcdef0123456789abcdef"  # noqa: S105 - of no service but these


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("postgres")


@pytest.fixture(scope="module")
def postgres(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(data_dir, settings={"fsync": "off"}) as postgres:
        schema.upgrade(postgres.url)
        yield postgres


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres
) -> Iterator[ServiceProcess]:
    """A service that every test finds ready, and leaves so."""
    with running_service(
        tmp_path_factory.mktemp("service"),
        ENVIRONMENT="staging",
        DATABASE_URL=postgres.url,
        WORKERS="1",
    ) as service:
        yield service


@pytest.fixture
def channel(service: ServiceProcess) -> Iterator[grpc.Channel]:
    channel = service.channel()
    await_ready(channel)
    yield channel
    await_ready(channel)


def test_service_is_not_ready_while_the_database_is_dead(
    channel: grpc.Channel, postgres: EmbeddedPostgres
) -> None:
    with killed(postgres):
        await_unready(channel)


def test_service_is_ready_again_once_the_database_is_back(
    channel: grpc.Channel, postgres: EmbeddedPostgres
) -> None:
    with killed(postgres):
        await_unready(channel)
    await_ready(channel)


def test_service_is_alive_while_the_database_is_dead(
    channel: grpc.Channel, postgres: EmbeddedPostgres
) -> None:
    """A restart of the service would not bring the database back."""
    with killed(postgres):
        await_unready(channel)
        assert is_alive(channel)


def test_calls_are_unavailable_while_the_database_is_dead(
    channel: grpc.Channel, postgres: EmbeddedPostgres
) -> None:
    stub = TaskServiceStub(channel)
    stub.GetTaskStats(GetTaskStatsRequest())  # So that there is a connection to lose.
    with killed(postgres), pytest.raises(grpc.RpcError) as raised:
        stub.GetTaskStats(GetTaskStatsRequest(), timeout=PATIENCE_SECONDS)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


def test_unavailable_says_when_to_retry(channel: grpc.Channel, postgres: EmbeddedPostgres) -> None:
    with killed(postgres), pytest.raises(grpc.RpcError) as raised:
        TaskServiceStub(channel).GetTaskStats(GetTaskStatsRequest(), timeout=PATIENCE_SECONDS)
    status = rpc_status.from_call(raised.value)  # type: ignore[arg-type]
    assert status is not None
    kinds = [detail.TypeName() for detail in status.details]
    assert error_details_pb2.RetryInfo.DESCRIPTOR.full_name in kinds


def test_calls_are_answered_again_once_the_database_is_back(
    channel: grpc.Channel, postgres: EmbeddedPostgres
) -> None:
    """Connections from before the crash are still in the pool, and none reaches a caller."""
    stub = TaskServiceStub(channel)
    running = [stub.GetTaskStats.future(GetTaskStatsRequest()) for _ in range(20)]
    assert [call.exception() for call in running] == [None] * 20
    with killed(postgres):
        await_unready(channel)
    await_ready(channel)
    later = [stub.GetTaskStats.future(GetTaskStatsRequest()) for _ in range(20)]
    assert [call.exception() for call in later] == [None] * 20


def test_service_is_not_ready_while_the_database_is_silent(
    channel: grpc.Channel, data_dir: Path
) -> None:
    """PostgreSQL accepts connections and never answers: only a timeout detects this."""
    with frozen(data_dir):
        await_unready(channel)
    await_ready(channel)


def test_service_is_alive_while_the_database_is_silent(
    channel: grpc.Channel, data_dir: Path
) -> None:
    with frozen(data_dir):
        await_unready(channel)
        assert is_alive(channel)


def test_deadline_holds_while_the_database_is_silent(channel: grpc.Channel, data_dir: Path) -> None:
    with frozen(data_dir), pytest.raises(grpc.RpcError) as raised:
        TaskServiceStub(channel).GetTaskStats(GetTaskStatsRequest(), timeout=0.5)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_cancelled_call_does_not_stop_probes_while_the_database_is_silent(
    channel: grpc.Channel, data_dir: Path
) -> None:
    """The request to cancel a statement waits for PostgreSQL, and nothing must wait for it."""
    stub = TaskServiceStub(channel)
    with frozen(data_dir):
        for _ in range(10):
            call = stub.GetTaskStats.future(GetTaskStatsRequest(), timeout=0.1)
            assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert is_alive(channel)


@pytest.mark.parametrize("revision", ["0001", "9999"])
def test_service_is_not_ready_while_the_schema_does_not_serve_it(
    channel: grpc.Channel, postgres: EmbeddedPostgres, revision: str
) -> None:
    set_revision(postgres.url, revision)
    await_unready(channel)
    set_revision(postgres.url, schema.head_revision())
    await_ready(channel)


def set_revision(url: str, revision: str) -> None:
    """Set the revision of the schema, which serves builds from this revision on."""
    statement = "UPDATE alembic_version SET version_num = :revision, oldest_build = :revision"
    execute(url, statement, revision=revision)


def test_watch_sees_the_outage_and_its_end(
    channel: grpc.Channel, postgres: EmbeddedPostgres
) -> None:
    request = health_pb2.HealthCheckRequest(service=READINESS)
    watch = health_stub(channel).Watch(request, timeout=PATIENCE_SECONDS)
    seen = [next(watch).status]
    with killed(postgres):
        seen.append(next(watch).status)
    seen.append(next(watch).status)
    watch.cancel()
    assert seen == [SERVING, NOT_SERVING, SERVING]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_service_starts_without_its_database_and_waits_for_it(
    start_service: Callable[..., ServiceProcess], tmp_path: Path, workers: str
) -> None:
    """Where everything starts at once, the order must not matter."""
    postgres = EmbeddedPostgres(tmp_path / "postgres", settings={"fsync": "off"})
    with postgres:
        schema.upgrade(postgres.url)
    service = start_service(ENVIRONMENT="staging", DATABASE_URL=postgres.url, WORKERS=workers)
    channel = service.channel()
    assert is_alive(channel)
    await_unready(channel)
    with postgres:
        await_ready(channel)
        TaskServiceStub(channel).GetTaskStats(GetTaskStatsRequest())


def refusal(folder: Path, url: str) -> str:
    """Why `serve` would not start."""
    ran = run_command(
        folder,
        "serve",
        ENVIRONMENT="staging",
        AUTH_MODE="none",
        DATABASE_URL=url,
        SECRET_KEY=SECRET_KEY,
    )
    assert ran.returncode == 1, ran.stdout
    return ran.stdout


@pytest.mark.parametrize("workers", ["1", "2"])
def test_service_starts_on_an_empty_database_and_waits_for_the_schema(
    start_service: Callable[..., ServiceProcess], empty_database_url: str, workers: str
) -> None:
    """A migration that runs beside the first start must not make it fail."""
    service = start_service(
        ENVIRONMENT="staging", DATABASE_URL=empty_database_url, WORKERS=workers, HEALTH_PORT="0"
    )
    service.await_log("run `task-service migrate`")
    channel = service.channel()
    statuses = [health(channel, name) for name in (LIVENESS, STARTUP, READINESS)]
    assert statuses == [SERVING, NOT_SERVING, NOT_SERVING]
    schema.upgrade(empty_database_url)
    wait_until(lambda: len(service.events("ready")) == int(workers), "every worker is ready")
    TaskServiceStub(channel).GetTaskStats(GetTaskStatsRequest())


def test_service_that_waits_for_the_schema_stops_in_order(
    start_service: Callable[..., ServiceProcess], empty_database_url: str
) -> None:
    service = start_service(ENVIRONMENT="staging", DATABASE_URL=empty_database_url, WORKERS="2")
    service.await_log("not ready")
    assert service.stop() == 0


def test_service_stays_ready_on_a_schema_ahead_that_serves_it(
    start_service: Callable[..., ServiceProcess], own_database_url: str
) -> None:
    """It is not ready again once the schema serves newer builds only."""
    service = start_service(ENVIRONMENT="staging", DATABASE_URL=own_database_url, WORKERS="1")
    channel = service.channel()
    await_ready(channel)
    watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest(service=READINESS))
    execute(own_database_url, "UPDATE alembic_version SET version_num = '9998'")
    service.await_log("the schema is ahead: it is at 9998, and serves this build")
    set_revision(own_database_url, "9999")
    assert [next(watch).status for _ in range(2)] == [SERVING, NOT_SERVING]
    watch.cancel()
    assert [event.get("note", "")[:19] for event in service.events("ready")] == [
        "",
        "the schema is ahead",
    ]


def test_service_starts_on_a_schema_ahead_that_serves_it(
    start_service: Callable[..., ServiceProcess], tmp_path: Path, own_database_url: str
) -> None:
    """A release is rolled back on the schema of the newer one, and migrate has nothing to do."""
    execute(own_database_url, "UPDATE alembic_version SET version_num = '9999'")
    ran = run_command(tmp_path, "migrate", DATABASE_URL=own_database_url)
    assert ran.returncode == 0, ran.stdout
    assert "the schema is ahead: it is at 9999, and serves this build" in ran.stdout
    service = start_service(ENVIRONMENT="staging", DATABASE_URL=own_database_url, WORKERS="1")
    await_ready(service.channel())


def test_schema_that_is_ahead_is_refused_as_such(tmp_path: Path, own_database_url: str) -> None:
    """Migrating would not help: this build is too old for the database."""
    set_revision(own_database_url, "9999")
    said = refusal(tmp_path, own_database_url)
    assert "the schema is ahead" in said
    assert "migrate" not in said
