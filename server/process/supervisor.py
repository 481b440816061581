"""Several workers as one service: started, watched, replaced and stopped together.

Each worker is forked before grpc is imported, for grpc does not survive a fork. Workers share the
port. A worker that dies is replaced, later each time it dies young; when that goes on, the service
ends. A worker whose supervisor is gone drains and ends too: it waits on a pipe that only the
supervisor holds open.
"""

from __future__ import annotations

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
from signal import SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2

import structlog

from server.process.signals import Signals
from server.telemetry import logs

log = structlog.get_logger()

# A worker that lived shorter than this died young; after so many in a row the service ends.
_YOUNG_SECONDS = 10.0
_CRASH_LOOP = 5
_CALM_SECONDS = 60.0
_MAX_BACKOFF_SECONDS = 8.0
_TICK_SECONDS = 1.0
# A replacement that is not ready by then does not take over.
_READY_WITHIN_SECONDS = 30.0
_SIGNALS = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD}

SERVES, READY = b"s", b"r"
"""What a worker tells of: that it takes calls; and, whenever health comes to say so, that it can
answer them."""

Serve = Callable[[int, int, Callable[[bytes], object]], bool]
"""What a worker does: given its number, the descriptor that closes when the supervisor is gone, and
what to tell the supervisor by, it returns whether it ended in order."""


@dataclass
class _Worker:
    pid: int
    number: int
    tells_fd: int
    """-1 once it is closed."""
    started: float = field(default_factory=time.monotonic)
    serves: bool = False
    ready: bool = False
    """Now, or once."""
    retiring: bool = False

    def close(self) -> None:
        """Hears no more of it."""
        if self.tells_fd >= 0:
            os.close(self.tells_fd)
            self.tells_fd = -1


