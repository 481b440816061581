"""Limit the answers that clients have not read.

HTTP/2 lets a client delay that without limit, and the answer stays in memory although its call has
no thread any more: 250 lists on one connection were 1 GB.
"""

import threading
from collections import Counter

import grpc
import structlog

from server.calls.current import Call
from server.telemetry import metrics
from server.telemetry.logs import LogThrottle

log = structlog.get_logger()

MAX_BYTES = 64 * 1024 * 1024
# A call is kept with its answer: empty answers count, too.
_CALL_BYTES = 16 * 1024


class _Answer:
    def __init__(self, call: Call, context: grpc.ServicerContext) -> None:
        self.call = call
        self.context = context
        self.peer = call.peer
        self.bytes = call.sent_bytes + _CALL_BYTES


class UnreadAnswers:
    """Beyond MAX_BYTES, evict the oldest answer of the connection that holds the most bytes.

    There is no time limit: a slow client is served while the limit is not reached.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: dict[str, dict[_Answer, None]] = {}  # By peer, the oldest first.
        self._bytes = Counter[str]()
        self._total_bytes = 0
        self._dropped = LogThrottle()

    def add(self, call: Call, context: grpc.ServicerContext) -> None:
        """Count the answer of a call, which is sent next, until the call is over."""
        answer = _Answer(call, context)
        with self._lock:
            self._answers.setdefault(answer.peer, {})[answer] = None
            self._count(answer, answer.bytes)
        if not context.add_callback(lambda: self._forget(answer)):
            self._forget(answer)
        while surplus := self._surplus():
            self._drop(surplus)

    def _surplus(self) -> _Answer | None:
        with self._lock:
            if self._total_bytes <= MAX_BYTES:
                return None
            peer = max(self._bytes, key=self._bytes.__getitem__)
            answer = next(iter(self._answers[peer]))
            self._remove(answer)
            return answer

    def _drop(self, answer: _Answer) -> None:
        answer.call.reason = "ANSWER_NOT_READ"
        metrics.count_error(answer.call.method, answer.call.reason)
        if calls := self._dropped.count():
            log.warning("answers were not read, and are dropped", calls=calls, peer=answer.peer)
        answer.context.cancel()

    def _forget(self, answer: _Answer) -> None:
        with self._lock:
            if answer in self._answers.get(answer.peer, ()):
                self._remove(answer)

    def _remove(self, answer: _Answer) -> None:
        del self._answers[answer.peer][answer]
        self._count(answer, -answer.bytes)
        if not self._answers[answer.peer]:
            del self._answers[answer.peer], self._bytes[answer.peer]

    def _count(self, answer: _Answer, size: int) -> None:
        self._bytes[answer.peer] += size
        self._total_bytes += size
