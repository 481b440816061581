"""Answers that wait for their callers to read them.

HTTP/2 lets a caller put that off for ever, and what it did not read stays in memory, though its
call has no thread any more and counts nowhere else: 250 lists on one connection were 1 GB.
"""

from __future__ import annotations

import threading

import grpc
import structlog

log = structlog.get_logger()

# A call is kept with its answer: empty ones count, too.
_CALL_BYTES = 16 * 1024


class UnreadAnswers:
    """No more than `limit_bytes` of answers in this process: for a new one the oldest give way.

    A caller who reads has the youngest ones. There is no clock in it: a slow caller is served for
    as long as there is room.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._sizes: dict[grpc.ServicerContext, int] = {}  # The oldest first.
        self._bytes = 0

    def add(self, context: grpc.ServicerContext, size: int) -> None:
        """An answer of so many bytes is about to be sent; it counts until its call is over."""
        with self._lock:
            self._sizes[context] = size + _CALL_BYTES
            self._bytes += self._sizes[context]
        if not context.add_callback(lambda: self._forget(context)):
            self._forget(context)
        while self._bytes > self._limit_bytes and (oldest := self._oldest()):
            log.warning("an answer was not read, and is dropped", peer=oldest.peer())
            oldest.cancel()

    def _oldest(self) -> grpc.ServicerContext | None:
        with self._lock:
            oldest = next(iter(self._sizes), None)
            self._bytes -= self._sizes.pop(oldest, 0) if oldest else 0
            return oldest

    def _forget(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._bytes -= self._sizes.pop(context, 0)
