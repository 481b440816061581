"""Run the previous release's tests on the schema of this checkout: `make upgrade-check`.

The previous release is the newest tag, or else the newest commit, whose schema is older. Its tests
run with the packages of this checkout's environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

from storage import schema
from tests.support.releases import CHECKOUT, migrate_command

# What a build does with its tables. Tests of migrations are about a build's own.
TESTS = "tests/tasks", "tests/jobs", "tests/storage/repository", "tests/storage/events"

_VERSIONS = "storage/migrations/versions"


def main(options: Sequence[str]) -> int:
    """Find the previous release and run its tests by pytest; return the exit code."""
    newest = schema.head_revision()
    release = previous_release(CHECKOUT, newest)
    if release is None:
        sys.stdout.write(f"nothing to compare: the history has no schema older than {newest}\n")
        return 0
    revision = revision_of(CHECKOUT, release)
    if revision < schema.RECORDED_SINCE:
        sys.stdout.write(
            f"nothing to compare: {release} is of schema {revision}, and builds before "
            f"{schema.RECORDED_SINCE} refuse a schema that is ahead\n"
        )
        return 0
    sys.stdout.write(f"the tests of {release} (schema {revision}) on schema {newest}\n")
    with TemporaryDirectory() as folder:
        _check_out(CHECKOUT, release, Path(folder))
        return run_tests(Path(folder), CHECKOUT, [*options, *TESTS])


def previous_release(checkout: Path, newest: str) -> str | None:
    """Return the newest tag, or else commit, whose schema is older than this revision."""
    for candidate in _candidates(checkout, newest):
        if revision_of(checkout, candidate) < newest:
            return candidate
    return None


def _candidates(checkout: Path, newest: str) -> Iterator[str]:
    tags = _git(checkout, "tag", "--list", "v*", "--merged", "HEAD", "--sort=-version:refname")
    yield from tags.split()
    added = "log", "--diff-filter=A", "--format=%h", "--", f"{_VERSIONS}/{newest}_*"
    commits = _git(checkout, *added).split()
    # The commit before the first with it; HEAD while it is not committed.
    before = ["--first-parent", "--skip=1", commits[-1]] if commits else ["HEAD"]
    yield from _git(checkout, "rev-list", "--max-count=1", "--abbrev-commit", *before).split()


def revision_of(checkout: Path, commit: str) -> str:
    """Return the revision of a commit's schema; "" if there is none."""
    names = _git(checkout, "ls-tree", "--name-only", commit, f"{_VERSIONS}/").split()
    return max((Path(name).name.partition("_")[0] for name in names), default="")


def _git(checkout: Path, *arguments: str) -> str:
    """Return what a command of git prints."""
    command = ["git", "-C", str(checkout), *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout


def _check_out(checkout: Path, commit: str, folder: Path) -> None:
    command = ["git", "-C", str(checkout), "archive", commit]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")


def run_tests(older: Path, newer: Path, arguments: Sequence[str]) -> int:
    """Run tests of a checkout on the schema of a newer one; return the exit code of pytest."""
    changes = {
        "PYTHONPATH": f"{older}:{older / 'generated'}",
        "TEST_MIGRATE_COMMAND": migrate_command(newer),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=older, env=os.environ | changes, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
