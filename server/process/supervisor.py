"""Start, watch, replace and stop the workers of a service.

Workers are forked before grpc is imported, as it does not survive a fork, and share the port. One
that fails is replaced; after several early failures in a row the service ends. One that uses too
much memory drains when its replacement serves. All drain when the supervisor ends: they wait on a
pipe that only the supervisor holds open.
"""

import itertools
import math
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from signal import SIGCHLD, SIGINT, SIGTERM, SIGUSR1, SIGUSR2

import structlog

from server.process.signals import Signals
from server.telemetry import logs

log = structlog.get_logger()

# A worker that ends sooner is an early failure; after so many in a row the service ends.
_EARLY_SECONDS = 10.0
_CRASH_LOOP = 5
_CALM_SECONDS = 60.0
_MAX_BACKOFF_SECONDS = 8.0
_TICK_SECONDS = 1.0
_SIGNALS = {SIGTERM, SIGINT, SIGUSR1, SIGUSR2, SIGCHLD}

Serve = Callable[[int, int, Callable[[], object]], bool]
"""Run a worker, given its number, the descriptor that becomes readable when the supervisor ends,
and a function to call once it serves; returns whether it drained completely."""


@dataclass
class _Worker:
    pid: int
    number: int
    status_fd: int  # Readable once the worker serves, or has ended; -1 once closed.
    started: float = field(default_factory=time.monotonic)
    serves: bool = False
    is_replaced: bool = False  # It uses too much memory, and drains when its replacement serves.

    def close(self) -> None:
        """Close the status pipe."""
        if self.status_fd >= 0:
            os.close(self.status_fd)
            self.status_fd = -1


