"""The guard: a program of its own between the service and PostgreSQL.

It reads a pipe that the service holds open, so it learns that the service is gone however that
came about, and shuts PostgreSQL down. While the service lives, it starts PostgreSQL again when that
dies.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

_QUICK_DEATH_SECONDS = 10.0
_MAX_QUICK_DEATHS = 10
_SHUTDOWN = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))


class Guard:
    """The parent of PostgreSQL, in a process of its own: see the module's docstring."""

    def __init__(self, lock: int, command: Sequence[str]) -> None:
        self._lock = lock
        self._command = command
        self._healing = False
        self._news, self._wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)

    def run(self) -> int:
        """Keep PostgreSQL running until the service is gone; 1 if it would not stay."""
        quick_deaths = 0
        while True:
            began = time.monotonic()
            if self._run_once():
                return 0
            lived = time.monotonic() - began
            quick_deaths = quick_deaths + 1 if lived < _QUICK_DEATH_SECONDS else 0
            if not self._healing or quick_deaths > _MAX_QUICK_DEATHS:
                return 1
            # Its orphans hold the old shared memory for a moment, and it refuses to start.
            if self._told_to_stop(within=min(0.1 * 2**quick_deaths, 5.0)):
                return 0

    def _run_once(self) -> bool:
        """Run PostgreSQL to its end; true if the end came because we were told to stop."""
        server = subprocess.Popen(  # noqa: S603 - the wheel's program
            self._command,
            cwd="/",
            stdin=subprocess.DEVNULL,
            pass_fds=[self._lock],
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - there are no threads here
        )
        while server.poll() is None:
            if self._told_to_stop():
                os.ftruncate(self._lock, 0)  # No service owns it now, PostgreSQL only.
                self._shut_down(server)
                return True
        return False

    def _told_to_stop(self, within: float | None = None) -> bool:
        """Wait for SIGTERM, the end of the pipe or, with the answer no, other news or the time."""
        readable, _, _ = select.select([0, self._news], [], [], within)
        if self._news in readable and signal.SIGTERM in os.read(self._news, 64):
            return True
        if 0 in readable:
            self._healing = True
            return not os.read(0, 64)
        return False

    def _shut_down(self, server: subprocess.Popen[bytes]) -> None:
        for number, patience in _SHUTDOWN:
            server.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(patience)
                return


def _die_with_parent() -> None:
    """Have Linux shut PostgreSQL down when the guard is killed and cannot."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG


def _main(lock: str, socket_dir: str, *command: str) -> int:
    try:
        return Guard(int(lock), command).run()
    finally:
        shutil.rmtree(socket_dir, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
