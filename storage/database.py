"""The connection to PostgreSQL: the pool, retries, cancellation, and errors in our own words.

A read is one statement in AUTOCOMMIT, and so is a write: what must happen together stands in one
statement (WITH …), which is atomic by itself and costs one round trip.
"""

from __future__ import annotations

import ctypes
import datetime as dt
import math
import random
import select
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

import psycopg2
from opentelemetry.trace import get_current_span
from sqlalchemy import (
    Connection,
    Engine,
    Executable,
    NullPool,
    QueuePool,
    Row,
    event,
    func,
    text,
)
from sqlalchemy import select as sql_select
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, DisconnectionError, InvalidRequestError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.util.queue import Queue

from storage import measures
from storage.errors import (
    ConstraintError,
    DatabaseUnavailableError,
    StatementCancelledError,
    StatementFailedError,
    StatementTimeoutError,
    StorageError,
    TransactionConflictError,
)
from storage.session import APPLICATION_NAME, make_engine

# SQLSTATE: a primary that became a replica; shutdown, crash, start-up, dropped database and idle
# timeouts; too few connections or too little memory. Class 08 is "connection exception".
_UNAVAILABLE = {"25006", "57P01", "57P02", "57P03", "57P04", "57P05"}
_UNAVAILABLE_CLASSES = {"08", "53"}
_SHORT_OF_RESOURCES = {"53000", "53100", "53200", "53400"}
_CONFLICT = {"40001", "40P01"}
_QUERY_CANCELED = "57014"

_CONFLICT_ATTEMPTS = 4
_IDLE_SECONDS_TRUSTED = 30.0
_CANCEL_THREADS = 4
# How long a statement gets to end before the next cancel request; then statement_timeout ends it.
_CANCEL_PAUSES_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8)

_CLOCK_TRUSTED_SECONDS = 60.0
_CLOCK = measures.named("clock", sql_select(func.clock_timestamp()))
_COMMIT = measures.named("commit", text("COMMIT"))

Parameters = dict[str, Any]
Rows = Sequence[Row[Any]]

# libpq itself, by way of the module that is linked to it. psycopg2's own cancel() does not let go
# of the interpreter's lock while it waits for the server: one that hangs would halt every thread.
_libpq = ctypes.CDLL(psycopg2._psycopg.__file__)
_libpq.PQgetCancel.argtypes = _libpq.PQfreeCancel.argtypes = [ctypes.c_void_p]
_libpq.PQgetCancel.restype = ctypes.c_void_p
_libpq.PQcancel.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]


class _CancelRequest:
    """What ends a connection's statement; it may outlive the connection."""

    def __init__(self, connection: Any) -> None:
        self._request = _libpq.PQgetCancel(connection.pgconn_ptr)

    def __del__(self) -> None:
        _libpq.PQfreeCancel(self._request)

    def send(self) -> None:
        """Returns when the server has signalled the statement, or cannot be reached."""
        error = ctypes.create_string_buffer(256)
        _libpq.PQcancel(self._request, error, len(error))


