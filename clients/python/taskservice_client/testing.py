"""A real service for the tests of its clients.

In `conftest.py`:

    pytest_plugins = ["taskservice_client.testing"]

    @pytest.fixture
    def tasks(task_service):
        with task_service.client() as client:
            yield client

The service is the program `task-service` on the PATH, or the command in TASK_SERVICE_COMMAND, in an
environment of its own: `uv tool install 'task-service[embedded]'`. It starts with an empty
PostgreSQL of its own, on a free port of 127.0.0.1, once for all tests.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from taskservice_client import AsyncTaskClient, TaskClient

ALL_SCOPES = "tasks:read", "tasks:write", "tasks:admin"

_COMMAND = "TASK_SERVICE_COMMAND"
_INHERITED = "PATH", "HOME", "LANG", "TMPDIR"
_SERVING = re.compile(r"serving.*address\W+[^\s\",]*:(\d+)")
_STOP_SECONDS = 60.0


class TaskServiceNotFoundError(Exception):
    """The program of the service is not installed, or does not start."""


@dataclass(frozen=True, slots=True)
class RunningTaskService:
    """A running service, which requires tokens."""

    address: str
    token: str
    """A token with all scopes."""
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path

    def client(self) -> TaskClient:
        """Make a client with all scopes."""
        return TaskClient(self.address, token=self.token)

    def async_client(self) -> AsyncTaskClient:
        """Make a client for asyncio with all scopes."""
        return AsyncTaskClient(self.address, token=self.token)

    def token_of(self, principal: str, *scopes: str) -> str:
        """Make a token of another principal."""
        return _token(self.command, self.environment, self.folder, principal, scopes)


@pytest.fixture(scope="session")
def task_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTaskService]:
    """A service with an empty database, for all tests of the session."""
    with running_task_service(tmp_path_factory.mktemp("task-service")) as service:
        yield service


@contextmanager
def running_task_service(folder: Path, **settings: str) -> Iterator[RunningTaskService]:
    """Run a service with its files in a folder. Raises: TaskServiceNotFoundError."""
    command = _command()
    environment = {
        **{name: os.environ[name] for name in _INHERITED if name in os.environ},
        "AUTH_MODE": "jwt",
        "DATA_DIR": str(folder / "data"),
        "GRPC_PORT": "0",
        "OTEL_ENABLED": "false",
        "SECRET_KEY": secrets.token_hex(32),
        **settings,
    }
    log = folder / "service.log"
    with log.open("w") as output:
        process = subprocess.Popen(  # noqa: S603 - the command that the developer configured.
            [*command, "serve"], cwd=folder, env=environment, stdout=output, stderr=output
        )
    try:
        port = _port_of(process, log)
        token = _token(command, environment, folder, "tests", ALL_SCOPES)
        yield RunningTaskService(f"127.0.0.1:{port}", token, command, environment, folder)
    finally:
        process.terminate()
        process.wait(_STOP_SECONDS)


def _command() -> list[str]:
    """Return the command of the service. Raises: TaskServiceNotFoundError."""
    if given := os.environ.get(_COMMAND):
        return shlex.split(given)
    if found := shutil.which("task-service"):
        return [found]
    raise TaskServiceNotFoundError(
        "the program task-service is not on the PATH: install it in an environment of its own,"
        f" uv tool install 'task-service[embedded]', or set {_COMMAND}"
    )


def _port_of(process: subprocess.Popen[bytes], log: Path) -> int:
    """Return the port that the log names. Raises: TaskServiceNotFoundError."""
    while not (found := _SERVING.search(log.read_text())):
        if process.poll() is not None:
            raise TaskServiceNotFoundError(f"the service did not start:\n{log.read_text()}")
        time.sleep(0.05)
    return int(found[1])


def _token(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    principal: str,
    scopes: Sequence[str],
) -> str:
    arguments = [*command, "token", "--minutes", "1440", "--sub", principal, "--scope", *scopes]
    made = subprocess.run(  # noqa: S603
        arguments, cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return made.stdout.strip()
