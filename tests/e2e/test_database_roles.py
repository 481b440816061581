"""The roles of deploy/operations: one migrates, two others serve."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import OperationalError, ProgrammingError

from deploy.operations.backup import back_up, restore
from server.jobs.retention import Maintenance
from server.settings import Settings
from storage.database import Database
from storage.embedded import EmbeddedPostgres, program
from storage.repository import TaskRepository
from taskservice.v1.task_service_pb2 import (
    GetTaskStatsRequest,
    ListTaskEventsRequest,
    PurgeTasksRequest,
)
from tests.support.load import Load
from tests.support.postgres import execute
from tests.support.service import ServiceProcess, await_ready, run_command, wait_until
from tests.support.watching import create, create_by_hand, delete, update

Start = Callable[..., ServiceProcess]
RoleUrl = Callable[..., str]

OPERATIONS = Path(__file__).parents[2] / "deploy" / "operations"
# Passwords for the roles of the file, and none for the administrator.
ACCESS = "local all tasks trust\nlocal all all scram-sha-256\n"
OWNER_PASSWORD, SERVICE_PASSWORD = "the owner's", "the service's"


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server that requires passwords, with the roles, and a schema made by their owner."""
    folder = tmp_path_factory.mktemp("postgres")
    (folder / "pg_hba.conf").write_text(ACCESS)
    settings = {"hba_file": str(folder / "pg_hba.conf"), "fsync": "off"}
    with EmbeddedPostgres(folder / "data", settings=settings) as postgres:
        run_psql(postgres, "roles.sql")
        run_psql(postgres, "grants.sql")
        owner = url_of(postgres, "tasks_owner", OWNER_PASSWORD)
        assert run_command(folder, "migrate", DATABASE_URL=owner).returncode == 0
        yield postgres


def run_psql(postgres: EmbeddedPostgres, file: str, database: str = "tasks") -> None:
    """Run a file of deploy/operations as the administrator."""
    passwords = {"OWNER_PASSWORD": OWNER_PASSWORD, "SERVICE_PASSWORD": SERVICE_PASSWORD}
    to = [f"--host={postgres.socket_dir}", "--username=tasks", f"--dbname={database}"]
    command = [program("psql"), "--no-psqlrc", "--quiet", *to, f"--file={OPERATIONS / file}"]
    subprocess.run(command, env=os.environ | passwords, check=True)


def url_of(postgres: EmbeddedPostgres, role: str, password: str, database: str = "tasks") -> str:
    url = make_url(postgres.url).set(username=role, password=password, database=database)
    return url.render_as_string(hide_password=False)


@pytest.fixture
def role_url(postgres: EmbeddedPostgres) -> RoleUrl:
    """The URL of the service's first role, or of another."""

    def role_url(role: str = "tasks_service_a", password: str = SERVICE_PASSWORD) -> str:
        return url_of(postgres, role, password)

    return role_url


def test_a_role_without_rights_on_the_schema_serves(
    start_service: Start, role_url: RoleUrl
) -> None:
    service = start_service(ENVIRONMENT="staging", DATABASE_URL=role_url(), WORKERS="1")
    await_ready(service.channel())
    stub = service.stub()
    task, other = create(stub, "one", "other")
    update(stub, task, title="changed")
    delete(stub, other)
    assert len(stub.ListTaskEvents(ListTaskEventsRequest(task_id=task.id)).events) == 2
    assert stub.GetTaskStats(GetTaskStatsRequest()).total >= 1
    assert stub.PurgeTasks(PurgeTasksRequest(filter="title = other", force=True)).purge_count == 1
    assert "permission denied" not in service.log


def test_a_role_without_rights_on_the_schema_maintains(
    role_url: RoleUrl, settings: Settings
) -> None:
    """Retention and the repair of counters need no other rights than calls."""
    database = Database(role_url())
    kept = settings.model_copy(update={"event_retention_days": 0, "deleted_retention_days": 0})
    assert set(Maintenance(database, kept).run_once()) == {"requests", "events", "tasks"}
    database.close()


@pytest.mark.parametrize("statement", ["DROP TABLE tasks", "CREATE TABLE t ()", "TRUNCATE tasks"])
def test_the_role_of_the_service_changes_no_schema(role_url: RoleUrl, statement: str) -> None:
    with pytest.raises(ProgrammingError, match=r"must be owner|permission denied"):
        execute(role_url(), statement)


def test_a_backup_is_restored_for_the_same_roles(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    execute(postgres.url, "CREATE DATABASE restored")
    run_psql(postgres, "grants.sql", "restored")
    back_up(url_of(postgres, "tasks_owner", OWNER_PASSWORD), tmp_path / "tasks.dump")
    restore(url_of(postgres, "tasks_owner", OWNER_PASSWORD, "restored"), tmp_path / "tasks.dump")
    served = url_of(postgres, "tasks_service_a", SERVICE_PASSWORD, "restored")
    task_id = "01a21b0b-c092-7103-92ab-9cda0edcabe9"
    database = Database(served)
    assert create_by_hand(TaskRepository(database), task_id).id == task_id
    database.close()


def test_the_password_is_changed_without_a_failed_call(
    postgres: EmbeddedPostgres, role_url: RoleUrl, start_service: Start
) -> None:
    """The second role gets the new password; the first one is locked when none uses it."""
    settings = {"ENVIRONMENT": "staging", "WORKERS": "1", "SHUTDOWN_DELAY_SECONDS": "1"}
    old = start_service(DATABASE_URL=role_url(), **settings)
    with Load(old, clients=4) as load:
        load.await_more()
        execute(postgres.url, "ALTER ROLE tasks_service_b LOGIN PASSWORD 'new'")
        new_url = role_url("tasks_service_b", "new")
        new = start_service(DATABASE_URL=new_url, GRPC_PORT=str(old.port), **settings)
        wait_until(lambda: new.events("ready"), "the new service is ready")
        assert old.stop() == 0, old.log
        execute(postgres.url, "ALTER ROLE tasks_service_a NOLOGIN PASSWORD NULL")
        load.await_more()
    assert load.failures == []
    with pytest.raises(OperationalError, match=r"password authentication failed|not permitted"):
        execute(role_url(), "SELECT 1")