class Cancellation:
    """Ends the statement of a call that nobody waits for any more.

    As a context manager it covers the statements of its thread. `cancel` may be called from any
    thread, before, during or after a statement: it never hits a statement of another call, for
    the connection is not given back while a cancel request is under way. Nor does the call wait
    for a connection when its time is over, in so many seconds from now.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self._deadline = time.monotonic() + seconds
        self._changed = threading.Condition()
        self._running: _Statement | None = None
        self.cancelled = False
        self.ended = False

    def __enter__(self) -> Cancellation:
        self._token = _cancellation.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.ended = True
        _cancellation.reset(self._token)

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def cancel(self) -> None:
        """Ends the running statement, if there is one, and lets none begin; may block."""
        with self._changed:
            self.cancelled = True
            if self._running is not None:
                self._end(self._running)

    def end(self, statement: _Statement) -> None:
        """Ends this statement, if it still runs; others may follow it. May block."""
        with self._changed:
            self._end(statement)

    def _end(self, statement: _Statement) -> None:
        """PostgreSQL forgets a request that arrives before its statement does: so it is repeated
        until the statement has ended."""
        for pause_seconds in _CANCEL_PAUSES_SECONDS:
            if self._running is not statement:
                return
            statement.cancel_request.send()
            self._changed.wait(pause_seconds)

    def run(self, statement: _Statement | None) -> None:
        """A statement begins, or has ended. Raises: StatementCancelledError."""
        with self._changed:
            if self.cancelled and statement is not None:
                raise StatementCancelledError
            self._running = statement
            self._changed.notify()


class _Statement:
    """A statement that runs within this, and can be ended by its call or by the timer."""

    def __init__(
        self,
        cancellation: Cancellation,
        cancel_request: _CancelRequest,
        timer: StatementTimer,
        seconds: float,
    ) -> None:
        self._cancellation = cancellation
        self._timer = timer
        self._seconds = seconds
        self.cancel_request = cancel_request

    def __enter__(self) -> None:
        self._cancellation.run(self)
        self._timer.add(self, self._seconds)

    def __exit__(self, *_: object) -> None:
        self._timer.remove(self)
        self._cancellation.run(None)

    def end(self) -> None:
        self._cancellation.end(self)


class StatementTimer:
    """Ends the statements that take too long, in whatever session they run.

    PostgreSQL's statement_timeout cannot be relied upon: a pooler that gives each transaction
    another session does not keep what was set. It still ends the statements of a process that
    died.
    """

    def __init__(self, seconds: float, cancellers: ThreadPoolExecutor) -> None:
        self._seconds = seconds
        self._cancellers = cancellers
        self._deadlines: dict[_Statement, float] = {}
        self._next_look = math.inf
        self._woken = threading.Event()
        self._stopped = False

    def start(self) -> None:
        threading.Thread(target=self._run, name="statement timer", daemon=True).start()

    def stop(self) -> None:
        self._stopped = True
        self._woken.set()

    def add(self, statement: _Statement, seconds: float) -> None:
        """A statement begins that may take so many seconds, or as many as any may."""
        deadline = time.monotonic() + min(seconds, self._seconds)
        self._deadlines[statement] = deadline
        if deadline < self._next_look:
            self._woken.set()

    def remove(self, statement: _Statement) -> None:
        self._deadlines.pop(statement, None)

    def _run(self) -> None:
        while not self._stopped:
            self._await_deadline()
            for statement, deadline in self._deadlines.copy().items():
                if deadline <= time.monotonic():
                    self.remove(statement)
                    with suppress(RuntimeError):  # The database is being closed.
                        self._cancellers.submit(statement.end)

    def _await_deadline(self) -> None:
        """Waits for the first deadline there is, or for a statement that has an earlier one."""
        self._woken.clear()
        self._next_look = math.inf  # A statement that begins while the first is looked for wakes.
        first = min(self._deadlines.copy().values(), default=math.inf)
        self._next_look = first
        if not self._stopped:
            pause_seconds = first - time.monotonic()
            self._woken.wait(None if math.isinf(first) else max(0.0, pause_seconds))


_cancellation: ContextVar[Cancellation | None] = ContextVar("cancellation", default=None)


class _Connections(Queue[Any]):
    """The idle connections of a pool; nobody waits for one longer than his call has time."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        call = _cancellation.get()
        if call is not None and timeout is not None:
            timeout = min(timeout, call.seconds_left)
        return super().get(block, timeout)


class _Pool(QueuePool):
    _queue_class = _Connections


class PoolUsage(NamedTuple):
    """Connections in use and idle, those who wait for one, and the most that are opened."""

    used: int
    idle: int
    waiting: int
    limit: int


