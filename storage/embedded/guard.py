"""The parent process of PostgreSQL: end PostgreSQL when the service has ended.

Standard input is a pipe that the service and its forked workers hold open: it is readable when the
service stops PostgreSQL, or when the last of these processes has ended.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading

_SHUTDOWN_SECONDS = 30.0


def main(lock: str, socket_dir: str, *command: str) -> int:
    """Run PostgreSQL to its end and return its exit code."""
    server = subprocess.Popen(  # noqa: S603 - the wheel's program
        command,
        stdin=subprocess.DEVNULL,
        pass_fds=[int(lock)],
        preexec_fn=_end_with_parent,  # noqa: PLW1509 - no thread runs yet
    )
    threading.Thread(target=_stop_on_input, args=[server], daemon=True).start()
    code = server.wait()
    shutil.rmtree(socket_dir, ignore_errors=True)
    return code


def _end_with_parent() -> None:
    """Have Linux shut PostgreSQL down if the guard is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG


def _stop_on_input(server: subprocess.Popen[bytes]) -> None:
    os.read(0, 1)
    server.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
    try:
        server.wait(_SHUTDOWN_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
