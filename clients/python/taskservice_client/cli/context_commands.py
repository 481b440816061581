"""The commands that keep contexts."""

from typing import Annotated

import typer

from taskservice_client.cli.command import Session, command
from taskservice_client.cli.contexts import Contexts, context_names, read_contexts, write_contexts
from taskservice_client.cli.exits import CommandError
from taskservice_client.cli.output import Format, Record, console, write_record, write_records
from taskservice_client.cli.tables import context_table

app = typer.Typer(help="Keep contexts: named services with their credentials.")

Name = Annotated[str, typer.Argument(autocompletion=context_names, help="The name of a context.")]


@command(app, "add")
def add(session: Session, name: Annotated[str, typer.Argument(help="The new name.")]) -> None:
    """Add a context with the options given, or replace it. The first one is used at once."""
    options = session.given()
    if "address" not in options:
        raise CommandError("--address is missing")
    contexts = read_contexts()
    contexts.contexts[name] = options
    contexts.current = contexts.current or name
    write_contexts(contexts)
    if session.form is not Format.TABLE:
        write_record(session.form, _record(contexts, name))


@app.command("use")
def use(name: Name) -> None:
    """Use a context by default."""
    contexts = read_contexts()
    contexts.options(name)
    contexts.current = name
    write_contexts(contexts)


@app.command("list")
def list_contexts(
    form: Annotated[Format, typer.Option("--output", "-o", help="The form of the output.")] = (
        Format.TABLE
    ),
) -> None:
    """List the contexts; an asterisk marks the one in use."""
    contexts = read_contexts()
    if form is Format.TABLE:
        console().print(context_table(contexts))
    else:
        write_records(form, (_record(contexts, name) for name in contexts.contexts))


@app.command("remove")
def remove(name: Name) -> None:
    """Remove a context."""
    contexts = read_contexts()
    contexts.options(name)
    del contexts.contexts[name]
    contexts.current = "" if contexts.current == name else contexts.current
    write_contexts(contexts)


def _record(contexts: Contexts, name: str) -> Record:
    """Return a context for programs."""
    return {"name": name, "current": name == contexts.current, **contexts.options(name)}