@dataclass
class Supervisor:
    """Keep `count` workers running."""

    count: int
    serve: Serve
    on_serving: Callable[[], None]
    stop_within_seconds: float
    max_rss_bytes: float

    def __post_init__(self) -> None:
        self._workers: dict[int, _Worker] = {}
        self._early_failures = 0
        self._last_failure = -math.inf
        self._not_before = 0.0
        self._stop_by: float | None = None
        self._announced = False
        self._in_order = True

    def run(self) -> bool:
        """Run until a signal ends the service; return whether every worker drained completely."""
        self._parent, self._alive = os.pipe()
        with Signals(*_SIGNALS) as signals:
            self._signals = signals
            while self._stop_by is None or self._workers:
                self._keep_count()
                pipes = [worker.status_fd for worker in self._starting()]
                for number in signals.wait(_TICK_SECONDS, also=pipes):
                    self._receive(number)
                self._read_status()
                self._reap()
                self._limit_memory()
                self._kill_overdue()
        return self._in_order

    def _receive(self, number: int) -> None:
        if number in {SIGUSR1, SIGUSR2}:
            logs.change_level(number)
            for pid in self._workers:
                os.kill(pid, number)
        elif number in {SIGTERM, SIGINT}:
            self._stop()

    def _stop(self) -> None:
        """Drain every worker; a second signal stops them at once."""
        is_first = self._stop_by is None
        if is_first:
            self._stop_by = time.monotonic() + self.stop_within_seconds
        for worker in self._workers.values():
            is_draining = worker.is_replaced and not worker.serves
            if not (is_first and is_draining):
                os.kill(worker.pid, SIGTERM)

    def _keep_count(self) -> None:
        if self._stop_by is not None or time.monotonic() < self._not_before:
            return
        while len(taken := {worker.number for worker in self._kept()}) < self.count:
            self._start_worker(next(n for n in itertools.count() if n not in taken))

    def _kept(self) -> list[_Worker]:
        return [worker for worker in self._workers.values() if not worker.is_replaced]

    def _start_worker(self, number: int) -> None:
        reader, writer = os.pipe()
        # Until the child has restored the handlers, a signal to it would count as one to us.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS - {SIGCHLD})
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            self._become_worker(number, writer, mask)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(writer)
        self._workers[pid] = _Worker(pid, number, reader)

    def _become_worker(self, number: int, status_fd: int, mask: Iterable[int]) -> None:
        """Serve in the child process; never return into the parent's code."""
        code = 1
        try:
            os.close(self._alive)
            os.setsid()  # Ctrl-C in a terminal reaches the supervisor only, which forwards it once.
            self._signals.__exit__()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            if self.serve(number, self._parent, partial(_report_serving, status_fd)):
                code = 0
        except Exception as error:
            log.exception("worker failed", why=str(error))
        finally:
            os._exit(code)

    def _starting(self) -> list[_Worker]:
        return [worker for worker in self._workers.values() if worker.status_fd >= 0]

    def _read_status(self) -> None:
        for worker in self._starting():
            if select.select([worker.status_fd], [], [], 0)[0]:
                worker.serves = bool(os.read(worker.status_fd, 1))
                worker.close()
        if not self._announced and sum(worker.serves for worker in self._kept()) == self.count:
            self._announced = True
            self.on_serving()

    def _reap(self) -> None:
        for pid in list(self._workers):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            worker = self._workers.pop(pid)
            worker.close()
            code = os.waitstatus_to_exitcode(status)
            if self._stop_by is None and not (worker.is_replaced and code == 0):
                self._handle_failure(worker, code)
            elif code and worker.serves:  # Another has nothing to drain, and ends at once.
                self._in_order = False

    def _handle_failure(self, worker: _Worker, code: int) -> None:
        """Schedule the replacement of a failed worker, or end the service in a crash loop."""
        lived_seconds = time.monotonic() - worker.started
        self._count_failure(worker, lived_seconds)
        backoff_seconds = min(0.25 * 2**self._early_failures, _MAX_BACKOFF_SECONDS)
        self._not_before = time.monotonic() + (backoff_seconds if self._early_failures else 0)
        lived = round(lived_seconds, 1)
        log.error(
            "worker ended", worker=worker.number, pid=worker.pid, code=code, lived_seconds=lived
        )
        if self._early_failures >= _CRASH_LOOP:
            log.critical("workers fail as soon as they start; giving up")
            self._in_order = False
            self._stop()

    def _count_failure(self, worker: _Worker, lived_seconds: float) -> None:
        """Count an early failure; those of workers that fail together count once."""
        now, before = time.monotonic(), self._last_failure
        self._last_failure = now
        if now - before > _CALM_SECONDS or lived_seconds >= _EARLY_SECONDS:
            self._early_failures = 0
        if lived_seconds < _EARLY_SECONDS and worker.started >= before:
            self._early_failures += 1

    def _limit_memory(self) -> None:
        """Replace the workers that use too much memory, one at a time, without a gap."""
        kept = self._kept()
        if self._stop_by is not None or sum(worker.serves for worker in kept) < self.count:
            return
        if replaced := [worker for worker in self._workers.values() if worker.is_replaced]:
            for worker in replaced:
                if worker.serves:
                    worker.serves = False
                    os.kill(worker.pid, SIGTERM)
            return
        settled = time.monotonic() - _EARLY_SECONDS
        for worker in sorted(kept, key=lambda worker: worker.started):
            if worker.started < settled and (rss := _rss_bytes(worker.pid)) > self.max_rss_bytes:
                log.warning("worker uses too much memory", worker=worker.number, rss_bytes=rss)
                worker.is_replaced = True
                return

    def _kill_overdue(self) -> None:
        if self._stop_by is None or time.monotonic() < self._stop_by:
            return
        for pid in self._workers:
            log.error("worker did not stop in time; killing it", pid=pid)
            os.kill(pid, signal.SIGKILL)


def _rss_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 where there is no /proc."""
    with suppress(OSError):
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _report_serving(status_fd: int) -> None:
    with suppress(OSError):  # The supervisor has ended; the other descriptor shows it.
        os.write(status_fd, b"s")
        os.close(status_fd)
