"""Check readiness at an interval, and report it to the health service."""

import queue
from collections.abc import Callable

import structlog

from server.network.health import NOT_SERVING, READINESS, SERVING, STARTUP, HealthServicer
from server.periodic import Periodic

log = structlog.get_logger()

INTERVAL_SECONDS = 2.0

# A single failure may be a broken connection; two in a row are an outage.
_OUTAGE_FAILURES = 2


class ReadinessMonitor:
    """Run the check at an interval, and update the health service when the result changes.

    The check raises, or returns a note, which is logged when it changes; "" for none. Check and
    evaluation have a thread each, so that a check that hangs counts as a failure.
    """

    def __init__(self, servicer: HealthServicer, check: Callable[[], str]) -> None:
        self._servicer = servicer
        self._check = check
        self._patience_seconds = 2 * INTERVAL_SECONDS + 1
        self._checks = Periodic("readiness check", self._run_check, INTERVAL_SECONDS)
        self._evaluation = Periodic("readiness", self._evaluate, 0)
        self._results: queue.Queue[Exception | str] = queue.Queue()
        self._failures = 0
        self.is_ready = False
        self._why = ""

    def start(self) -> None:
        self._checks.start()
        self._evaluation.start()

    def stop(self) -> None:
        self._checks.stop()
        self._evaluation.stop()

    def _run_check(self) -> None:
        try:
            self._results.put(self._check())
        except Exception as error:
            self._results.put(error)

    def _evaluate(self) -> None:
        try:
            result = self._results.get(timeout=self._patience_seconds)
        except queue.Empty:
            result = TimeoutError(f"no answer from the database in {self._patience_seconds} s")
        if isinstance(result, str):
            self._failures = 0
            self._set(ready=True, why=result)
            return
        self._failures += 1
        if self._failures >= _OUTAGE_FAILURES:
            self._set(ready=False, why=str(result))

    def _set(self, *, ready: bool, why: str) -> None:
        if (ready, why) == (self.is_ready, self._why) or self._evaluation.is_stopped:
            return
        changed = ready != self.is_ready
        self.is_ready, self._why = ready, why
        if changed:
            self._servicer.set(READINESS, SERVING if ready else NOT_SERVING)
        if ready:
            self._servicer.set(STARTUP, SERVING)
            log.info("ready", **({"note": why} if why else {}))
        else:
            log.error("not ready", why=why)
