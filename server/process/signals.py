"""Signals that a process waits for."""

import os
import select
import signal
from collections.abc import Iterable
from contextlib import suppress
from typing import Self


class Signals:
    """Receive signals by waiting, as a context manager: no code runs inside a signal handler."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self._numbers = numbers

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer)
        self._before = {number: signal.signal(number, _ignore) for number in self._numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._reader)
        os.close(self._writer)

    def wait(self, timeout_seconds: float | None = None, also: Iterable[int] = ()) -> list[int]:
        """Return the received signals; none after the timeout, or if one of `also` is readable."""
        select.select([self._reader, *also], [], [], timeout_seconds)
        with suppress(BlockingIOError):
            return [number for number in os.read(self._reader, 64) if number in self._numbers]
        return []


def _ignore(_number: int, _frame: object) -> None:
    """Do nothing: without a Python handler, Python would not write to the wake-up descriptor."""
