"""The commands of `tasks`."""

from importlib import metadata
from typing import Annotated

import typer

from taskservice_client.cli import context_commands, purging, reports, task_commands, transfers

app = typer.Typer(
    epilog="Exit codes: 0 done, 1 unexpected, 2 usage, 3 not found, 4 conflict, 5 denied, "
    "6 unavailable, 7 invalid, 130 interrupted, 141 broken pipe.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
for commands in (task_commands, reports, transfers, purging):
    app.add_typer(commands.app)
app.add_typer(context_commands.app, name="context")


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"tasks {metadata.version('task-service-client')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    """Manage the tasks of a Task Service."""
