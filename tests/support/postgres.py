"""Lock, stop and inspect the database without the service."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import NullPool, create_engine, make_url, text

from storage.embedded import EmbeddedPostgres
from tests.support.service import wait_until

_RUNNING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'task-service' AND state = 'active'
"""
_CONNECTED = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'task-service'
"""


def execute(url: str, statement: str, **parameters: object) -> Any:
    """Run a statement on its own connection; return the first value, if any."""
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        result = connection.execute(text(statement), parameters)
        return result.scalar() if result.returns_rows else None


@contextmanager
def locked_task(url: str, task_id: str) -> Iterator[None]:
    """Block every write to the task during the block."""
    with create_engine(url, poolclass=NullPool).begin() as connection:
        connection.execute(text("SELECT 1 FROM tasks WHERE id = :id FOR UPDATE"), {"id": task_id})
        yield


def waiting_statements(url: str) -> int:
    """Return the number of the service's statements that wait for a lock."""
    return int(execute(url, f"{_RUNNING} AND wait_event_type = 'Lock'"))


def running_statements(url: str) -> int:
    """Return the number of the service's statements that run."""
    return int(execute(url, _RUNNING))


def await_waiting(url: str, count: int = 1) -> None:
    wait_until(lambda: waiting_statements(url) >= count, f"{count} statements wait for a lock")


def await_none_waiting(url: str) -> None:
    wait_until(lambda: waiting_statements(url) == 0, "no statement waits for a lock")


@contextmanager
def closed(url: str) -> Iterator[None]:
    """Close the database's connections and refuse new ones during the block."""
    name = make_url(url).database
    server = make_url(url).set(database="postgres").render_as_string(hide_password=False)
    execute(server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    execute(
        server,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name",
        name=name,
    )
    try:
        yield
    finally:
        execute(server, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def connections(url: str) -> int:
    """Return the number of the service's connections to the database."""
    return int(execute(url, _CONNECTED))


def postmaster(data_dir: Path) -> psutil.Process:
    """Return the first process of the embedded PostgreSQL; its parent is the guard."""
    pid = int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
    return psutil.Process(pid)


def embedded_url(data_dir: Path) -> str:
    """Return the URL of a service's embedded PostgreSQL."""
    socket_dir = (data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[4]
    return f"postgresql+psycopg2://tasks@/tasks?host={socket_dir}&port=5432"


@contextmanager
def killed(postgres: EmbeddedPostgres) -> Iterator[None]:
    """Kill PostgreSQL (SIGKILL) at the start of the block; start it again at the end."""
    server = postmaster(postgres.data_dir)
    for process in (server, *server.children()):
        _signal(process, signal.SIGKILL)
    try:
        yield
    finally:
        postgres.stop()
        postgres.start()


@contextmanager
def frozen(data_dir: Path) -> Iterator[None]:
    """Stop PostgreSQL's processes during the block: it keeps connections and does not answer."""
    server = postmaster(data_dir)
    server.suspend()
    processes = [server, *server.children()]
    try:
        for process in processes:
            _signal(process, signal.SIGSTOP)
        yield
    finally:
        for process in reversed(processes):
            _signal(process, signal.SIGCONT)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return