class Database:
    """A pool of connections to one PostgreSQL database."""

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 20,
        max_overflow: int = 10,
        pool_recycle_seconds: float = 3600,
        pool_timeout_seconds: float = 5,
        statement_timeout_seconds: float = 30,
        read_timeout_seconds: float = 5,
        application_name: str = APPLICATION_NAME,
        trace_comments: bool = False,
        direct_url: str | None = None,
    ) -> None:
        self._engine = make_engine(
            url,
            application_name=application_name,
            statement_timeout_seconds=statement_timeout_seconds,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,  # They are the callers' data.
            skip_autocommit_rollback=True,
            query_cache_size=200,  # A watched group of filters has a quarter of a megabyte.
            poolclass=_Pool,
            pool_size=pool_size,
            max_overflow=max_overflow,
            pool_recycle=int(pool_recycle_seconds),
            pool_timeout=pool_timeout_seconds,
            pool_use_lifo=True,
        )
        self._direct = self._engine
        if direct_url is not None:
            self._direct = make_engine(
                direct_url,
                application_name=application_name,
                isolation_level="AUTOCOMMIT",
                poolclass=NullPool,
            )
        self._cancellers = ThreadPoolExecutor(_CANCEL_THREADS, thread_name_prefix="cancel")
        self._timer = StatementTimer(statement_timeout_seconds, self._cancellers)
        self._timer.start()
        self._read_timeout_seconds = read_timeout_seconds
        event.listen(self._engine, "connect", self._prepare)
        event.listen(self._engine, "checkin", _remember_return)
        event.listen(self._engine, "checkout", _validate)
        event.listen(self._engine, "handle_error", _recognise_lost_connection)
        if trace_comments:
            event.listen(self._engine, "before_cursor_execute", _add_comment, retval=True)
        self._waiting: set[int] = set()
        self._limit = pool_size + max_overflow
        self._clock = dt.datetime.now(dt.UTC), -math.inf

    @property
    def engine(self) -> Engine:
        return self._engine

    def usage(self) -> PoolUsage:
        """How much of the pool is in use right now."""
        pool: Any = self._engine.pool
        return PoolUsage(pool.checkedout(), pool.checkedin(), len(self._waiting), self._limit)

    def read(
        self,
        statement: Executable,
        parameters: Parameters | None = None,
        *,
        seconds: float = math.inf,
    ) -> Rows:
        """Runs a statement that changes nothing; once more when the connection was lost.

        For a call it takes no longer than so many seconds, or than any read of a call may.

        Raises: DatabaseUnavailableError, StatementTimeoutError, StatementCancelledError,
            TransactionConflictError.
        """
        if _cancellation.get() is not None:
            seconds = min(seconds, self._read_timeout_seconds)
        try:
            return self._repeated(statement, parameters, seconds=seconds)
        except DatabaseUnavailableError as error:
            if isinstance(error.__cause__, PoolTimeoutError):
                raise  # Nothing was lost, and the caller has waited long enough.
            return self._repeated(statement, parameters, seconds=seconds)

    def write(
        self, statement: Executable, parameters: Parameters | None = None, *, commit: bool = True
    ) -> Rows:
        """Runs a statement that changes something, wholly or not at all.

        Without `commit` it runs, returns what it would, and is rolled back. It is not repeated
        when the connection was lost: it may have taken place.

        Raises: as `read`, ConstraintError.
        """
        return self._repeated(statement, parameters, commit=commit)

    def _repeated(
        self,
        statement: Executable,
        parameters: Parameters | None,
        *,
        commit: bool = True,
        seconds: float = math.inf,
    ) -> Rows:
        """Runs a statement again when the database gave it up for another transaction."""
        for attempt in range(_CONFLICT_ATTEMPTS):
            try:
                return self._run(statement, parameters, commit=commit, seconds=seconds)
            except TransactionConflictError:
                if attempt == _CONFLICT_ATTEMPTS - 1:
                    raise
                get_current_span().add_event("gave way to another transaction")
                time.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311
        raise AssertionError("unreachable")

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Statements that take place together when this ends, or not at all.

        Raises: as `write`; the transaction is over after any of them.
        """
        cancellation = _cancellation.get() or Cancellation()
        with _StorageErrors(cancellation), self._connected() as connection:
            connection.execution_options(isolation_level="READ COMMITTED")
            transaction = Transaction(connection, cancellation)
            yield transaction
            if transaction.commits:
                with measures.StatementMeasured(_COMMIT):
                    connection.commit()
            else:
                connection.rollback()

    @contextmanager
    def exclusively(self, key: int) -> Iterator[bool]:
        """Whether nobody else, in any process, does what the key stands for while this holds."""
        with _StorageErrors(Cancellation()), self._connected() as connection:
            connection.execution_options(isolation_level="READ COMMITTED")
            lock = measures.named("lock alone", sql_select(func.pg_try_advisory_xact_lock(key)))
            yield bool(_execute(connection, Cancellation(), lock)[0][0])
            connection.rollback()

    def dedicated_connection(self, statement: str) -> Any:
        """A driver's connection that is not the pool's any more and has run the statement.

        It is made by the direct URL, where there is one: what it needs is a session of its own.

        Raises: DatabaseUnavailableError.
        """
        with _StorageErrors(Cancellation()):
            pooled = self._direct.raw_connection()
            connection: Any = pooled.driver_connection
            pooled.detach()
            connection.cursor().execute(statement)
            return connection

    def now(self) -> dt.datetime:
        """Returns the time by PostgreSQL's clock, which stamps the rows, to some milliseconds.

        It is asked for once a minute and carried on by the monotonic clock, so that a process
        whose clock is wrong judges times as the database does, without a round trip for each call.

        Raises: as `read`.
        """
        told, asked = self._clock
        if time.monotonic() - asked > _CLOCK_TRUSTED_SECONDS:
            told, asked = self._clock = self.read(_CLOCK)[0][0], time.monotonic()
        return told + dt.timedelta(seconds=time.monotonic() - asked)

    def cancel_later(self, cancellation: Cancellation) -> None:
        """Cancels from a thread of our own, for callers that must not block."""
        if not cancellation.ended:
            self._cancellers.submit(cancellation.cancel)

    def forget_connections(self) -> None:
        """New connections are made from here on; those in use are closed when they come back."""
        self._engine.dispose()

    def close(self) -> None:
        self._timer.stop()
        self._cancellers.shutdown()
        self._engine.dispose()

    def _prepare(self, connection: Any, record: Any) -> None:
        record.info["cancel_request"] = _CancelRequest(connection)
        record.info["timer"] = self._timer

    def _run(
        self,
        statement: Executable,
        parameters: Parameters | None,
        *,
        commit: bool,
        seconds: float,
    ) -> Rows:
        cancellation = _cancellation.get() or Cancellation()
        with _StorageErrors(cancellation), self._connected() as connection:
            if not commit:
                connection.execution_options(isolation_level="READ COMMITTED")
            rows = _execute(connection, cancellation, statement, parameters, seconds)
            if not commit:
                connection.rollback()
            return rows

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """A connection of the pool; the wait for it is measured."""
        me, began = threading.get_ident(), time.perf_counter()
        self._waiting.add(me)
        try:
            connection = self._engine.connect()
        except PoolTimeoutError:
            measures.gave_up()
            raise
        finally:
            self._waiting.discard(me)
            measures.waited(began)
        with connection:
            yield connection


class Transaction:
    """A transaction that is open: the statements of `Database`, on one connection."""

    def __init__(self, connection: Connection, cancellation: Cancellation) -> None:
        self._connection = connection
        self._cancellation = cancellation
        self.commits = True

    def read(self, statement: Executable, parameters: Parameters | None = None) -> Rows:
        with _StorageErrors(self._cancellation):
            return _execute(self._connection, self._cancellation, statement, parameters)

    def write(
        self, statement: Executable, parameters: Parameters | None = None, *, commit: bool = True
    ) -> Rows:
        self.commits = self.commits and commit
        return self.read(statement, parameters)

    def now(self) -> dt.datetime:
        now: dt.datetime = self.read(_CLOCK)[0][0]
        return now


def _execute(
    connection: Connection,
    cancellation: Cancellation,
    statement: Executable,
    parameters: Parameters | None = None,
    seconds: float = math.inf,
) -> Rows:
    info = connection.info
    with (
        _Statement(cancellation, info["cancel_request"], info["timer"], seconds),
        measures.StatementMeasured(statement) as measured,
    ):
        result = connection.execute(statement, parameters)
        measured.executed(result)
        return result.all()


class _StorageErrors:
    """The one place where a driver's error becomes ours."""

    def __init__(self, cancellation: Cancellation) -> None:
        self._cancellation = cancellation

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        match error:
            case None:
                return
            case PoolTimeoutError():
                raise DatabaseUnavailableError("every connection of the pool is in use") from error
            case InvalidRequestError():  # New connections die before their first use.
                raise DatabaseUnavailableError("connections do not last") from error
            case DBAPIError():
                # Without the driver's error, whose text may quote the row: the callers' data.
                raise _translated(error.orig, self._cancellation) from None
            case psycopg2.Error():  # SQLAlchemy wraps only what statements raise.
                raise _translated(error, self._cancellation) from None


