"""The roles of deploy/database/roles.sql in operation: maintenance, a restore, a new password."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import OperationalError

from deploy.database.backup import back_up, restore
from server.jobs.retention import Maintenance
from server.settings import Settings
from storage import schema
from storage.database import Database
from storage.embedded import EmbeddedPostgres, program
from storage.repository import TaskRepository
from tests.support.load import Load
from tests.support.postgres import execute
from tests.support.service import ServiceProcess, wait_until
from tests.support.watching import create_by_hand

ROLES = Path(__file__).parents[2] / "deploy" / "database" / "roles.sql"
GRANT = (
    "ALTER DEFAULT PRIVILEGES FOR ROLE tasks_migration "
    "GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO tasks_service"
)
# Passwords for the roles of the file, and none for the administrator.
ACCESS = "local all tasks trust\nlocal all all scram-sha-256\n"
TASK_ID = "01a21b0b-c092-7103-92ab-9cda0edcabe9"


class Server:
    """A PostgreSQL that requires passwords; that of each role is its name."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self._url = make_url(postgres.url)

    def url(self, role: str, database: str = "tasks") -> str:
        password = None if role == "tasks" else role
        url = self._url.set(username=role, password=password, database=database)
        return url.render_as_string(hide_password=False)

    def administer(self, statement: str, database: str = "tasks") -> None:
        execute(self.url("tasks", database), statement)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the roles, and a schema made by their owner."""
    folder = tmp_path_factory.mktemp("postgres")
    (folder / "pg_hba.conf").write_text(ACCESS)
    settings = {"hba_file": str(folder / "pg_hba.conf"), "fsync": "off"}
    with EmbeddedPostgres(folder / "data", settings=settings) as postgres:
        server = Server(postgres)
        server.administer("DROP DATABASE tasks", "postgres")
        to = [f"--host={postgres.socket_dir}", "--username=tasks", "--dbname=postgres"]
        subprocess.run([program("psql"), "--quiet", *to, f"--file={ROLES}"], check=True)
        for role in ("tasks_migration", "tasks_service"):
            server.administer(f"ALTER ROLE {role} PASSWORD '{role}'")
        schema.upgrade(server.url("tasks_migration"))
        yield server


def test_the_role_of_the_service_has_the_rights_of_maintenance(
    server: Server, settings: Settings
) -> None:
    database = Database(server.url("tasks_service"))
    kept = settings.model_copy(update={"event_retention_days": 0, "deleted_retention_days": 0})
    assert set(Maintenance(database, kept).run_once()) == {"requests", "events", "tasks"}
    database.close()


def test_a_backup_is_restored_for_the_same_roles(server: Server, tmp_path: Path) -> None:
    server.administer("CREATE DATABASE restored OWNER tasks_migration TEMPLATE template0")
    server.administer(GRANT, "restored")
    back_up(server.url("tasks_migration"), tmp_path / "tasks.dump")
    restore(server.url("tasks_migration", "restored"), tmp_path / "tasks.dump")
    database = Database(server.url("tasks_service", "restored"))
    assert create_by_hand(TaskRepository(database), TASK_ID).id == TASK_ID
    database.close()


def test_the_password_is_changed_without_a_failed_call(
    server: Server, start_service: Callable[..., ServiceProcess]
) -> None:
    """Another role has the new password; the one with the old is locked when none uses it."""
    settings = {"ENVIRONMENT": "staging", "WORKERS": "1", "SHUTDOWN_DELAY_SECONDS": "1"}
    old = start_service(DATABASE_URL=server.url("tasks_service"), **settings)
    with Load(old, clients=4) as load:
        load.await_more()
        server.administer("CREATE ROLE tasks_b LOGIN PASSWORD 'tasks_b' IN ROLE tasks_service")
        new_url = server.url("tasks_b")
        new = start_service(DATABASE_URL=new_url, GRPC_PORT=str(old.port), **settings)
        wait_until(lambda: new.events("ready"), "the new service is ready")
        assert old.stop() == 0, old.log
        server.administer("ALTER ROLE tasks_service NOLOGIN PASSWORD NULL")
        load.await_more()
    assert load.failures == []
    with pytest.raises(OperationalError, match=r"password authentication failed|not permitted"):
        execute(server.url("tasks_service"), "SELECT 1")
