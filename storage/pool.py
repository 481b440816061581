"""The pool of connections: the wait for one, its validation, its usage."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import psycopg2
from psycopg2.extensions import connection as DriverConnection  # noqa: N812 - used as a type
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool

from storage import measures
from storage.cancellation import current_call
from storage.failures import ends_connection, pool_exhausted
from storage.session import make_engine

_IDLE_SECONDS_TRUSTED = 30.0


class PoolUsage(NamedTuple):
    """Connections in use and idle, callers that wait for one, and the limit of connections."""

    used: int
    idle: int
    waiting: int
    limit: int


class Pool:
    """Connections to one database, in AUTOCOMMIT.

    SQLAlchemy's pool waits equally long for every caller. Here a semaphore of the same size stands
    before it, so that a call waits no longer than it has time.
    """

    def __init__(
        self,
        url: str,
        *,
        size: int,
        max_overflow: int,
        recycle_seconds: float,
        timeout_seconds: float,
        statement_timeout_seconds: float,
        application_name: str,
    ) -> None:
        self.engine = make_engine(
            url,
            application_name=application_name,
            statement_timeout_seconds=statement_timeout_seconds,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,  # They are the clients' data.
            skip_autocommit_rollback=True,
            query_cache_size=200,  # A statement for a group of filters takes 250 kB.
            poolclass=QueuePool,
            pool_size=size,
            max_overflow=max_overflow,
            pool_recycle=int(recycle_seconds),
            pool_timeout=timeout_seconds,
            pool_use_lifo=True,
        )
        _listen(self.engine)
        self._limit = size + max_overflow
        self._timeout_seconds = timeout_seconds
        self._free = threading.BoundedSemaphore(self._limit)
        self._waiting: set[int] = set()

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """Check out a connection and measure the wait. Raises: DatabaseUnavailableError."""
        connection = self._check_out()
        try:
            with connection:
                yield connection
        finally:
            self._free.release()

    def _check_out(self) -> Connection:
        thread, began = threading.get_ident(), time.perf_counter()
        self._waiting.add(thread)
        try:
            self._acquire()
            try:
                return self.engine.connect()
            except BaseException:
                self._free.release()
                raise
        finally:
            self._waiting.discard(thread)
            measures.waited(began)

    def _acquire(self) -> None:
        call = current_call()
        seconds = self._timeout_seconds
        if call is not None:
            seconds = min(seconds, call.seconds_left)
        if not self._free.acquire(timeout=seconds):
            measures.gave_up()
            raise pool_exhausted()

    def usage(self) -> PoolUsage:
        pool = self.engine.pool
        assert isinstance(pool, QueuePool)  # noqa: S101 - as it was made
        return PoolUsage(pool.checkedout(), pool.checkedin(), len(self._waiting), self._limit)


def _listen(engine: Engine) -> None:
    event.listen(engine, "checkin", _note_return)
    event.listen(engine, "checkout", _validate)
    event.listen(engine, "handle_error", _recognise_lost_connection)


def _recognise_lost_connection(context: ExceptionContext) -> None:
    if ends_connection(context.original_exception):
        context.is_disconnect = True


def _note_return(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info["returned_at"] = time.monotonic()


def _validate(connection: DriverConnection, record: ConnectionPoolEntry, _proxy: object) -> None:
    """Replace a lost connection before a caller gets it, without a round trip for a live one.

    A readable idle connection was closed by the server, and one that was idle for long may be lost
    without notice: these two are queried.
    """
    idle_seconds = time.monotonic() - record.info.get("returned_at", time.monotonic())
    try:
        if idle_seconds < _IDLE_SECONDS_TRUSTED and not readable(connection):
            return
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except psycopg2.Error as error:
        raise DisconnectionError from error


def readable(connection: DriverConnection, timeout_seconds: float = 0) -> bool:
    """Return whether data from the server arrived, or arrives in time."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(timeout_seconds * 1000))
