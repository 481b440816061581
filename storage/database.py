"""Statements on PostgreSQL: run, repeat, time and cancel them.

A read is one statement in AUTOCOMMIT, and so is a write: what must happen together stands in one
statement (WITH …), which is atomic and costs one round trip.
"""

from __future__ import annotations

import datetime as dt
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import get_current_span
from psycopg2.extensions import connection as DriverConnection  # noqa: N812 - used as a type
from sqlalchemy import Connection, Engine, Executable, NullPool, event, func, select, text
from sqlalchemy.pool import ConnectionPoolEntry

from storage import measures
from storage.cancellation import (
    Cancellation,
    CancelRequest,
    RunningStatement,
    StatementTimer,
    current_call,
)
from storage.errors import DatabaseUnavailableError, TransactionConflictError
from storage.failures import StorageErrors
from storage.pool import Pool, PoolUsage
from storage.session import APPLICATION_NAME, make_engine
from storage.untyped import Parameters, Rows

_CONFLICT_ATTEMPTS = 4
_CLOCK_TRUSTED_SECONDS = 60.0
_CLOCK = measures.named("clock", select(func.clock_timestamp()))
_COMMIT = measures.named("commit", text("COMMIT"))


class Database:
    """Runs statements on one PostgreSQL database, on pooled connections."""

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
        direct_url: str | None = None,
    ) -> None:
        self._pool = Pool(
            url,
            size=pool_size,
            max_overflow=max_overflow,
            recycle_seconds=pool_recycle_seconds,
            timeout_seconds=pool_timeout_seconds,
            statement_timeout_seconds=statement_timeout_seconds,
            application_name=application_name,
        )
        self._direct = make_engine(
            direct_url or url,
            application_name=application_name,
            isolation_level="AUTOCOMMIT",
            poolclass=NullPool,
        )
        self._timer = StatementTimer(statement_timeout_seconds)
        self._read_timeout_seconds = read_timeout_seconds
        event.listen(self.engine, "connect", self._prepare)
        self._clock = dt.datetime.now(dt.UTC), -math.inf

    @property
    def engine(self) -> Engine:
        return self._pool.engine

    def usage(self) -> PoolUsage:
        """Return how much of the pool is in use."""
        return self._pool.usage()

    def read(
        self,
        statement: Executable,
        parameters: Parameters | None = None,
        *,
        seconds: float = math.inf,
    ) -> Rows:
        """Run a statement that changes nothing; repeat it once if the connection was lost.

        A call's read ends after `seconds` or the read timeout, whichever is less.

        Raises: DatabaseUnavailableError, StatementTimeoutError, StatementCancelledError,
            TransactionConflictError.
        """
        if current_call() is not None:
            seconds = min(seconds, self._read_timeout_seconds)
        try:
            return self._run_repeatedly(statement, parameters, seconds=seconds)
        except DatabaseUnavailableError as error:
            if error.pool_exhausted:
                raise
            return self._run_repeatedly(statement, parameters, seconds=seconds)

    def write(
        self, statement: Executable, parameters: Parameters | None = None, *, commit: bool = True
    ) -> Rows:
        """Run a statement that changes data, wholly or not at all.

        Without `commit` it runs, returns its rows, and is rolled back. It is not repeated when the
        connection was lost: it may have been committed.

        Raises: as `read`, ConstraintError.
        """
        return self._run_repeatedly(statement, parameters, commit=commit)

    def _run_repeatedly(
        self,
        statement: Executable,
        parameters: Parameters | None,
        *,
        commit: bool = True,
        seconds: float = math.inf,
    ) -> Rows:
        """Run a statement; repeat it after serialization failures and deadlocks."""
        for attempt in range(_CONFLICT_ATTEMPTS):
            try:
                return self._run(statement, parameters, commit=commit, seconds=seconds)
            except TransactionConflictError:
                if attempt == _CONFLICT_ATTEMPTS - 1:
                    raise
                get_current_span().add_event("gave way to another transaction")
                time.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311
        raise AssertionError("unreachable")

    def _run(
        self,
        statement: Executable,
        parameters: Parameters | None,
        *,
        commit: bool,
        seconds: float,
    ) -> Rows:
        cancellation = current_call() or Cancellation()
        with StorageErrors(cancellation), self._pool.connect() as connection:
            if not commit:
                connection.execution_options(isolation_level="READ COMMITTED")
            rows = _execute(connection, cancellation, statement, parameters, seconds)
            if not commit:
                connection.rollback()
            return rows

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Open a transaction that is committed at the end of the block.

        Raises: as `write`; any of these ends the transaction.
        """
        cancellation = current_call() or Cancellation()
        with StorageErrors(cancellation), self._pool.connect() as connection:
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
        """Try to hold an advisory lock for the block; give whether it was free."""
        cancellation = Cancellation()
        with StorageErrors(cancellation), self._pool.connect() as connection:
            connection.execution_options(isolation_level="READ COMMITTED")
            lock = measures.named("lock alone", select(func.pg_try_advisory_xact_lock(key)))
            yield bool(_execute(connection, cancellation, lock)[0][0])
            connection.rollback()

    def dedicated_connection(self, statement: str) -> DriverConnection:
        """Open a connection outside the pool, by the direct URL, and run a statement on it.

        Raises: DatabaseUnavailableError.
        """
        with StorageErrors(Cancellation()):
            pooled = self._direct.raw_connection()
            connection = pooled.driver_connection
            assert isinstance(connection, DriverConnection)  # noqa: S101 - by the URL's driver
            pooled.detach()
            connection.cursor().execute(statement)
            return connection

    def now(self) -> dt.datetime:
        """Return the time by PostgreSQL's clock, which stamps the rows, to some milliseconds.

        The clock is read once a minute and advanced by the monotonic clock: no round trip for each
        call, and no dependence on the clock of this machine.

        Raises: as `read`.
        """
        database_time, read_at = self._clock
        if time.monotonic() - read_at > _CLOCK_TRUSTED_SECONDS:
            self._clock = database_time, read_at = self.read(_CLOCK)[0][0], time.monotonic()
        return database_time + dt.timedelta(seconds=time.monotonic() - read_at)

    def cancel_later(self, cancellation: Cancellation) -> None:
        """Cancel a call's statement without blocking."""
        self._timer.cancel_later(cancellation)

    def forget_connections(self) -> None:
        """Close the idle connections now, and those in use when they are returned."""
        self.engine.dispose()

    def close(self) -> None:
        self._timer.stop()
        self.engine.dispose()

    def _prepare(self, connection: DriverConnection, record: ConnectionPoolEntry) -> None:
        record.info["cancel_request"] = CancelRequest(connection)
        record.info["timer"] = self._timer


class Transaction:
    """An open transaction: the statements of `Database`, on one connection."""

    def __init__(self, connection: Connection, cancellation: Cancellation) -> None:
        self._connection = connection
        self._cancellation = cancellation
        self.commits = True

    def read(self, statement: Executable, parameters: Parameters | None = None) -> Rows:
        with StorageErrors(self._cancellation):
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
        RunningStatement(cancellation, info["cancel_request"], info["timer"], seconds),
        measures.StatementMeasured(statement) as measured,
    ):
        result = connection.execute(statement, parameters)
        measured.executed(result)
        return result.all()
