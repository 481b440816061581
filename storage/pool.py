"""The pool of connections: the wait for one, its validation, its usage."""

import math
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psycopg2
from psycopg2.extensions import connection as DriverConnection  # noqa: N812 - used as a type
from sqlalchemy import Engine, PoolProxiedConnection, QueuePool, event
from sqlalchemy.exc import DBAPIError, DisconnectionError, InvalidRequestError
from sqlalchemy.pool import ConnectionPoolEntry

from storage import measures
from storage.cancellation import current_call
from storage.errors import DatabaseUnavailableError, translated
from storage.statement import Session

_IDLE_SECONDS_TRUSTED = 30.0


class PoolUsage(NamedTuple):
    """Connections in use and idle, callers that wait for one, and the limit of connections."""

    used: int
    idle: int
    waiting: int
    limit: int


class Pool:
    """The connections of an engine, each with a session made by `new_session`.

    A semaphore of the size of SQLAlchemy's pool bounds each wait by the time that the call has.
    """

    def __init__(
        self,
        engine: Engine,
        new_session: Callable[[DriverConnection, ConnectionPoolEntry], Session],
        limit: int,
        timeout_seconds: float,
    ) -> None:
        event.listen(engine, "connect", self._begin)
        event.listen(engine, "checkin", _note_return)
        event.listen(engine, "checkout", self._validate)
        self._engine = engine
        self._new_session = new_session
        self._limit = limit
        self._timeout_seconds = timeout_seconds
        self._free = threading.BoundedSemaphore(limit)
        self._waiting: set[int] = set()
        self._replaced_at = -math.inf

    @contextmanager
    def connect(self) -> Iterator[Session]:
        """Check out a connection and measure the wait. Raises: DatabaseUnavailableError."""
        connection = self._check_out()
        session: Session = connection.info["session"]
        try:
            yield session
        finally:
            if session.is_lost:
                self.replace_connections()
                connection.invalidate()
            connection.close()
            self._free.release()

    def _check_out(self) -> PoolProxiedConnection:
        thread, began = threading.get_ident(), time.perf_counter()
        self._waiting.add(thread)
        try:
            self._acquire()
            try:
                return open_connection(self._engine)
            except BaseException:
                self._free.release()
                raise
        finally:
            self._waiting.discard(thread)
            measures.add_wait(time.perf_counter() - began)

    def _acquire(self) -> None:
        call, seconds = current_call.get(), self._timeout_seconds
        if call is not None:
            seconds = min(seconds, call.seconds_left)
        if not self._free.acquire(timeout=seconds):
            measures.timeouts.inc()
            raise DatabaseUnavailableError(
                "all connections of the pool are in use", pool_exhausted=True
            )

    def replace_connections(self) -> None:
        """Replace every connection that is open now, before its next use."""
        self._replaced_at = time.monotonic()

    def usage(self) -> PoolUsage:
        pool = self._engine.pool
        assert isinstance(pool, QueuePool)  # noqa: S101 - as it was made
        return PoolUsage(pool.checkedout(), pool.checkedin(), len(self._waiting), self._limit)

    def _begin(self, connection: DriverConnection, record: ConnectionPoolEntry) -> None:
        record.info["opened_at"] = record.info["returned_at"] = time.monotonic()
        record.info["session"] = self._new_session(connection, record)

    def _validate(
        self, connection: DriverConnection, record: ConnectionPoolEntry, _proxy: object
    ) -> None:
        """Replace a lost connection before its use, without a round trip for a live one.

        A readable one was closed by the server; one that was idle for long may be lost unnoticed.
        """
        if record.info["opened_at"] <= self._replaced_at:
            raise DisconnectionError
        idle_seconds = time.monotonic() - record.info["returned_at"]
        try:
            if idle_seconds >= _IDLE_SECONDS_TRUSTED or readable(connection):
                connection.cursor().execute("SELECT 1")
        except psycopg2.Error as error:
            raise DisconnectionError from error


def open_connection(engine: Engine) -> PoolProxiedConnection:
    """Take a connection of the engine. Raises: DatabaseUnavailableError, StatementFailedError."""
    try:
        return engine.raw_connection()
    except InvalidRequestError as error:  # New connections are lost before their first use.
        raise DatabaseUnavailableError("connections do not last") from error
    except (psycopg2.Error, DBAPIError) as error:
        raise translated(error) from None


def _note_return(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info["returned_at"] = time.monotonic()


def readable(connection: DriverConnection, timeout_seconds: float = 0) -> bool:
    """Return whether data from the server arrived, or arrives in time."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(timeout_seconds * 1000))
