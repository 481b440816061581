"""`make upgrade-check`: whether the previous release's tests pass on the schema of this one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.previous_release import previous_release, revision_of, run_tests
from tests.support.releases import CHECKOUT, next_release

SOME_TESTS = ["tests/storage/repository/test_reads.py"]
VERSIONS = Path("storage/migrations/versions")


def test_a_migration_that_adds_a_column_passes(tmp_path: Path) -> None:
    newer = next_release(tmp_path, "ALTER TABLE tasks ADD colour text NOT NULL DEFAULT 'red'")
    assert run_tests(CHECKOUT, newer, SOME_TESTS) == pytest.ExitCode.OK


def test_a_migration_that_renames_a_column_fails(tmp_path: Path) -> None:
    newer = next_release(tmp_path, "ALTER TABLE tasks RENAME title TO name")
    assert run_tests(CHECKOUT, newer, SOME_TESTS) == pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    return tmp_path


def git(repository: Path, *arguments: str) -> str:
    author = ["-c", "user.name=ann", "-c", "user.email=ann@example.com"]
    command = ["git", "-C", str(repository), *author, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def commit(repository: Path, *revisions: str) -> str:
    """Commit migrations, or something else; return the commit."""
    for revision in revisions:
        file = repository / VERSIONS / f"{revision}_something.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--allow-empty", "--message=something")
    return git(repository, "rev-parse", "--short", "HEAD")


def test_the_previous_release_is_the_commit_before_the_migration(repository: Path) -> None:
    commit(repository, "0006")
    before = commit(repository)
    commit(repository, "0007")
    commit(repository)
    assert previous_release(repository, "0007") == before
    assert revision_of(repository, before) == "0006"


def test_the_previous_release_of_an_uncommitted_migration_is_the_head(repository: Path) -> None:
    head = commit(repository, "0006")
    assert previous_release(repository, "0007") == head


def test_the_previous_release_is_the_newest_tag_with_an_older_schema(repository: Path) -> None:
    commit(repository, "0006")
    for tag in ("v1.9.0", "v1.10.0"):
        git(repository, "tag", tag)
    commit(repository, "0007", "0008")
    git(repository, "tag", "v2.0.0")
    assert previous_release(repository, "0008") == "v1.10.0"


def test_a_history_without_an_older_schema_has_no_previous_release(repository: Path) -> None:
    commit(repository, "0006", "0007")
    assert previous_release(repository, "0007") is None
