"""Export and import: nothing is lost or doubled, also if either is killed and started again.

TRANSFER_TASKS is the number of tasks, 3,000 by default; `make transfers` prints the figures.
"""

import os
import re
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from cli.conftest import PROGRAM, Tasks
from cli.transfers import killed_when, made_tasks, settable, size_of
from taskservice_client import TaskClient
from taskservice_client.cli.exporting import partial_file

COUNT = int(os.environ.get("TRANSFER_TASKS", "3000"))

Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tag() -> str:
    return uuid4().hex


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tasks.jsonl"


@pytest.fixture(scope="module")
def other(other_address: str) -> Iterator[TaskClient]:
    with TaskClient(other_address) as client:
        yield client


@pytest.mark.timeout(1800)
def test_killed_transfers_continue_and_give_equal_tasks(  # noqa: PLR0917 - fixtures
    program: Program,
    environment: dict[str, str],
    client: TaskClient,
    other: TaskClient,
    other_address: str,
    file: Path,
    tag: str,
) -> None:
    """Both are killed after a part of the tasks, and started again."""
    client.create_many(made_tasks(COUNT, tag), timeout=120)
    began = time.monotonic()
    selection, partial = ["--tag", tag], partial_file(file, f'tags:"{tag}"')
    while not killed_when(
        lambda: size_of(partial) > COUNT * 10, environment, "export", str(file), *selection
    ):
        file.unlink()  # It was complete before the kill.
    assert not file.exists()
    assert 0 < partial.read_bytes().count(b"\n") < COUNT
    exported = program("export", str(file), *selection)
    assert re.search(
        rf"{COUNT} tasks exported to .*, \d+ of them by an earlier start", exported.stderr
    )

    exported_at = time.monotonic()
    target = environment | {"TASKS_ADDRESS": other_address}
    assert killed_when(lambda: other.count() >= COUNT // 3, target, "import", str(file))
    assert COUNT // 3 <= other.count() < COUNT
    imported = program("import", str(file), TASKS_ADDRESS=other_address)
    assert (imported.returncode, imported.stdout) == (0, "")
    imported_at = time.monotonic()
    again = program("import", str(file), TASKS_ADDRESS=other_address)
    assert again.stderr == f"0 created, {COUNT} unchanged\n"

    back = program("export", "-", *selection, TASKS_ADDRESS=other_address)
    originals = settable(file.read_text().splitlines())
    assert len(originals) == COUNT
    assert settable(back.stdout.splitlines()) == originals
    print(  # noqa: T201
        f"{COUNT} equal tasks: exported in {exported_at - began:.0f} s, "
        f"imported in {imported_at - exported_at:.0f} s, each killed and started again"
    )


@pytest.mark.parametrize(
    "command", ["$tasks export --tag {tag} | $into", "$into <($tasks export --tag {tag})"]
)
def test_a_pipe_copies_tasks(  # noqa: PLR0917 - fixtures
    environment: dict[str, str],
    client: TaskClient,
    other: TaskClient,
    other_address: str,
    tag: str,
    command: str,
) -> None:
    ids = {task.id for task in client.create_many(made_tasks(20, tag))}
    tasks = " ".join(PROGRAM)
    variables = f"tasks='{tasks}'; into='{tasks} import --address {other_address}'"
    script = f"{variables}; {command.format(tag=tag)}"
    subprocess.run(["bash", "-c", script], env=environment, check=True)
    assert {task.id for task in other.list(f"tags:{tag}")} == ids


def test_a_finished_export_is_not_overwritten_unasked(tasks: Tasks, file: Path, tag: str) -> None:
    assert tasks("export", str(file), "--tag", tag).code == 0
    file.write_text("kept")
    result = tasks("export", str(file), "--tag", tag)
    assert (result.code, file.read_text()) == (2, "kept")
    assert tasks("export", str(file), "--tag", tag, "--overwrite").code == 0
    assert file.read_text() == ""


def test_an_export_can_be_read_by_its_owner_only(tasks: Tasks, file: Path, tag: str) -> None:
    tasks("export", str(file), "--tag", tag)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [each.name for each in file.parent.iterdir() if each.is_file()] == [file.name]


def test_an_export_continues_behind_its_last_complete_line(
    tasks: Tasks, client: TaskClient, file: Path, tag: str
) -> None:
    """Tasks of one batch have one creation time: the id tells which of them the file has."""
    client.create_many(made_tasks(10, tag))
    tasks("export", str(file), "--tag", tag)
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    seven = b"".join(lines[:7])
    for kept in [b"", lines[0][:-1], lines[0], seven + lines[7][:30], whole, whole + lines[7][:30]]:
        file.unlink()
        partial_file(file, f'tags:"{tag}"').write_bytes(kept)
        assert tasks("export", str(file), "--tag", tag).code == 0
        assert file.read_bytes() == whole


def test_an_export_with_another_filter_begins_anew(
    tasks: Tasks, client: TaskClient, file: Path, tag: str
) -> None:
    client.create(title="a", tags=[tag])
    partial_file(file, "another filter").write_bytes(b"{}\n")
    assert tasks("export", str(file), "--tag", tag).code == 0
    assert file.read_text().count("\n") == 1
