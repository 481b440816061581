"""deploy/database/roles.sql: a role that migrates, one that serves, and one that reads."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ProgrammingError

from server.settings import Settings
from storage import schema
from storage.embedded import EmbeddedPostgres
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import (
    CreateTaskRequest,
    DeleteTaskRequest,
    GetTaskStatsRequest,
    ListTaskEventsRequest,
    PurgeTasksRequest,
)
from taskservice.v1.task_service_pb2_grpc import TaskServiceStub
from tests.support.postgres import execute
from tests.support.programs import debian_program
from tests.support.workers import running_worker

SCRIPT = Path(__file__).parents[2] / "deploy" / "database" / "roles.sql"


@pytest.fixture(scope="module")
def administrator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[URL]:
    """A server of its own on which the script ran."""
    with EmbeddedPostgres(tmp_path_factory.mktemp("roles"), settings={"fsync": "off"}) as postgres:
        url = make_url(postgres.url).set(database="postgres")
        execute(url.render_as_string(hide_password=False), "DROP DATABASE tasks")
        psql(url, "--file", str(SCRIPT))
        yield url


@pytest.fixture(scope="module")
def migrated(administrator: URL) -> URL:
    schema.upgrade(as_role(administrator, "tasks_migration"))
    return administrator


def psql(url: URL, *arguments: str, answers: str = "") -> None:
    """Run psql as an operator does; it asks on its input, without a terminal."""
    program = debian_program("psql", "postgresql-client-15")
    target = url.set(drivername="postgresql").render_as_string(hide_password=False)
    subprocess.run(
        [program, target, "--no-psqlrc", "--quiet", *arguments],
        input=answers,
        text=True,
        check=True,
        start_new_session=True,
        timeout=60,
    )


def as_role(url: URL, role: str) -> str:
    return url.set(username=role, database="tasks").render_as_string(hide_password=False)


def refused() -> pytest.RaisesExc[ProgrammingError]:
    return pytest.raises(ProgrammingError, match=r"permission denied|must be owner")


def test_the_service_works_with_a_role_that_owns_nothing(migrated: URL, settings: Settings) -> None:
    with running_worker(settings, as_role(migrated, "tasks_service")) as channel:
        stub = TaskServiceStub(channel)
        created = stub.CreateTask(CreateTaskRequest(task=Task(title="Send the invoices")))
        stub.DeleteTask(DeleteTaskRequest(id=created.id))
        assert len(stub.ListTaskEvents(ListTaskEventsRequest(task_id=created.id)).events) == 2
        assert stub.GetTaskStats(GetTaskStatsRequest()).total == 0
        purge = PurgeTasksRequest(filter=f'id = "{created.id}"', force=True)
        assert stub.PurgeTasks(purge).purge_count == 1


@pytest.mark.parametrize("role", ["tasks_service", "tasks_operator"])
def test_the_schema_is_changed_by_its_owner_only(migrated: URL, role: str) -> None:
    for statement in ("DROP TABLE tasks", "ALTER TABLE tasks ADD x int", "CREATE TABLE x ()"):
        with refused():
            execute(as_role(migrated, role), statement)


def test_an_operator_reads_and_does_not_write(migrated: URL) -> None:
    url = as_role(migrated, "tasks_operator")
    execute(url, "SELECT count(*) FROM tasks")
    with refused():
        execute(url, "DELETE FROM tasks")


def test_compose_sets_the_passwords(administrator: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIGRATION_PASSWORD", "of the migration")
    monkeypatch.setenv("DB_PASSWORD", "of the service")
    psql(administrator, "--file", str(SCRIPT.parents[1] / "compose" / "passwords.sql"))
    stored = execute(
        administrator.render_as_string(hide_password=False),
        "SELECT count(*) FROM pg_authid WHERE rolname IN ('tasks_migration', 'tasks_service')"
        " AND rolpassword LIKE 'SCRAM-SHA-256$%'",
    )
    assert stored == 2


def test_passwords_are_sent_as_verifiers(administrator: URL) -> None:
    psql(administrator, "--command", r"\password tasks_service", answers="secret\nsecret\n")
    stored = execute(
        administrator.render_as_string(hide_password=False),
        "SELECT rolpassword FROM pg_authid WHERE rolname = 'tasks_service'",
    )
    assert stored.startswith("SCRAM-SHA-256$")
