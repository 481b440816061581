"""What all commands share: their options, the client, and where output goes."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, TypeVar

import typer

from taskservice_client import TaskClient, TaskServiceError
from taskservice_client.cli.connection import Flags, Options, connect, environment, resolve
from taskservice_client.cli.contexts import read_contexts
from taskservice_client.cli.exits import CallFailedError
from taskservice_client.cli.output import Format, console, write_record

F = TypeVar("F", bound=Callable[..., None])


@dataclass(frozen=True, kw_only=True)
class Session(Flags):
    """The options of every command."""

    form: Annotated[Format, typer.Option("--output", "-o", help="The form of the output.")] = (
        Format.TABLE
    )
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show the code and request id of an error.")
    ] = False

    def options(self) -> Options:
        """Return the options of the connection, from wherever they come."""
        return resolve(self, environment(), read_contexts())

    def connect(self) -> TaskClient:
        """Open the client, a context manager."""
        return connect(self.options())

    def note(self, message: str) -> None:
        """Write a message for people to standard error."""
        console(errors=True).print(message)

    def report(self, message: str, counts: Mapping[str, int]) -> None:
        """Write what was done: counts to standard output for programs, else a message."""
        if self.form is Format.TABLE:
            self.note(message)
        else:
            write_record(self.form, dict(counts))


def command(app: typer.Typer, name: str) -> Callable[[F], F]:
    """Register a function as a command that takes a session's options beside its own."""

    def register(function: F) -> F:
        app.command(name)(_with_session(function))
        return function

    return register


def _with_session(function: Callable[..., None]) -> Callable[..., None]:
    """Replace the first parameter by a session's options, in the signature that typer reads."""
    first, *own = inspect.signature(function, eval_str=True).parameters.values()
    make_session: Callable[..., Session] = first.annotation
    shared = inspect.signature(make_session, eval_str=True).parameters

    @wraps(function)
    def run(**values: object) -> None:
        session = make_session(**{name: values.pop(name) for name in shared})
        try:
            function(session, **values)
        except TaskServiceError as error:
            raise CallFailedError(error, verbose=session.verbose) from error

    named = [item.replace(kind=item.KEYWORD_ONLY) for item in [*own, *shared.values()]]
    run.__dict__["__signature__"] = inspect.Signature(named)
    return run