def _translated(error: BaseException | None, cancellation: Cancellation) -> StorageError:
    if not isinstance(error, psycopg2.Error):
        return StatementFailedError(None, type(error).__name__)
    sqlstate, says = error.pgcode, error.diag
    if sqlstate == _QUERY_CANCELED:
        return StatementCancelledError() if cancellation.cancelled else StatementTimeoutError()
    if sqlstate in _CONFLICT:
        return TransactionConflictError(says.message_primary)
    if _means_unavailable(error):
        return DatabaseUnavailableError(says.message_primary or str(error).strip())
    if says.constraint_name:
        return ConstraintError(says.constraint_name)
    return StatementFailedError(sqlstate, _harmless(sqlstate, says.message_primary))


def _harmless(sqlstate: str | None, message: str | None) -> str | None:
    """The message, where it names only what is in the schema; others may quote a value."""
    return message if sqlstate is not None and sqlstate.startswith("42") else None


def _means_unavailable(error: BaseException | None) -> bool:
    sqlstate = getattr(error, "pgcode", None)
    if sqlstate is None:  # The server did not say anything: the socket is gone, or never was.
        return isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
    return sqlstate in _UNAVAILABLE or sqlstate[:2] in _UNAVAILABLE_CLASSES


def _recognise_lost_connection(context: ExceptionContext) -> None:
    sqlstate = getattr(context.original_exception, "pgcode", None)
    if sqlstate in _SHORT_OF_RESOURCES:
        return  # The connection is well, and so are all others.
    if _means_unavailable(context.original_exception):
        context.is_disconnect = True


def _add_comment(
    _connection: Connection,
    _cursor: object,
    statement: str,
    parameters: object,
    _context: object,
    _executemany: bool,
) -> tuple[str, object]:
    return statement + measures.trace_comment(), parameters


def _remember_return(_connection: object, record: Any) -> None:
    record.info["returned_at"] = time.monotonic()


def _validate(connection: Any, record: Any, _proxy: object) -> None:
    """A dead connection never reaches a caller, and a live one costs no round trip.

    The server has nothing to say on an idle connection but that it ends. So one whose socket has
    something to read is asked, and so is one that was idle long enough to have died in silence.
    """
    idle_seconds = time.monotonic() - record.info.get("returned_at", time.monotonic())
    try:
        if idle_seconds < _IDLE_SECONDS_TRUSTED and not readable(connection):
            return
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except psycopg2.Error as error:
        raise DisconnectionError from error


def readable(connection: Any, timeout_seconds: float = 0) -> bool:
    """Whether the server has something to say on a driver's connection, now or in time."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(timeout_seconds * 1000))
