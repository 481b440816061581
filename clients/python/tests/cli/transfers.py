"""Make tasks, export and import them by `tasks`, and compare."""

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from google.protobuf.timestamp_pb2 import Timestamp

from cli.conftest import PROGRAM
from taskservice_client import Task, TaskPriority, TaskStatus
from taskservice_client.cli.lines import WRITABLE

TAGS = ["billing", "ops", "Später", "月次"]


def made_tasks(count: int, tag: str) -> list[Task]:
    """Make tasks of all kinds, with a tag in common; the same ones for the same tag."""
    chance = random.Random(tag)  # noqa: S311 - no secret
    return [_made_task(chance, number, tag) for number in range(count)]


def _made_task(chance: random.Random, number: int, tag: str) -> Task:
    due = Timestamp(seconds=4_000_000_000 + number, nanos=chance.randrange(10**6) * 1000)
    return Task(
        title=f"Task {number}" + " ünïcode" * chance.randrange(8),
        description="line\n\tindented " * chance.randrange(30),
        status=chance.choice(TaskStatus.values()[1:]),
        priority=chance.choice(TaskPriority.values()[1:]),
        assigned_to=chance.choice(["ann", "bob", ""]),
        due_date=due if chance.random() < 0.5 else None,
        tags=[tag, *chance.sample(TAGS, chance.randrange(len(TAGS)))],
    )


def settable(lines: Iterable[str]) -> dict[str, dict[str, object]]:
    """Return what a caller may set of each exported task, by its id."""
    records = [json.loads(line) for line in lines]
    return {record["id"]: {name: record.get(name) for name in WRITABLE} for record in records}


def killed_when(
    condition: Callable[[], bool], environment: dict[str, str], *arguments: str
) -> bool:
    """Start a command and kill it as soon as the condition is true; return whether it still ran."""
    with subprocess.Popen([*PROGRAM, *arguments], env=environment) as process:
        while process.poll() is None and not condition():
            time.sleep(0.001)
        process.kill()
    return process.returncode == -signal.SIGKILL


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
