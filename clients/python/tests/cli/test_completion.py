"""Completion in bash, zsh and fish, of values that only the program knows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli.conftest import Tasks
from taskservice_client import TaskPriority, TaskStatus
from taskservice_client.cli.fields import Priority, Status

SHELLS = {
    "bash": {"COMP_CWORD": "{last}", "COMP_WORDS": "{line}"},
    "zsh": {"_TYPER_COMPLETE_ARGS": "{line}"},
    "fish": {"_TYPER_COMPLETE_ARGS": "{line}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}


@pytest.fixture
def tasks_program() -> Path:
    """The installed program, whose name the completion contains."""
    return Path(sys.executable).with_name("tasks")


def completions(
    program: Path, environment: dict[str, str], shell: str, *words: str, incomplete: str = ""
) -> set[str]:
    """Ask the program as the script of a shell does, with a word begun at the end."""
    line = " ".join(["tasks", *words, incomplete])
    variables = {
        name: value.format(line=line, last=len(words) + 1) for name, value in SHELLS[shell].items()
    }
    result = subprocess.run(
        [program],
        env=environment | variables | {"_TASKS_COMPLETE": f"complete_{shell}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stderr == ""
    return set(re.findall(r"[\w-]+", result.stdout)) - {"_arguments"}


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_completes_names_of_contexts(
    tasks: Tasks, tasks_program: Path, environment: dict[str, str], shell: str
) -> None:
    for name in ["production", "staging"]:
        tasks("context", "add", name, "--address", "127.0.0.1:1")
    words = ["context", "use"]
    assert completions(tasks_program, environment, shell, *words) >= {"production", "staging"}
    flagged = completions(tasks_program, environment, shell, "list", "--context", incomplete="st")
    assert flagged == {"staging"}


def test_a_shell_completes_commands_and_values(
    tasks_program: Path, environment: dict[str, str]
) -> None:
    values = completions(tasks_program, environment, "bash", "list", "--status")
    assert values == {status.value for status in Status}
    commands = completions(tasks_program, environment, "bash", incomplete="un")
    assert commands == {"undelete"}


def test_bash_completes_with_the_script_that_the_program_shows(
    tasks_program: Path, environment: dict[str, str]
) -> None:
    script = subprocess.run(
        [tasks_program, "--show-completion", "bash"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    ask = (
        f'COMP_WORDS=(tasks list --priority ""); COMP_CWORD=3; _tasks_completion {tasks_program}\n'
        'echo "${COMPREPLY[@]}"'
    )
    result = subprocess.run(
        ["bash", "-c", f"{script}\n{ask}"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == [priority.value for priority in Priority]


def test_a_broken_file_of_contexts_completes_nothing(
    tasks_program: Path, environment: dict[str, str]
) -> None:
    file = Path(environment["TASKS_CONTEXTS_FILE"])
    file.parent.mkdir()
    file.write_text("[")
    assert completions(tasks_program, environment, "bash", "list", "--context") == set()


def test_the_values_of_options_are_those_of_the_contract() -> None:
    statuses = {name.removeprefix("TASK_STATUS_") for name in TaskStatus.keys()}  # noqa: SIM118
    assert {status.value for status in Status} == statuses - {"UNSPECIFIED"}
    priorities = {name.removeprefix("TASK_PRIORITY_") for name in TaskPriority.keys()}  # noqa: SIM118
    assert {priority.value for priority in Priority} == priorities - {"UNSPECIFIED"}
