"""Export tasks as lines of JSON, oldest first; a killed export continues after its last line."""

import hashlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from taskservice_client import TaskClient
from taskservice_client.cli.filters import all_of, in_parentheses
from taskservice_client.cli.output import json_line, record
from taskservice_client.cli.progress import progress_bar

_ORDER = "created_at"  # It never changes, so that writes during an export skip and repeat no task.


@dataclass
class Checkpoint:
    """Where an export continues: the newest time in its file, and the tasks that have it."""

    lines: int = 0
    created_at: str = ""
    ids: set[str] = field(default_factory=set)

    def add(self, line: bytes) -> None:
        """Count a line of the file."""
        record = json.loads(line)
        if record["created_at"] != self.created_at:
            self.created_at, self.ids = record["created_at"], set()
        self.ids.add(record["id"])
        self.lines += 1

    def remaining(self, expression: str) -> str:
        """Return the filter of the tasks that are not older than the newest of the file."""
        newer = f'created_at >= "{self.created_at}"' if self.created_at else ""
        return all_of([in_parentheses(expression), newer])


def read_checkpoint(file: BinaryIO) -> Checkpoint:
    """Read the complete lines of a file, and cut off an incomplete one behind them."""
    checkpoint, end = Checkpoint(), 0
    for line in file:
        if not line.endswith(b"\n"):
            break
        checkpoint.add(line)
        end += len(line)
    file.seek(end)
    file.truncate()
    return checkpoint


def partial_file(path: Path, expression: str) -> Path:
    """Return the file of an export that is not complete; another filter has another file."""
    digest = hashlib.sha256(expression.encode()).hexdigest()[:8]
    return path.with_name(f"{path.name}.{digest}.part")


def export_to_file(client: TaskClient, expression: str, path: Path) -> tuple[int, int]:
    """Write a file that is complete when it has its name. Return its lines and those it had."""
    partial = partial_file(path, expression)
    partial.touch(mode=0o600)
    with partial.open("r+b") as file:
        checkpoint = read_checkpoint(file)
        lines = _copy(client, expression, checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return lines, checkpoint.lines


def export_to_output(client: TaskClient, expression: str) -> int:
    """Write all tasks to standard output."""
    return _copy(client, expression, Checkpoint(), sys.stdout.buffer)


def _copy(client: TaskClient, expression: str, checkpoint: Checkpoint, file: BinaryIO) -> int:
    """Append the tasks behind the checkpoint; return the number of lines."""
    total, lines = client.count(expression), checkpoint.lines
    rest = checkpoint.remaining(expression)
    with progress_bar("Exporting", total, done=lines) as bar:
        for task in client.list(rest, order_by=_ORDER, page_size=1000):
            if task.id not in checkpoint.ids:
                file.write(json_line(record(task)).encode())
                lines += 1
                bar.advance(1)
    return lines
