"""Fixtures of the tests of `tasks`: real services, and a command run as a shell would."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from taskservice_client.cli.__main__ import run
from tests.support.service import running_service

PROGRAM = [sys.executable, "-m", "taskservice_client.cli"]


class Result(NamedTuple):
    """The exit code of a command, and what it wrote."""

    code: int
    output: str
    errors: str


Tasks = Callable[..., Result]


@pytest.fixture(scope="session")
def other_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A second service, into which tests import."""
    with running_service(tmp_path_factory.mktemp("other-service")) as service:
        yield f"127.0.0.1:{service.port}"


@pytest.fixture
def environment(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a shell that knows the service, and has a file of contexts of its own."""
    for name in [name for name in os.environ if name.startswith(("TASKS_", "NO_COLOR"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TASKS_ADDRESS", address)
    monkeypatch.setenv("TASKS_CONTEXTS_FILE", str(tmp_path / "config" / "contexts.yaml"))
    monkeypatch.setenv("TZ", "UTC")
    return dict(os.environ)


@pytest.fixture
def tasks(environment: dict[str, str], capfd: pytest.CaptureFixture[str]) -> Tasks:
    """Run a command in this process."""

    def run_tasks(*arguments: str) -> Result:
        capfd.readouterr()
        code = run(arguments)
        sys.stdout.flush()
        return Result(code, *capfd.readouterr())

    return run_tasks


@pytest.fixture
def program(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command in a process of its own."""

    def run_program(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PROGRAM, *arguments],
            env=environment | changes,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=1200,  # For an import of many tasks.
        )

    return run_program
