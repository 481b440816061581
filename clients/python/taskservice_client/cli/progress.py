"""Show the progress of an export or import on standard error."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from taskservice_client.cli.output import console


class Bar:
    """A progress bar, with messages above it; without a terminal there are only the messages."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, tasks: int) -> None:
        self._progress.advance(self._task, tasks)

    def message(self, text: str) -> None:
        self._progress.console.print(text)


@contextmanager
def progress_bar(description: str, total: int | None, done: int = 0) -> Iterator[Bar]:
    """Show a bar; without a total it only moves and counts."""
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    hidden = not sys.stderr.isatty()
    with Progress(
        *columns, TimeRemainingColumn(), console=console(errors=True), disable=hidden
    ) as progress:
        yield Bar(progress, progress.add_task(description, total=total, completed=done))
