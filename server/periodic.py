"""Run a function again and again on a thread."""

import threading
from collections.abc import Callable

import structlog

log = structlog.get_logger()


class Periodic:
    """Run a function at an interval on a daemon thread; an exception is logged, then it goes on.

    The function may return the seconds until its next run, instead of the interval.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[], float | None],
        interval_seconds: float,
        *,
        delay_seconds: float = 0.0,
    ) -> None:
        self._name = name
        self._run = run
        self._interval_seconds = interval_seconds
        self._delay_seconds = delay_seconds
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._repeat, name=self._name, daemon=True).start()

    def stop(self) -> None:
        """Prevent further runs, without waiting for one that is under way."""
        self._stopped.set()

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    def _repeat(self) -> None:
        pause_seconds = self._delay_seconds
        while not self._stopped.wait(pause_seconds):
            pause_seconds = self._interval_seconds
            try:
                pause_seconds = self._run() or self._interval_seconds
            except Exception as error:
                log.warning(f"{self._name} failed", why=str(error))
