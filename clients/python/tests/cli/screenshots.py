"""Draw `tasks list` and `tasks stats` of a real service as SVG: `make cli-images`."""

import datetime as dt
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from cli.conftest import PROGRAM
from taskservice_client import Task, TaskClient, TaskPriority, TaskStatus
from taskservice_client.testing import running_task_service

IMAGES = Path(__file__).resolve().parents[4] / "docs" / "images"

LIST = ["list", "--filter", "priority >= HIGH", "--order-by", "priority desc, due_date"]
STATS = ["stats"]

# Title, status, priority, assignee, days until the due date, tags.
OPEN = [
    ("Renew the TLS certificate", "IN_PROGRESS", "URGENT", "ann", 0, "security"),
    ("Restore the backup of Monday", "IN_PROGRESS", "URGENT", "bob", 1, "storage"),
    ("Page on failed logins", "PENDING", "URGENT", "", 2, "security, alerts"),
    ("Send the invoices", "PENDING", "HIGH", "ann", 0, "billing"),
    ("Raise the connection limit", "IN_PROGRESS", "HIGH", "carol", 3, "storage"),
    ("Prepare the review", "PENDING", "HIGH", "yuki", 5, "team"),
    ("Rotate the signing keys", "PENDING", "HIGH", "bob", 7, "security"),
    ("Review the quota of exports", "PENDING", "HIGH", "", 14, "billing, ops"),
    ("Plan the database upgrade", "PENDING", "HIGH", "carol", 30, "storage"),
    ("Write the runbook for failover", "COMPLETED", "HIGH", "ann", None, "docs"),
]
OTHERS = [("PENDING", "MEDIUM", 23), ("PENDING", "LOW", 12), ("IN_PROGRESS", "MEDIUM", 9)]
OTHERS += [("COMPLETED", "MEDIUM", 61), ("COMPLETED", "LOW", 27), ("CANCELLED", "LOW", 8)]


def main() -> None:
    """Fill a service, wait until some tasks are overdue, and draw both commands."""
    with tempfile.TemporaryDirectory() as folder, running_task_service(Path(folder)) as service:
        with service.client() as client:
            fill(client)
            while client.stats().overdue < 2:
                time.sleep(0.1)
        variables = {"TASKS_ADDRESS": service.address, "TASKS_TOKEN": service.token}
        for name, arguments in [("tasks-list", LIST), ("tasks-stats", STATS)]:
            image = drawn(arguments, terminal_output(arguments, variables))
            (IMAGES / f"{name}.svg").write_text(image)


def fill(client: TaskClient) -> None:
    """Create the tasks, those without days due in a moment."""
    soon = dt.datetime.now(dt.UTC).replace(second=0, microsecond=0) + dt.timedelta(minutes=1)
    for number, (title, status, priority, assigned_to, days, tags) in enumerate(OPEN):
        task = made(status, priority, title)
        task.assigned_to = assigned_to
        task.tags.extend(tags.split(", "))
        if days is not None:
            task.due_date.FromDatetime(soon + dt.timedelta(days=days))
        client.create(task, task_id=f"01a21b2c-0000-7000-8000-{number:012}")
    for status, priority, count in OTHERS:
        client.create_many([made(status, priority, "A task") for _ in range(count)])


def made(status: str, priority: str, title: str) -> Task:
    """Make a task with the short names of its status and its priority."""
    return Task(
        title=title,
        status=TaskStatus.Value(f"TASK_STATUS_{status}"),
        priority=TaskPriority.Value(f"TASK_PRIORITY_{priority}"),
    )


def terminal_output(arguments: list[str], variables: dict[str, str]) -> str:
    """Run a command and return what it writes with colours."""
    colours = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "TZ": "UTC"}
    result = subprocess.run(
        [*PROGRAM, *arguments],
        env={**os.environ, **colours, **variables},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return result.stdout


def drawn(arguments: list[str], output: str) -> str:
    """Draw a terminal with a command and its output, without fonts from elsewhere."""
    words = [f'"{word}"' if " " in word else word for word in arguments]
    text = Text.from_ansi(f"$ tasks {' '.join(words)}\n{output.rstrip()}")
    width = max(line.cell_len for line in text.split())
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=width, file=nowhere, color_system="truecolor")
        console.print(text, soft_wrap=True)
    svg = console.export_svg(title="tasks", unique_id="tasks")
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    main()
