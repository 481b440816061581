"""Run the service with other values for some of its constants, which no setting changes.

As a program it is given the constants and the command of the service, and runs that command in its
own process. The constants are set where the modules that have them are imported: in this process if
it serves alone, else in each worker, because nothing that imports grpc may be imported before the
fork.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pkgutil import resolve_name

from server.__main__ import main

_COMMAND = ["-m", "server"]


def tuned(constants: Mapping[str, object]) -> tuple[str, ...]:
    """Return the program that starts a service with these constants, by their full names."""
    return sys.executable, "-m", __name__, json.dumps(constants)


def _set(constants: Mapping[str, object]) -> None:
    for path, value in constants.items():
        owner, _, name = path.rpartition(".")
        holder = resolve_name(owner)
        if not hasattr(holder, name):
            raise LookupError(f"there is no {path}")
        setattr(holder, name, value)


def _run(given: str, _python: str, *command: str) -> int:
    assert list(command[:2]) == _COMMAND
    constants = json.loads(given)
    if os.environ.get("WORKERS") == "1":
        os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
        _set(constants)
    os.register_at_fork(after_in_child=lambda: _set(constants))
    return main(command[2:])


if __name__ == "__main__":
    sys.exit(_run(*sys.argv[1:]))
