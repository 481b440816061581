"""The command that removes deleted tasks permanently."""

import sys
from typing import Annotated

import typer

from taskservice_client import PurgeTasksResponse, TaskClient, TaskServiceError
from taskservice_client.cli.command import Session, command
from taskservice_client.cli.exits import CommandError, ExitCode, exit_code
from taskservice_client.cli.output import Format, console, show
from taskservice_client.cli.tables import task_table

app = typer.Typer()

_SHOWN = 10
_TIMEOUT_SECONDS = 600.0  # Tasks are removed in small groups.

_NOTHING_REMOVED = {ExitCode.DENIED, ExitCode.INVALID}


@command(app, "purge")
def purge(
    session: Session,
    filter: Annotated[str, typer.Argument(help="Which deleted tasks; deleted_at:* means all.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what it would do.")] = False,
) -> None:
    """Remove deleted tasks permanently, after showing their number and a sample."""
    with session.connect() as client:
        plan = client.purge(filter)
        _show_sample(client, plan)
        if not dry_run and plan.purge_count:
            if not yes:
                _confirm(f"Remove {plan.purge_count} tasks permanently?")
            plan = _remove(session, client, filter)
    if session.form is not Format.TABLE:
        show(session.form, plan, str)


def _remove(session: Session, client: TaskClient, filter: str) -> PurgeTasksResponse:
    """Remove the tasks; groups that are removed stay removed if the call ends early."""
    try:
        done = client.purge(filter, force=True, timeout=_TIMEOUT_SECONDS)
    except TaskServiceError as error:
        if exit_code(error) not in _NOTHING_REMOVED:
            session.note("Some tasks may be removed: the same command removes the rest.")
        raise
    session.note(f"{done.purge_count} tasks removed.")
    return done


def _show_sample(client: TaskClient, plan: PurgeTasksResponse) -> None:
    """Show the number of the tasks, and some of them, on standard error."""
    people = console(errors=True)
    people.print(f"{plan.purge_count} deleted tasks match.")
    if ids := plan.purge_sample[:_SHOWN]:
        people.print(task_table(client.get_many(ids)))


def _confirm(question: str) -> None:
    """Ask on a terminal. Raises: CommandError without one, typer.Exit after a no."""
    if not sys.stdin.isatty():
        raise CommandError("no terminal to ask on: --yes removes the tasks without asking")
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)
