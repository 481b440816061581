"""Statements on PostgreSQL: run and repeat them.

Reads and writes are single statements in AUTOCOMMIT: what must happen together stands in one.
"""

import datetime as dt
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from opentelemetry.trace import get_current_span
from psycopg2.extensions import connection as DriverConnection  # noqa: N812 - used as a type
from sqlalchemy import BigInteger, NullPool, bindparam, func, select, text
from sqlalchemy.pool import ConnectionPoolEntry

from storage.cancellation import Cancellation, StatementTimer, current_call
from storage.errors import DatabaseUnavailableError, TransactionConflictError
from storage.pool import Pool, open_connection
from storage.session import APPLICATION_NAME, make_engine
from storage.statement import Parameters, Query, Rows, Session, Statement

_RECYCLE_SECONDS = 3600
_CONFLICT_ATTEMPTS = 4
_CLOCK_TRUSTED_SECONDS = 60.0
_CLOCK = Statement("clock", select(func.clock_timestamp()))
_LOCK_ALONE = Statement(
    "lock alone", select(func.pg_try_advisory_xact_lock(bindparam("key", type_=BigInteger)))
)


class Database:
    """Runs statements on one PostgreSQL database, on pooled connections."""

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 20,
        max_overflow: int = 10,
        pool_timeout_seconds: float = 5,
        statement_timeout_seconds: float = 30,
        read_timeout_seconds: float = 5,
        application_name: str = APPLICATION_NAME,
        direct_url: str | None = None,
        prepared_statements: bool = True,
    ) -> None:
        engine = partial(
            make_engine, application_name=application_name, isolation_level="AUTOCOMMIT"
        )
        self._direct = engine(direct_url or url, poolclass=NullPool)
        self.engine = engine(
            url,
            statement_timeout_seconds=statement_timeout_seconds,
            skip_autocommit_rollback=True,
            pool_size=pool_size,
            max_overflow=max_overflow,
            pool_recycle=_RECYCLE_SECONDS,
            pool_use_lifo=True,
        )
        limit = pool_size + max_overflow
        self._pool = Pool(self.engine, self._session, limit, pool_timeout_seconds)
        self._timer = StatementTimer(statement_timeout_seconds)
        self._read_timeout_seconds = read_timeout_seconds
        self._prepared_statements = prepared_statements
        self._clock = dt.datetime.now(dt.UTC), -math.inf
        self.cancel_later = self._timer.cancel_later
        self.replace_connections, self.usage = self._pool.replace_connections, self._pool.usage

    def _session(self, connection: DriverConnection, record: ConnectionPoolEntry) -> Session:
        prepares = self._prepared_statements and record.info["is_direct"]
        return Session(connection, self._timer, prepares=prepares)

    def read(
        self, query: Query, parameters: Parameters | None = None, *, seconds: float = math.inf
    ) -> Rows:
        """Run a statement that changes nothing; repeat it once if the connection was lost.

        A call's read ends after `seconds` or the read timeout, whichever is less.
        Raises: DatabaseUnavailableError, StatementTimeoutError, StatementCancelledError,
            TransactionConflictError.
        """
        if current_call.get() is not None:
            seconds = min(seconds, self._read_timeout_seconds)
        try:
            return self._run(query, parameters, seconds=seconds)
        except DatabaseUnavailableError as error:
            if error.pool_exhausted:
                raise
            return self._run(query, parameters, seconds=seconds)

    def write(
        self, query: Query, parameters: Parameters | None = None, *, commit: bool = True
    ) -> Rows:
        """Run a statement that changes data, wholly or not at all.

        Without `commit` it is rolled back. It is not repeated when the connection was lost: it may
        have been committed.
        Raises: as `read`, ConstraintError.
        """
        return self._run(query, parameters, commit=commit)

    def _run(
        self,
        query: Query,
        parameters: Parameters | None,
        *,
        commit: bool = True,
        seconds: float = math.inf,
    ) -> Rows:
        """Run a statement; repeat it after serialization failures and deadlocks."""
        for attempt in range(_CONFLICT_ATTEMPTS):
            try:
                if not commit:
                    with self.transaction(commits=False) as transaction:
                        return transaction.read(query, parameters)
                with self._pool.connect() as session:
                    return session.run(
                        current_call.get() or Cancellation(), query, parameters, seconds
                    )
            except TransactionConflictError:
                if attempt == _CONFLICT_ATTEMPTS - 1:
                    raise
                get_current_span().add_event("gave way to another transaction")
                time.sleep(random.uniform(0, 0.01 * 2**attempt))  # noqa: S311
        raise AssertionError("unreachable")

    @contextmanager
    def transaction(self, *, commits: bool = True) -> "Iterator[Transaction]":
        """Open a transaction, committed at the end of the block. Raises: as `write`."""
        with self._pool.connect() as session, session.transaction():
            transaction = Transaction(session, commits=commits)
            yield transaction
            if transaction.commits:
                session.commit()

    @contextmanager
    def exclusively(self, key: int) -> Iterator[bool]:
        """Try to hold an advisory lock for the block; give whether it was free."""
        with self.transaction(commits=False) as transaction:
            yield bool(transaction.read(_LOCK_ALONE, {"key": key})[0][0])

    def dedicated_connection(self, statement: str) -> DriverConnection:
        """Open a connection past pool and pooler, and run a statement on it. Raises: as `write`."""
        pooled = open_connection(self._direct)
        connection = pooled.driver_connection
        assert isinstance(connection, DriverConnection)  # noqa: S101 - by the URL's driver
        pooled.detach()
        Session(connection, self._timer, prepares=False).run(Cancellation(), text(statement))
        return connection

    def now(self) -> dt.datetime:
        """Return PostgreSQL's time, read once a minute and advanced by the monotonic clock."""
        database_time, read_at = self._clock
        if time.monotonic() - read_at > _CLOCK_TRUSTED_SECONDS:
            self._clock = database_time, read_at = self.read(_CLOCK)[0][0], time.monotonic()
        return database_time + dt.timedelta(seconds=time.monotonic() - read_at)

    def close(self) -> None:
        self._timer.stop()
        self.engine.dispose()


class Transaction:
    """An open transaction: the statements of `Database`, on one connection."""

    def __init__(self, session: Session, *, commits: bool) -> None:
        self._session = session
        self._call = current_call.get() or Cancellation()
        self.commits = commits

    def read(self, query: Query, parameters: Parameters | None = None) -> Rows:
        return self._session.run(self._call, query, parameters)

    def write(
        self, query: Query, parameters: Parameters | None = None, *, commit: bool = True
    ) -> Rows:
        self.commits = self.commits and commit
        return self.read(query, parameters)

    def now(self) -> dt.datetime:
        now: dt.datetime = self.read(_CLOCK)[0][0]
        return now
