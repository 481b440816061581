"""Cancel running statements: when their call ends, or when they take too long.

psycopg2's `connection.cancel()` holds the interpreter's lock until the server answers; ctypes
releases it (docs/decisions/0003). This relies on `psycopg2._psycopg` being the extension module
that libpq is linked to: `pyproject.toml` bounds the version of psycopg2.
"""

import ctypes
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar

import psycopg2
from psycopg2.extensions import connection as DriverConnection  # noqa: N812 - used as a type

from storage.errors import StatementCancelledError

_THREADS = 4
_INTERVAL_SECONDS = 0.05
# The pauses between cancel requests for one statement; after them statement_timeout ends it.
_PAUSES_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8)

_libpq = ctypes.CDLL(psycopg2._psycopg.__file__)
_libpq.PQgetCancel.argtypes = _libpq.PQfreeCancel.argtypes = [ctypes.c_void_p]
_libpq.PQgetCancel.restype = ctypes.c_void_p
_libpq.PQcancel.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]


class CancelRequest:
    """A request to cancel a connection's statement; it may outlive the connection."""

    def __init__(self, connection: DriverConnection) -> None:
        self._request = _libpq.PQgetCancel(connection.pgconn_ptr)

    def __del__(self) -> None:
        _libpq.PQfreeCancel(self._request)

    def send(self) -> None:
        """Return when the server has signalled the statement, or cannot be reached."""
        error = ctypes.create_string_buffer(256)
        _libpq.PQcancel(self._request, error, len(error))


class Cancellation:
    """Cancel the statements of one call.

    As a context manager it covers the statements of its thread; `seconds` bounds the wait for a
    connection. `cancel` may be called from any thread at any time. It never hits another call: no
    connection is returned to the pool while a cancel request is under way.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self._deadline = time.monotonic() + seconds
        self._changed = threading.Condition()
        self._running: RunningStatement | None = None
        self.cancelled = False
        self.ended = False

    def __enter__(self) -> "Cancellation":
        self._token = current_call.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True
        current_call.reset(self._token)

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def cancel(self) -> None:
        """Cancel the running statement, if any, and reject later ones; may block."""
        with self._changed:
            self.cancelled = True
            if self._running is not None:
                self.end(self._running)

    def end(self, statement: "RunningStatement") -> None:
        """Send cancel requests until this statement has ended; later ones may run. May block."""
        with self._changed:  # PostgreSQL ignores a request that arrives before its statement.
            for pause_seconds in _PAUSES_SECONDS:
                if self._running is not statement:
                    return
                statement.cancel_request.send()
                self._changed.wait(pause_seconds)

    def set_running(self, statement: "RunningStatement | None") -> None:
        """Note the statement that begins, or None at its end. Raises: StatementCancelledError."""
        with self._changed:
            if self.cancelled and statement is not None:
                raise StatementCancelledError
            self._running = statement
            self._changed.notify()


current_call: ContextVar[Cancellation | None] = ContextVar("current_call", default=None)


class RunningStatement:
    """Register a statement while it runs, so that its call or the timer can cancel it."""

    def __init__(
        self,
        cancellation: Cancellation,
        cancel_request: CancelRequest,
        timer: "StatementTimer",
        seconds: float,
    ) -> None:
        self._cancellation = cancellation
        self._timer = timer
        self._seconds = seconds
        self.cancel_request = cancel_request

    def __enter__(self) -> None:
        self._cancellation.set_running(self)
        self._timer.add(self, self._seconds)

    def __exit__(self, *_: object) -> None:
        self._timer.remove(self)
        self._cancellation.set_running(None)

    def end(self) -> None:
        self._cancellation.end(self)


class StatementTimer:
    """Cancel statements from threads of its own: at their deadline, or at the end of their call.

    PostgreSQL's statement_timeout is not set behind a pooler (docs/decisions/0017).
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._cancellers = ThreadPoolExecutor(_THREADS, thread_name_prefix="cancel")
        self._deadlines: dict[RunningStatement, float] = {}
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="statement timer", daemon=True).start()

    def stop(self) -> None:
        """Stop; wait for the cancel requests under way."""
        self._stopped.set()
        self._cancellers.shutdown()

    def cancel_later(self, cancellation: Cancellation) -> None:
        """Cancel a call's statement without blocking."""
        if not cancellation.ended:
            self._cancellers.submit(cancellation.cancel)

    def add(self, statement: RunningStatement, seconds: float) -> None:
        """Time a statement; no statement gets more than the timer's own limit."""
        self._deadlines[statement] = time.monotonic() + min(seconds, self._seconds)

    def remove(self, statement: RunningStatement) -> None:
        self._deadlines.pop(statement, None)

    def _run(self) -> None:
        while not self._stopped.wait(_INTERVAL_SECONDS):
            for statement, deadline in self._deadlines.copy().items():
                if deadline <= time.monotonic():
                    self.remove(statement)
                    with suppress(RuntimeError):  # The executor is shut down.
                        self._cancellers.submit(statement.end)
