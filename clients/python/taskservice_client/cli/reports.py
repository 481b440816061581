"""The commands that tell what is, was and happens: stats, history, watch, health."""

import sys
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from taskservice_client import FileTokenStore, WatchEvent, WatchEventType
from taskservice_client.cli.command import Session, command
from taskservice_client.cli.connection import timeout_of
from taskservice_client.cli.exits import CommandError, ExitCode
from taskservice_client.cli.filters import Selection
from taskservice_client.cli.output import (
    Format,
    Record,
    console,
    record,
    show,
    show_all,
    write_record,
)
from taskservice_client.cli.tables import history_table, stats_table, watch_line

app = typer.Typer()


@command(app, "stats")
def stats(session: Selection) -> None:
    """Count tasks by status and priority."""
    with session.connect() as client:
        counts = client.stats(session.expression)
    show(session.form, counts, stats_table)


@command(app, "history")
def history(
    session: Session,
    id: Annotated[str, typer.Argument(help="The id of a task.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the newest events.")] = None,
) -> None:
    """Show who changed what in a task, the newest event first."""
    with session.connect() as client:
        show_all(session.form, islice(client.history(id), limit), history_table)


@command(app, "watch")
def watch(
    session: Selection,
    initial: Annotated[bool, typer.Option("--initial", help="Begin with all tasks.")] = False,
    token_file: Annotated[
        Path | None, typer.Option(help="Keep the position in this file, and resume there.")
    ] = None,
) -> None:
    """Follow changes as they happen, also across restarts of the service, until Ctrl-C."""
    if session.form is Format.JSON:
        raise CommandError("a watch has no end: use -o jsonl")
    store = FileTokenStore(token_file) if token_file else None
    with session.connect() as client:
        for event in client.watch(session.expression, store=store, initial=initial):
            _show_event(session.form, event)


@command(app, "health")
def health(session: Session) -> None:
    """Ask whether the service is ready; the exit code is 6 if it is not."""
    with session.connect() as client:
        is_ready = client.health(timeout=timeout_of(session.options()))
    status: Record = {"status": "SERVING" if is_ready else "NOT_SERVING"}
    if session.form is Format.TABLE:
        console().print(Text(str(status["status"]), style="green" if is_ready else "red"))
    else:
        write_record(session.form, status)
    if not is_ready:
        raise typer.Exit(ExitCode.UNAVAILABLE)


def _show_event(form: Format, event: WatchEvent) -> None:
    """Write an event at once; people are not shown bookmarks."""
    if form is Format.TABLE:
        if event.type is not WatchEventType.BOOKMARK:
            console().print(watch_line(event), soft_wrap=True)
    else:
        task = record(event.task) if event.task.id else None
        write_record(
            form, {"type": event.type.value, "task": task, "resume_token": event.resume_token}
        )
    sys.stdout.flush()
