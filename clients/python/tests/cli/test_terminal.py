"""What a shell and a terminal see: signals, pipes, colours, questions."""

import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from cli.conftest import PROGRAM
from taskservice_client import Task, TaskClient


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """The two ends of a terminal: the test's and the command's."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    for end in (ours, theirs):
        with suppress(OSError):
            os.close(end)


def read_all(ours: int) -> str:
    """Read until the other end is closed, which is an error on Linux."""
    parts = []
    with suppress(OSError):
        while part := os.read(ours, 4096):
            parts.append(part)
    return b"".join(parts).decode()


def in_terminal(
    terminal: tuple[int, int], environment: dict[str, str], *arguments: str, typed: str = ""
) -> tuple[int, str]:
    """Run a command in a terminal; return its exit code and what it shows."""
    ours, theirs = terminal
    os.write(ours, typed.encode())
    with subprocess.Popen(
        [*PROGRAM, *arguments], env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = read_all(ours)
    return process.returncode, shown


def test_a_reader_that_ends_gives_141_without_messages(
    environment: dict[str, str], client: TaskClient
) -> None:
    client.create(title="a")
    command = " ".join([*PROGRAM, "export", "-"])
    result = subprocess.run(
        ["bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (result.stdout, result.stderr) == ("141\n", "")


def test_ctrl_c_gives_130_without_messages(environment: dict[str, str], client: TaskClient) -> None:
    tag = uuid4().hex
    with subprocess.Popen(
        [*PROGRAM, "watch", "--tag", tag, "--initial", "-o", "jsonl"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stderr
        assert "BOOKMARK" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == ""


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_has_colours_unless_no_color_is_set(
    terminal: tuple[int, int],
    environment: dict[str, str],
    variables: dict[str, str],
    coloured: bool,
) -> None:
    terminal_environment = environment | {"TERM": "xterm-256color"} | variables
    _, shown = in_terminal(terminal, terminal_environment, "health")
    assert "SERVING" in shown
    assert ("\x1b[32m" in shown) is coloured


def test_transfers_show_their_progress(
    terminal: tuple[int, int], environment: dict[str, str], client: TaskClient, tmp_path: Path
) -> None:
    tag = uuid4().hex
    client.create_many([Task(title="a", tags=[tag]) for _ in range(3)])
    export = ["export", str(tmp_path / "tasks.jsonl"), "--tag", tag]
    code, shown = in_terminal(terminal, environment, *export)
    assert code == 0
    assert "Exporting" in shown
    assert "3/3" in shown


def test_purge_asks_and_a_no_removes_nothing(
    terminal: tuple[int, int], environment: dict[str, str], client: TaskClient
) -> None:
    tag = uuid4().hex
    task = client.create(title="a", tags=[tag])
    client.delete(task.id)
    code, shown = in_terminal(terminal, environment, "purge", f"tags:{tag}", typed="n\n")
    assert code == 1
    assert "Remove 1 tasks permanently?" in shown
    assert client.get(task.id).id == task.id


def test_purge_asks_and_a_yes_removes_the_tasks(
    terminal: tuple[int, int], environment: dict[str, str], client: TaskClient
) -> None:
    tag = uuid4().hex
    client.delete(client.create(title="a", tags=[tag]).id)
    code, shown = in_terminal(terminal, environment, "purge", f"tags:{tag}", typed="y\n")
    assert code == 0
    assert "1 tasks removed" in shown
