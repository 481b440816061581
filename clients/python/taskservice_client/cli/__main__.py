"""Run the command line: `tasks`, or `python -m taskservice_client.cli`."""

import signal
import sys

import typer

from taskservice_client.cli.app import app
from taskservice_client.cli.exits import ExitCode


def main() -> None:
    """Run a command; write an error in one line, and exit with its code."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # A reader that ends, as `head`, ends this too.
    try:
        code = app(prog_name="tasks", standalone_mode=False) or ExitCode.OK
    except typer.TyperException as error:
        sys.stderr.write(f"tasks: {error.format_message()}\n")
        code = error.exit_code
    except typer.Abort:
        code = ExitCode.UNEXPECTED
    sys.exit(code)


if __name__ == "__main__":
    main()
