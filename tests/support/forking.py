"""Run the service's commands in forks of one process that has imported them.

Imports are most of the CPU of a start, and importing a module does nothing else.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

from server.__main__ import main

_forks = multiprocessing.get_context("forkserver")
# What is imported before workers are forked: no grpc.
_forks.set_forkserver_preload([__name__, "server.tasks.validation", "storage.repository"])


class Command(NamedTuple):
    """A command of the service, in its own environment and folder."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    program: Sequence[str] = ()
    """What executes the command, if it is not the fork itself."""
    constants: Mapping[str, object] = {}
    """Other values for constants, by their full names, which no setting changes."""


def fork(command: Command, outputs: Sequence[Connection]) -> BaseProcess:
    """Start a command in a process group of its own.

    The pipes, which are closed here, are its standard output and its standard error.
    """
    process = _forks.Process(target=_run, args=(command, _umask(), outputs), daemon=True)
    process.start()
    for output in outputs:
        output.close()
    return process


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _run(command: Command, umask: int, outputs: Sequence[Connection]) -> None:
    os.dup2(outputs[0].fileno(), 1)
    os.dup2(outputs[-1].fileno(), 2)
    os.setpgid(0, 0)
    os.umask(umask)
    os.chdir(command.folder)
    if command.program:
        os.execvpe(  # noqa: S606
            command.program[0], [*command.program, *command.arguments], command.environment
        )
    os.environ.clear()
    os.environ.update(command.environment)
    for output in outputs:
        output.close()
    _tune(command.constants)
    sys.exit(main(command.arguments))


def _tune(constants: Mapping[str, object]) -> None:
    """Set constants where they are imported: here if this process serves, else in each worker.

    Nothing that imports grpc may be imported before the fork.
    """
    if not constants:
        return
    if os.environ.get("WORKERS") == "1":
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
        _set(constants)
    os.register_at_fork(after_in_child=lambda: _set(constants))


def _set(constants: Mapping[str, object]) -> None:
    for path, value in constants.items():
        owner, _, name = path.rpartition(".")
        holder = resolve_name(owner)
        if not hasattr(holder, name):
            raise LookupError(f"there is no {path}")
        setattr(holder, name, value)
