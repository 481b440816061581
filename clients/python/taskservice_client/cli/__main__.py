"""Run the command line: `tasks`, or `python -m taskservice_client.cli`."""

import signal
import sys
from collections.abc import Sequence

import typer

from taskservice_client.cli.app import app
from taskservice_client.cli.exits import ExitCode


def main() -> None:
    """Run the command of the process."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # A reader that ends, as `head`, ends this too.
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command; write an error in one line, and return the exit code."""
    try:
        return app(arguments, prog_name="tasks", standalone_mode=False) or ExitCode.OK
    except typer.TyperException as error:
        if message := error.format_message():  # There is none after the help.
            sys.stderr.write(f"tasks: {message}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"tasks: {error.filename or 'output'}: {error.strerror}\n")
        return ExitCode.USAGE
    except typer.Abort:
        return ExitCode.UNEXPECTED


if __name__ == "__main__":
    main()
