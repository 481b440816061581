"""Cancellation: a statement is ended, and no other one is hit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import psutil
import pytest
from sqlalchemy import Connection, text

from storage.cancellation import Cancellation, CancelRequest
from storage.database import Database
from storage.embedded import EmbeddedPostgres
from storage.errors import StatementCancelledError, StatementTimeoutError
from storage.statement import Rows
from tests.support.pool import (
    COUNT_NOTES,
    LOCKED,
    PID,
    STUCK,
    STUCK_ONCE,
    WAITING,
    attempts,
    backend,
    connected,
    kill,
    opened,
    sleeper,
    under,
    until,
)
from tests.support.statements import each_statement


@pytest.fixture
def cancellation() -> Cancellation:
    return Cancellation()


@pytest.fixture
def stuck(
    database: Database,
    admin: Connection,
    background: ThreadPoolExecutor,
    cancellation: Cancellation,
) -> Iterator[Future[Rows]]:
    """A statement that runs in PostgreSQL, and would for minutes."""
    call = background.submit(under, cancellation, lambda: database.read(STUCK))
    until(lambda: sleeper(admin))
    yield call
    cancellation.cancel()


def test_a_cancelled_statement_is_reported_as_cancelled(
    stuck: Future[Rows], cancellation: Cancellation
) -> None:
    cancellation.cancel()
    with pytest.raises(StatementCancelledError):
        stuck.result()


def test_a_cancelled_statement_ends_in_postgresql(
    stuck: Future[Rows], cancellation: Cancellation, admin: Connection
) -> None:
    cancellation.cancel()
    until(lambda: sleeper(admin) is None)


def test_cancel_later_ends_the_statement_too(
    stuck: Future[Rows], cancellation: Cancellation, database: Database
) -> None:
    database.cancel_later(cancellation)
    with pytest.raises(StatementCancelledError):
        stuck.result()


def test_a_cancelled_statement_keeps_the_connection(
    stuck: Future[Rows], cancellation: Cancellation, database: Database, admin: Connection
) -> None:
    pid = sleeper(admin)
    cancellation.cancel()
    stuck.exception()
    assert backend(database) == pid


def test_a_cancelled_write_leaves_nothing(
    database: Database,
    admin: Connection,
    background: ThreadPoolExecutor,
    cancellation: Cancellation,
) -> None:
    slow = text("INSERT INTO notes SELECT n, pg_sleep(600)::text FROM generate_series(1, 2) n")
    call = background.submit(under, cancellation, lambda: database.write(slow))
    until(lambda: sleeper(admin))
    cancellation.cancel()
    call.exception()
    assert admin.scalar(COUNT_NOTES) == 0


def test_a_call_cancelled_before_its_statement_runs_nothing(
    database: Database, admin: Connection, cancellation: Cancellation
) -> None:
    cancellation.cancel()
    with pytest.raises(StatementCancelledError):
        under(cancellation, lambda: database.write(STUCK_ONCE))
    assert attempts(admin) == 0


def test_a_call_cancelled_between_two_statements_does_not_run_the_second(
    database: Database, cancellation: Cancellation
) -> None:
    with cancellation:
        database.read(PID)
        cancellation.cancel()
        with pytest.raises(StatementCancelledError):
            database.read(PID)


def test_a_cancelled_read_is_not_repeated_when_its_connection_ends(
    stuck: Future[Rows], cancellation: Cancellation, admin: Connection
) -> None:
    cancellation.cancelled = True  # As between the statement's end and its repetition.
    kill(admin, until(lambda: sleeper(admin)))
    with pytest.raises(StatementCancelledError):
        stuck.result()


def test_a_late_cancel_does_not_hit_the_next_statement_of_the_connection(
    database: Database,
    admin: Connection,
    background: ThreadPoolExecutor,
    cancellation: Cancellation,
) -> None:
    under(cancellation, lambda: database.read(PID))
    admin.execute(text("SELECT pg_advisory_lock(1)"))
    other = background.submit(database.read, LOCKED)
    until(lambda: admin.scalar(WAITING))
    cancellation.cancel()
    admin.execute(text("SELECT pg_advisory_unlock(1)"))
    assert other.result() == [("done",)]


def test_a_cancel_request_that_comes_before_its_statement_is_repeated(
    database: Database,
    background: ThreadPoolExecutor,
    cancellation: Cancellation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PostgreSQL ignores a request to cancel a statement that has not arrived yet."""
    sent, send = threading.Event(), CancelRequest.send

    def send_and_report(request: CancelRequest) -> None:
        send(request)
        sent.set()

    def cancel_first(*_: object) -> None:
        background.submit(cancellation.cancel)
        assert sent.wait(30)

    monkeypatch.setattr(CancelRequest, "send", send_and_report)
    with each_statement(cancel_first), pytest.raises(StatementCancelledError):
        under(cancellation, lambda: database.read(text("SELECT pg_sleep(5)")))


def test_an_error_in_a_call_that_was_not_cancelled_is_no_cancellation(
    url: str, admin: Connection, cancellation: Cancellation
) -> None:
    with (
        opened(url, statement_timeout_seconds=0.05) as database,
        pytest.raises(StatementTimeoutError),
    ):
        under(cancellation, lambda: database.read(STUCK))


def test_a_connection_is_not_given_back_during_a_cancel_request(
    tmp_path: Path, background: ThreadPoolExecutor, cancellation: Cancellation
) -> None:
    """Else it would hit the next call's statement. A stopped postmaster keeps it on its way."""
    with (
        EmbeddedPostgres(tmp_path, settings={"fsync": "off"}) as embedded,
        opened(embedded.url) as database,
        connected(embedded.url) as admin,
    ):
        admin.execute(text("SELECT pg_advisory_lock(1)"))
        call = background.submit(under, cancellation, lambda: database.read(LOCKED))
        until(lambda: admin.scalar(WAITING))
        postmaster = psutil.Process(admin.scalar(PID)).parent()
        assert postmaster is not None
        postmaster.suspend()
        try:
            background.submit(cancellation.cancel)
            until(lambda: cancellation.cancelled)
            admin.execute(text("SELECT pg_advisory_unlock(1)"))
            with pytest.raises(TimeoutError):
                call.result(timeout=0.2)
        finally:
            postmaster.resume()
        assert call.result() == [("done",)]


def test_a_cancel_never_hits_the_statement_of_another_call(url: str, admin: Connection) -> None:
    """Connections go from call to call while requests to cancel are on their way.

    A statement that a stray cancel request ended would be reported as a timeout.
    """
    condemned: SimpleQueue[Cancellation | None] = SimpleQueue()
    short = text("SELECT count(*) FROM generate_series(1, :rows)")

    def cancel_them() -> None:
        for cancellation in iter(condemned.get, None):
            cancellation.cancel()

    def call(database: Database, caller: int) -> None:
        for number in range(100):
            doomed = (caller + number) % 2 == 0
            with Cancellation() as cancellation:
                if doomed:
                    condemned.put(cancellation)
                try:
                    for _ in range(3):
                        database.read(short, {"rows": 1 + number * 37 % 3000})
                except StatementCancelledError:
                    assert doomed

    with opened(url, pool_size=4) as database, ThreadPoolExecutor(12) as pool:
        cancellers = [pool.submit(cancel_them) for _ in range(4)]
        callers = [pool.submit(call, database, number) for number in range(8)]
        errors = [caller.exception() for caller in callers]
        for _ in cancellers:
            condemned.put(None)
    assert errors == [None] * 8
