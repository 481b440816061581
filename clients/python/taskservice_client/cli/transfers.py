"""The commands that move many tasks: export and import."""

import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from taskservice_client.cli.command import Session, command
from taskservice_client.cli.exits import CommandError, ExitCode
from taskservice_client.cli.exporting import export_to_file, export_to_output
from taskservice_client.cli.filters import Selection
from taskservice_client.cli.importing import Import
from taskservice_client.cli.output import Format
from taskservice_client.cli.progress import progress_bar

app = typer.Typer()

STANDARD = Path("-")


@command(app, "export")
def export(
    session: Selection,
    file: Annotated[Path, typer.Argument(help="The file to write; - for standard output.")] = (
        STANDARD
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Export tasks as lines of JSON, the oldest first; deleted tasks are left out.

    The file has its name once it is complete; until then a file beside it ends in .part. A killed
    export continues after the last line of that file if it is started again with the same filter.
    """
    if file == STANDARD and session.form not in {Format.TABLE, Format.JSONL}:
        raise CommandError(f"standard output has the tasks as lines: see `list -o {session.form}`")
    if file.exists() and not overwrite:
        raise CommandError(f"{file} exists; --overwrite replaces it")
    with session.connect() as client:
        if file == STANDARD:
            export_to_output(client, session.expression)
            return
        lines, before = export_to_file(client, session.expression, file)
    continued = f", {before} of them by an earlier start" if before else ""
    message = f"{lines} tasks exported to {file}{continued}."
    session.report(message, {"exported": lines, "by_earlier_start": before})


@command(app, "import")
def import_(
    session: Session,
    file: Annotated[Path, typer.Argument(help="The file to read; - for standard input.")] = (
        STANDARD
    ),
    drop_past_due_dates: Annotated[
        bool,
        typer.Option(
            "--drop-past-due-dates", help="Create tasks without a due date that has passed."
        ),
    ] = False,
) -> None:
    """Import tasks from lines of JSON: each under its id, once, however often the import runs.

    It sets what a caller may set: title, description, status, priority, assignee, due date, tags.
    The service sets the rest anew: created_by, created_at, updated_at, completed_at and etag. It
    refuses a due date that has passed: such a line is reported, or imported without the date.

    A task that exists and is equal is skipped; one that differs is reported and left as it is.
    """
    with file.open("rb") if file != STANDARD else nullcontext(sys.stdin.buffer) as lines:
        counts = _import(session, lines, drop_past_due_dates)
    shown = [kind for kind in counts if counts[kind] or kind in {"created", "unchanged"}]
    message = ", ".join(f"{counts[kind]} {kind.replace('_', ' ')}" for kind in shown)
    session.report(message, counts)
    if counts["conflict"]:
        raise CommandError(f"{counts['conflict']} tasks exist and differ", ExitCode.CONFLICT)
    if counts["invalid"]:
        raise CommandError(f"{counts['invalid']} lines are invalid", ExitCode.INVALID)


def _import(session: Session, lines: BinaryIO, drops_past_due_dates: bool) -> Counter[str]:
    """Import the lines and return what became of them."""
    total = _count(lines) if lines.seekable() else None
    with session.connect() as client, progress_bar("Importing", total) as bar:
        work = Import(client, bar, drops_past_due_dates=drops_past_due_dates)
        work.run(lines)
    return work.counts


def _count(lines: BinaryIO) -> int:
    """Count the lines of a file, and return to its beginning."""
    total = sum(1 for _ in lines)
    lines.seek(0)
    return total
