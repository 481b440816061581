"""A database that takes no writes: the service is not ready, and says why, until it does."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from storage import schema
from storage.embedded import EmbeddedPostgres
from taskservice.v1.task_pb2 import Task
from taskservice.v1.task_service_pb2 import CreateTaskRequest, GetTaskRequest
from tests.support.postgres import execute
from tests.support.service import ServiceProcess, await_ready, await_unready, is_alive

Start = Callable[..., ServiceProcess]

DISCONNECT = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = :name AND pid <> pg_backend_pid()
"""


@pytest.fixture
def standby_url(tmp_path: Path) -> Iterator[str]:
    """A standby without a primary, made of a copy of a migrated database."""
    with EmbeddedPostgres(tmp_path / "primary", settings={"fsync": "off"}) as primary:
        schema.upgrade(primary.url)
    shutil.copytree(tmp_path / "primary", tmp_path / "standby")
    (tmp_path / "standby" / "postgres" / "standby.signal").touch()
    with EmbeddedPostgres(tmp_path / "standby", settings={"fsync": "off"}) as standby:
        yield standby.url


def test_a_standby_is_not_ready_until_it_is_promoted(
    standby_url: str, start_service: Start
) -> None:
    service = start_service(DATABASE_URL=standby_url)
    service.await_log("the database is read-only: it is a standby")
    channel = service.channel()
    assert is_alive(channel)
    await_unready(channel)
    execute(standby_url, "SELECT pg_promote()")
    await_ready(channel)
    service.stub().CreateTask(CreateTaskRequest(task=Task(title="a task")))


@pytest.mark.parametrize("scope", ["DATABASE {name}", "ROLE {role}"])
def test_a_database_that_becomes_read_only_is_not_ready_until_it_is_not(
    own_database_url: str, postgres_url: str, start_service: Start, scope: str
) -> None:
    """By a default that sessions keep: those of then must not outlive it."""
    service = start_service(DATABASE_URL=own_database_url)
    channel = service.channel()
    await_ready(channel)
    task = service.stub().CreateTask(CreateTaskRequest(task=Task(title="a task")))
    to = make_url(own_database_url)
    what = scope.format(name=to.database, role=f"{to.username} IN DATABASE {to.database}")
    execute(postgres_url, f"ALTER {what} SET default_transaction_read_only = on")
    execute(postgres_url, DISCONNECT, name=to.database)
    await_unready(channel)
    service.await_log("the database is read-only: default_transaction_read_only is on")
    assert service.stub().GetTask(GetTaskRequest(id=task.id)) == task
    execute(postgres_url, f"ALTER {what} RESET default_transaction_read_only")
    await_ready(channel)
    service.stub().CreateTask(CreateTaskRequest(task=Task(title="a task")))


def test_sessions_that_options_make_read_only_are_not_ready(
    own_database_url: str, start_service: Start
) -> None:
    service = start_service(
        DATABASE_URL=own_database_url, PGOPTIONS="-c default_transaction_read_only=on"
    )
    service.await_log("the database is read-only: default_transaction_read_only is on")
    await_unready(service.channel())