class Supervisor:
    """Keeps `count` workers serving."""

    def __init__(
        self,
        count: int,
        serve: Serve,
        *,
        on_serving: Callable[[], None],
        stop_within_seconds: float,
    ) -> None:
        self._count = count
        self._serve = serve
        self._on_serving = on_serving
        self._stop_within_seconds = stop_within_seconds
        self._workers: dict[int, _Worker] = {}
        self._to_replace: list[int] = []
        self._died_young = 0
        self._last_death = -math.inf
        self._not_before = 0.0
        self._stop_by: float | None = None
        self._announced = False
        self._in_order = True

    def run(self) -> bool:
        """Runs until a signal ends the service; returns whether it ended in order."""
        self._parent, self._alive = os.pipe()
        with Signals(*_SIGNALS) as signals:
            self._signals = signals
            while self._stop_by is None or self._workers:
                self._keep_count()
                self._replace_next()
                waiting = [worker.tells_fd for worker in self._telling()]
                for number in signals.wait(_TICK_SECONDS, also=waiting):
                    self._receive(number)
                self._listen()
                self._reap()
                self._kill_overdue()
        return self._in_order

    def _receive(self, number: int) -> None:
        if number == SIGHUP:
            log.info("replacing workers")
            self._to_replace = [pid for pid, w in self._workers.items() if not w.retiring]
        elif number in {SIGUSR1, SIGUSR2}:
            logs.change_level(number)
            for pid in self._workers:
                os.kill(pid, number)
        elif number in {SIGTERM, SIGINT}:
            self._stop()

    def _stop(self) -> None:
        """Drains every worker; at a second signal they get theirs, and stop at once."""
        if self._stop_by is None:
            self._stop_by = time.monotonic() + self._stop_within_seconds
        for pid in self._workers:
            os.kill(pid, SIGTERM)

    def _keep_count(self) -> None:
        if self._stop_by is not None or time.monotonic() < self._not_before:
            return
        while len(self._workers) < self._count:
            taken = {worker.number for worker in self._workers.values()}
            self._start_worker(next(n for n in itertools.count() if n not in taken))

    def _replace_next(self) -> None:
        """One at a time: the new worker is ready before the old one drains."""
        workers = list(self._workers.values())
        self._to_replace = [pid for pid in self._to_replace if pid in self._workers]
        if not self._to_replace or self._stop_by is not None:
            return
        if any(worker.retiring or not worker.serves for worker in workers):
            return
        new = workers[-1]
        if len(workers) == self._count:
            self._start_worker(self._workers[self._to_replace[0]].number)
        elif new.ready:
            self._retire(self._to_replace.pop(0))
        elif time.monotonic() > new.started + _READY_WITHIN_SECONDS:
            log.error("a new worker does not become ready; the old ones stay", pid=new.pid)
            self._to_replace = []
            self._retire(new.pid)

    def _retire(self, pid: int) -> None:
        self._workers[pid].retiring = True
        os.kill(pid, SIGTERM)

    def _start_worker(self, number: int) -> None:
        hears, tells = os.pipe()
        # Until the child has let go of our signals, one for it would count as one for us.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS - {SIGCHLD})
        pid = os.fork()
        if pid == 0:
            os.close(hears)
            self._become_worker(number, tells, mask)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(tells)
        self._workers[pid] = _Worker(pid, number, hears)

    def _become_worker(self, number: int, tells: int, mask: Iterable[int]) -> None:
        """In the child: serves, and never returns into what the parent was doing."""
        code = 1
        try:
            os.close(self._alive)
            os.setsid()  # Ctrl-C at a terminal is the supervisor's, who passes it on once.
            self._signals.__exit__()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            if self._serve(number, self._parent, partial(_tell, tells)):
                code = 0
        except Exception as error:
            log.exception("worker failed", why=str(error))
        finally:
            os._exit(code)

    def _listen(self) -> None:
        for worker in self._telling():
            if select.select([worker.tells_fd], [], [], 0)[0]:
                told = os.read(worker.tells_fd, 64)
                worker.serves |= SERVES in told
                worker.ready |= READY in told
                if not told:
                    worker.close()
        if not self._announced and sum(w.serves for w in self._workers.values()) == self._count:
            self._announced = True
            self._on_serving()

    def _telling(self) -> list[_Worker]:
        return [worker for worker in self._workers.values() if worker.tells_fd >= 0]

    def _reap(self) -> None:
        for pid in list(self._workers):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            worker = self._workers.pop(pid)
            worker.close()
            code = os.waitstatus_to_exitcode(status)
            if worker.retiring or self._stop_by is not None:
                # One that did not serve yet has nothing to drain, and ends at once.
                self._in_order = self._in_order and (code == 0 or not worker.serves)
            else:
                self._mourn(worker, code)

    def _mourn(self, worker: _Worker, code: int) -> None:
        """A worker died on its own: when is the next one to start, if at all?"""
        lived_seconds = time.monotonic() - worker.started
        if not worker.ready:
            self._to_replace = []  # What the replacement cannot do, the old one still does.
        self._count_death(worker, lived_seconds)
        backoff_seconds = min(0.25 * 2**self._died_young, _MAX_BACKOFF_SECONDS)
        self._not_before = time.monotonic() + (backoff_seconds if self._died_young else 0)
        log.error(
            "worker died",
            worker=worker.number,
            pid=worker.pid,
            code=code,
            lived_seconds=round(lived_seconds, 1),
        )
        if self._died_young >= _CRASH_LOOP:
            log.critical("workers die as soon as they start; giving up")
            self._in_order = False
            self._stop()

    def _count_death(self, worker: _Worker, lived_seconds: float) -> None:
        """Counts the rounds in which new workers die young; many that die at once are one."""
        now, before = time.monotonic(), self._last_death
        self._last_death = now
        if now - before > _CALM_SECONDS or lived_seconds >= _YOUNG_SECONDS:
            self._died_young = 0
        if lived_seconds < _YOUNG_SECONDS and worker.started >= before:
            self._died_young += 1

    def _kill_overdue(self) -> None:
        if self._stop_by is None or time.monotonic() < self._stop_by:
            return
        for pid in self._workers:
            log.error("worker did not stop in time; killing it", pid=pid)
            os.kill(pid, signal.SIGKILL)


def _tell(descriptor: int, what: bytes) -> None:
    with suppress(OSError):  # The supervisor is gone; another descriptor says so.
        os.write(descriptor, what)
