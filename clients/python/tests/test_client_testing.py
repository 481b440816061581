"""The fixture for those who test against the service."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TEST = """
def test_a_task_is_created(task_service):
    with task_service.client() as client:
        assert client.create(title="a task").created_by == "tests"


def test_another_principal_may_only_read(task_service):
    import pytest
    from taskservice_client import PermissionDenied, TaskClient

    with TaskClient(task_service.address, token=task_service.token_of("ann", "tasks:read")) as ann:
        assert ann.count() == 1
        with pytest.raises(PermissionDenied):
            ann.create(title="a task")
"""


def run_tests(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run tests of another project, which uses the fixture."""
    (folder / "conftest.py").write_text('pytest_plugins = ["taskservice_client.testing"]\n')
    (folder / "test_it.py").write_text(TEST)
    (folder / "pytest.ini").write_text("[pytest]\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_fixture_runs_a_real_service(tmp_path: Path) -> None:
    done = run_tests(tmp_path, TASK_SERVICE_COMMAND=f"{sys.executable} -m server")
    assert "2 passed" in done.stdout, done.stdout


def test_a_missing_program_is_reported_with_what_to_do(tmp_path: Path) -> None:
    done = run_tests(tmp_path, PATH=str(tmp_path), TASK_SERVICE_COMMAND="")
    assert done.returncode == 1
    assert "uv tool install" in done.stdout


def test_a_service_that_does_not_start_is_reported_with_its_log(tmp_path: Path) -> None:
    command = f"{sys.executable} -m server --unknown"
    done = run_tests(tmp_path, TASK_SERVICE_COMMAND=command)
    assert done.returncode == 1
    assert "unrecognized arguments" in done.stdout
