"""Readiness: whether the database serves, asked every so often and told to the health service."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import structlog

from server.network.health import NOT_SERVING, READINESS, SERVING, STARTUP, HealthServicer

log = structlog.get_logger()

# A single failure may be a connection that broke; two in a row are an outage.
_FAILURES_BELIEVED = 2


class ReadinessMonitor:
    """Asks the database every so often, and tells the health service when the answer changes.

    Threads ask and judge apart, so that a database that does not answer at all counts as away.
    """

    def __init__(
        self,
        servicer: HealthServicer,
        check: Callable[[], None],
        *,
        interval_seconds: float,
    ) -> None:
        self._servicer = servicer
        self._check = check
        self._interval_seconds = interval_seconds
        self._answers: queue.Queue[Exception | None] = queue.Queue()
        self._stopped = threading.Event()
        self._ready = False
        self._why = ""

    def start(self) -> None:
        for target in (self._ask, self._judge):
            threading.Thread(target=target, name="readiness", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    @property
    def is_ready(self) -> bool:
        return self._ready

    def _ask(self) -> None:
        while not self._stopped.is_set():
            try:
                self._check()
                self._answers.put(None)
            except Exception as error:
                self._answers.put(error)
            self._stopped.wait(self._interval_seconds)

    def _judge(self) -> None:
        failures = 0
        patience_seconds = 2 * self._interval_seconds + 1
        while not self._stopped.is_set():
            try:
                problem = self._answers.get(timeout=patience_seconds)
            except queue.Empty:
                problem = TimeoutError(f"no answer from the database in {patience_seconds} s")
            failures = failures + 1 if problem else 0
            if problem is None:
                self._become(ready=True)
            elif failures >= _FAILURES_BELIEVED:
                self._become(ready=False, why=str(problem))

    def _become(self, *, ready: bool, why: str = "") -> None:
        if (ready, why) == (self._ready, self._why) or self._stopped.is_set():
            return
        changed = ready != self._ready
        self._ready, self._why = ready, why
        if changed:
            self._servicer.set(READINESS, SERVING if ready else NOT_SERVING)
        if ready:
            self._servicer.set(STARTUP, SERVING)
            log.info("ready")
        else:
            log.error("not ready", why=why)
