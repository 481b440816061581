"""Start processes, and read the CPU and the memory that they use."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

LOG = Path(".bench/services.log")
"""What the services write to their standard error."""

_INHERITED = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH")
_STOP_SECONDS = 20


class ProcessTree:
    """Some processes with all that they start."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.pids = pids
        self._roots = [psutil.Process(pid) for pid in pids]

    def cpu_seconds(self) -> float:
        """Return the CPU time used so far, by processes that ended since as well."""
        return sum(_cpu_seconds(process) for process in self._all())

    def largest_megabytes(self) -> float:
        """Return the resident memory of the largest process."""
        return max(process.memory_info().rss for process in self._all()) / 2**20

    def _all(self) -> list[psutil.Process]:
        return [
            process for root in self._roots for process in (root, *root.children(recursive=True))
        ]


def _cpu_seconds(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(sum(times[:4]))  # Its own, and those of children that it waited for.
    return 0.0


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], *, copies: int = 1, folder: Path
) -> Iterator[ProcessTree]:
    """Run copies of a command, each with its own process group; end them with SIGTERM."""
    own = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    LOG.parent.mkdir(exist_ok=True)
    with LOG.open("ab") as log:
        started = [
            subprocess.Popen(
                command,
                env={**own, **environment},
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=log,
                process_group=0,
            )
            for _ in range(copies)
        ]
    try:
        yield ProcessTree([process.pid for process in started])
    finally:
        for process in started:
            process.terminate()
        for process in started:
            _await_end(process)


def _await_end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
