"""The pool against a real PostgreSQL: what a call costs, what it outlives, and how it ends."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import psutil
import pytest
from sqlalchemy import Connection, NullPool, create_engine, event, make_url, text
from sqlalchemy.exc import DisconnectionError

from storage.cancellation import Cancellation
from storage.database import Database
from storage.embedded import EmbeddedPostgres
from storage.errors import (
    ConstraintError,
    DatabaseUnavailableError,
    StatementCancelledError,
    StatementFailedError,
    StatementTimeoutError,
    TransactionConflictError,
)
from storage.libpq import CancelRequest
from storage.untyped import Rows
from tests.support.databases import made_database

OBJECTS = (
    "CREATE TABLE notes (id int PRIMARY KEY, body text NOT NULL DEFAULT '')",
    # A sequence is not rolled back: it counts the attempts of a statement that fails.
    "CREATE SEQUENCE attempts",
    """
    CREATE FUNCTION fail_first(times int, code text) RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE attempt bigint := nextval('attempts');
    BEGIN
        IF attempt <= times THEN
            RAISE EXCEPTION 'made to fail' USING ERRCODE = code;
        END IF;
        RETURN attempt;
    END $$
    """,
    # Locks one row, meets the other caller, who has locked the other, and wants that one too.
    """
    CREATE FUNCTION cross_over(mine int, other int) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        UPDATE notes SET body = body || mine WHERE id = mine;
        PERFORM nextval('attempts');
        WHILE (SELECT last_value FROM attempts) < 2 LOOP
            PERFORM pg_sleep(0.001);
        END LOOP;
        UPDATE notes SET body = body || mine WHERE id = other;
    END $$
    """,
)
PID = text("SELECT pg_backend_pid()")
FAIL = text("SELECT fail_first(:times, :code)")
ADD_NOTE = text("INSERT INTO notes VALUES (:id) RETURNING id")
COUNT_NOTES = text("SELECT count(*) FROM notes")
# Sleeps at the first attempt only.
STUCK_ONCE = text("SELECT CASE nextval('attempts') WHEN 1 THEN pg_sleep(600)::text ELSE 'done' END")
STUCK = text("SELECT pg_sleep(600)")
# Continues when it gets the lock, which the connection that runs WAITING holds.
LOCKED = text("SELECT 'done' FROM pg_advisory_lock(1)")
WAITING = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory'")

UNAVAILABLE = ["25006", "57P01", "57P02", "57P03", "57P04", "57P05", "08006", "08003", "53300"]
CONFLICT = ["40001", "40P01"]

T = TypeVar("T")


@pytest.fixture(scope="module")
def url(postgres_url: str) -> Iterator[str]:
    with made_database(postgres_url, migrated=False) as url:
        with connected(url) as connection:
            for statement in OBJECTS:
                connection.execute(text(statement))
        yield url


@pytest.fixture
def admin(url: str) -> Iterator[Connection]:
    """A connection beside the pool, that sees and ends the others; the tables are empty."""
    with connected(url) as connection:
        connection.execute(text("TRUNCATE notes"))
        connection.execute(text("ALTER SEQUENCE attempts RESTART"))
        yield connection


@pytest.fixture
def database(url: str, admin: Connection) -> Iterator[Database]:
    """A pool of one connection, so that each call gets the one that the last call gave back."""
    with opened(url) as database:
        yield database


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def connected(url: str) -> Connection:
    return create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT").connect()


@contextmanager
def opened(url: str, **settings: Any) -> Iterator[Database]:
    database = Database(url, **({"pool_size": 1, "max_overflow": 0} | settings))
    try:
        yield database
    finally:
        database.close()


def until(condition: Callable[[], T | None]) -> T:
    """What the condition gives as soon as it is true."""
    deadline = time.monotonic() + 60
    while not (result := condition()):
        assert time.monotonic() < deadline, "it has not come true"
    return result


def backend(database: Database) -> int:
    """The process at the other end of the pool's connection."""
    return int(database.read(PID)[0][0])


def sleeper(admin: Connection) -> int | None:
    """The process that runs pg_sleep."""
    pid: int | None = admin.scalar(
        text(
            "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' "
            "AND datname = current_database()"
        )
    )
    return pid


def kill(admin: Connection, pid: int) -> None:
    admin.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    alive = text("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = :pid)")
    until(lambda: admin.scalar(alive, {"pid": pid}))


def attempts(admin: Connection) -> int:
    counted = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM attempts"
    return int(admin.scalar(text(counted)) or 0)


# What a call costs


class Heard(list[str]):
    """The notices of a connection, whose statements stay when SQLAlchemy clears them."""

    def __init__(self) -> None:
        super().__init__()
        self.statements: list[str] = []

    def append(self, notice: str) -> None:
        self.statements.append(notice.partition("statement: ")[2].strip())


@pytest.fixture
def sent(database: Database) -> list[str]:
    """The statements that reached PostgreSQL since, as it tells the connection that sent them."""
    with database.engine.connect() as connection:
        if connection.scalar(text("SHOW is_superuser")) != "on":
            pytest.skip("only a superuser may have its statements logged")
        connection.execute(text("SET client_min_messages = log"))
        connection.execute(text("SET log_statement = 'all'"))
        driver: Any = connection.connection.driver_connection
    driver.notices = Heard()
    return driver.notices.statements  # type: ignore[no-any-return]


def test_a_read_is_one_round_trip(database: Database, sent: list[str]) -> None:
    database.read(COUNT_NOTES)
    assert sent == ["SELECT count(*) FROM notes"]


def test_a_write_is_one_round_trip(database: Database, sent: list[str]) -> None:
    database.write(ADD_NOTE, {"id": 1})
    assert sent == ["INSERT INTO notes VALUES (1) RETURNING id"]


def test_a_read_of_a_connection_that_was_idle_long_is_preceded_by_a_question(
    database: Database, sent: list[str]
) -> None:
    """It may be lost without a sign: a firewall drops idle connections silently."""
    with database.engine.connect() as connection:
        info = connection.info
    info["returned_at"] -= 31
    database.read(COUNT_NOTES)
    assert sent == ["SELECT 1", "SELECT count(*) FROM notes"]


def test_a_question_makes_the_connection_trusted_again(database: Database, sent: list[str]) -> None:
    with database.engine.connect() as connection:
        info = connection.info
    info["returned_at"] -= 31
    database.read(PID)
    database.read(COUNT_NOTES)
    assert sent[2:] == ["SELECT count(*) FROM notes"]


def test_a_write_without_commit_is_rolled_back_at_once(database: Database, sent: list[str]) -> None:
    database.write(ADD_NOTE, {"id": 1}, commit=False)
    assert sent == [
        "BEGIN ISOLATION LEVEL READ COMMITTED",
        "INSERT INTO notes VALUES (1) RETURNING id",
        "ROLLBACK",
    ]


@pytest.mark.parametrize("note", [1, 2], ids=["that failed", "that succeeded"])
def test_a_read_after_a_write_without_commit_is_one_round_trip(
    note: int, database: Database, sent: list[str]
) -> None:
    """The connection goes back to the pool as it came from there: in AUTOCOMMIT."""
    database.write(ADD_NOTE, {"id": 1})
    try:
        database.write(ADD_NOTE, {"id": note}, commit=False)
    except ConstraintError:
        assert note == 1
    sent.clear()
    database.read(COUNT_NOTES)
    assert sent == ["SELECT count(*) FROM notes"]


# Writes


def test_a_write_is_committed(database: Database, admin: Connection) -> None:
    database.write(ADD_NOTE, {"id": 1})
    assert admin.scalar(COUNT_NOTES) == 1


def test_a_write_without_commit_gives_its_rows(database: Database) -> None:
    assert database.write(ADD_NOTE, {"id": 1}, commit=False) == [(1,)]


def test_a_write_without_commit_leaves_nothing(database: Database, admin: Connection) -> None:
    database.write(ADD_NOTE, {"id": 1}, commit=False)
    assert admin.scalar(COUNT_NOTES) == 0


def test_a_write_after_one_without_commit_is_committed(
    database: Database, admin: Connection
) -> None:
    database.write(ADD_NOTE, {"id": 1}, commit=False)
    database.write(ADD_NOTE, {"id": 2})
    assert admin.scalars(text("SELECT id FROM notes")).all() == [2]


def test_a_violated_constraint_is_told_by_its_name(database: Database) -> None:
    database.write(ADD_NOTE, {"id": 1})
    with pytest.raises(ConstraintError, match="notes_pkey"):
        database.write(ADD_NOTE, {"id": 1})


def test_an_error_of_the_statement_alone_keeps_the_connection(database: Database) -> None:
    pid = backend(database)
    with pytest.raises(StatementFailedError):
        database.read(text("SELECT 1 / 0"))
    assert backend(database) == pid


# Lost connections


@pytest.mark.parametrize("method", ["read", "write"])
def test_a_connection_that_died_while_idle_never_reaches_a_caller(
    method: str, database: Database, admin: Connection
) -> None:
    """Not even a write's, which could not be repeated."""
    kill(admin, backend(database))
    assert getattr(database, method)(COUNT_NOTES) == [(0,)]


def test_a_connection_that_died_while_idle_is_replaced_by_one_that_is_kept(
    database: Database, admin: Connection
) -> None:
    dead = backend(database)
    kill(admin, dead)
    assert backend(database) == backend(database) != dead


def test_connections_that_died_together_are_all_replaced(url: str, admin: Connection) -> None:
    """As after a restart of PostgreSQL: one call must not stumble over one after another."""
    with opened(url, pool_size=4) as database:
        held = [database.engine.connect() for _ in range(4)]
        dead = [connection.scalar(PID) for connection in held]
        for connection in held:
            connection.close()
        for pid in dead:
            kill(admin, pid)
        held = [database.engine.connect() for _ in range(4)]
        alive = [connection.scalar(PID) for connection in held]
        for connection in held:
            connection.close()
    assert set(alive).isdisjoint(dead)


def test_a_read_whose_connection_dies_is_repeated(
    database: Database, admin: Connection, background: ThreadPoolExecutor
) -> None:
    read = background.submit(database.read, STUCK_ONCE)
    kill(admin, until(lambda: sleeper(admin)))
    assert read.result() == [("done",)]


def test_a_read_is_repeated_once(
    database: Database, admin: Connection, background: ThreadPoolExecutor
) -> None:
    read = background.submit(database.read, FAIL, {"times": 100, "code": "57P01"})
    with pytest.raises(DatabaseUnavailableError):
        read.result()
    assert attempts(admin) == 2


def test_a_write_whose_connection_dies_fails(
    database: Database, admin: Connection, background: ThreadPoolExecutor
) -> None:
    write = background.submit(database.write, STUCK_ONCE)
    kill(admin, until(lambda: sleeper(admin)))
    with pytest.raises(DatabaseUnavailableError):
        write.result()


def test_a_write_whose_connection_dies_is_not_repeated(
    database: Database, admin: Connection, background: ThreadPoolExecutor
) -> None:
    """It may have taken place: the caller must decide."""
    write = background.submit(database.write, STUCK_ONCE)
    kill(admin, until(lambda: sleeper(admin)))
    assert write.exception() is not None
    assert attempts(admin) == 1


def test_a_write_without_commit_whose_connection_dies_fails(
    database: Database, admin: Connection, background: ThreadPoolExecutor
) -> None:
    write = background.submit(database.write, STUCK_ONCE, commit=False)
    kill(admin, until(lambda: sleeper(admin)))
    with pytest.raises(DatabaseUnavailableError):
        write.result()


# What PostgreSQL says, and what we make of it


@pytest.mark.parametrize("sqlstate", UNAVAILABLE)
def test_a_server_that_cannot_serve_is_unavailable(sqlstate: str, database: Database) -> None:
    with pytest.raises(DatabaseUnavailableError, match="made to fail"):
        database.write(FAIL, {"times": 1, "code": sqlstate})


@pytest.mark.parametrize("sqlstate", UNAVAILABLE)
def test_a_connection_to_a_server_that_cannot_serve_is_given_up(
    sqlstate: str, database: Database
) -> None:
    """The next one may reach a server that can: the address has moved to the new primary."""
    pid = backend(database)
    with pytest.raises(DatabaseUnavailableError):
        database.write(FAIL, {"times": 1, "code": sqlstate})
    assert backend(database) != pid


def test_every_connection_to_a_server_that_cannot_serve_is_given_up(
    url: str, admin: Connection
) -> None:
    with opened(url, pool_size=2) as database:
        with database.engine.connect() as other:
            pid = other.scalar(PID)
            with pytest.raises(DatabaseUnavailableError):
                database.write(FAIL, {"times": 1, "code": "25006"})
        assert backend(database) != pid


@contextmanager
def read_only(postgres_url: str, name: str | None) -> Iterator[None]:
    with connected(postgres_url) as admin:
        admin.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
        try:
            yield
        finally:
            admin.execute(text(f"ALTER DATABASE {name} RESET default_transaction_read_only"))


def test_a_write_to_a_read_only_server_is_unavailable_until_it_is_writable(
    postgres_url: str, url: str, admin: Connection
) -> None:
    """A primary that was demoted serves reads, and old connections to it go on doing so."""
    with opened(url) as database:
        with (
            read_only(postgres_url, make_url(url).database),
            pytest.raises(DatabaseUnavailableError, match="read-only"),
        ):
            database.write(ADD_NOTE, {"id": 1})
        assert database.write(ADD_NOTE, {"id": 1}) == [(1,)]


def test_a_statement_that_takes_too_long_is_ended(url: str, admin: Connection) -> None:
    with (
        opened(url, statement_timeout_seconds=0.05) as database,
        pytest.raises(StatementTimeoutError),
    ):
        database.read(STUCK)


def test_a_statement_that_took_too_long_keeps_the_connection(url: str, admin: Connection) -> None:
    with opened(url, statement_timeout_seconds=0.05) as database:
        pid = backend(database)
        with pytest.raises(StatementTimeoutError):
            database.read(STUCK)
        assert backend(database) == pid


@pytest.mark.parametrize("commit", [True, False])
@pytest.mark.parametrize("sqlstate", CONFLICT)
@pytest.mark.parametrize("times", [1, 3])
def test_a_write_given_up_for_another_transaction_is_repeated(
    times: int, sqlstate: str, commit: bool, database: Database
) -> None:
    assert database.write(FAIL, {"times": times, "code": sqlstate}, commit=commit) == [(times + 1,)]


@pytest.mark.parametrize("sqlstate", CONFLICT)
def test_a_write_given_up_again_and_again_is_a_conflict(sqlstate: str, database: Database) -> None:
    with pytest.raises(TransactionConflictError):
        database.write(FAIL, {"times": 1000, "code": sqlstate})


def test_a_conflict_keeps_the_connection(database: Database) -> None:
    pid = backend(database)
    database.write(FAIL, {"times": 1, "code": "40001"})
    assert backend(database) == pid


def test_two_writes_in_a_deadlock_both_succeed(
    url: str, admin: Connection, background: ThreadPoolExecutor
) -> None:
    admin.execute(text("INSERT INTO notes VALUES (1), (2)"))
    cross = text("SELECT cross_over(:mine, :other)")
    with opened(url, pool_size=2) as database:
        writes = [
            background.submit(database.write, cross, {"mine": mine, "other": 3 - mine})
            for mine in (1, 2)
        ]
        for write in writes:
            write.result()
    bodies = admin.scalars(text("SELECT body FROM notes")).all()
    assert sorted("".join(sorted(body)) for body in bodies) == ["12", "12"]
    # The one that gave way may be back in time to meet the other again.
    assert attempts(admin) >= 3


# A server that is away


@pytest.fixture
def nobody_listens() -> Iterator[str]:
    """The URL of a port that is ours and refuses connections."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        yield f"postgresql+psycopg2://tasks@127.0.0.1:{unheard.getsockname()[1]}/tasks"


@pytest.mark.parametrize("method", ["read", "write"])
def test_a_server_that_is_not_there_is_unavailable(method: str, nobody_listens: str) -> None:
    with opened(nobody_listens) as database, pytest.raises(DatabaseUnavailableError):
        getattr(database, method)(PID)


@pytest.mark.parametrize("method", ["read", "write"])
def test_a_server_that_stopped_is_unavailable_until_it_is_back(method: str, tmp_path: Path) -> None:
    embedded = EmbeddedPostgres(tmp_path, settings={"fsync": "off"})
    with opened(embedded.url) as database:
        call: Callable[..., Rows] = partial(getattr(database, method), text("SELECT 1"))
        with embedded:
            call()
        with pytest.raises(DatabaseUnavailableError):
            call()
        with embedded:
            assert call() == [(1,)]


@pytest.mark.parametrize("method", ["read", "write"])
def test_an_exhausted_pool_is_unavailable(method: str, url: str) -> None:
    with (
        opened(url, pool_timeout_seconds=0.01) as database,
        database.transaction(),
        pytest.raises(DatabaseUnavailableError, match="in use"),
    ):
        getattr(database, method)(PID)


def test_a_read_waits_for_an_exhausted_pool_once(url: str) -> None:
    """Nothing was lost that a repetition could make good.

    What an error came after is its context: an earlier attempt would be among it.
    """
    with (
        opened(url, pool_timeout_seconds=0.01) as database,
        database.transaction(),
        pytest.raises(DatabaseUnavailableError) as raised,
    ):
        database.read(PID)
    earlier, error = [], raised.value.__context__
    while error is not None:
        earlier.append(type(error))
        error = error.__context__
    assert DatabaseUnavailableError not in earlier


def test_a_pool_that_was_exhausted_serves_again(url: str) -> None:
    with opened(url, pool_timeout_seconds=0.01) as database:
        with database.transaction(), pytest.raises(DatabaseUnavailableError):
            database.read(PID)
        assert backend(database)


def test_nobody_waits_for_a_connection_when_his_time_is_over(
    url: str, background: ThreadPoolExecutor
) -> None:
    with opened(url, pool_timeout_seconds=60) as database, database.transaction():
        call = background.submit(under, Cancellation(0.01), lambda: database.read(PID))
        assert isinstance(call.exception(timeout=30), DatabaseUnavailableError)


# Cancellation


def under(cancellation: Cancellation, call: Callable[[], Rows]) -> Rows:
    with cancellation:
        return call()


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


def test_a_cancelled_statement_is_told_as_cancelled(
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


def test_a_cancelled_read_is_not_repeated_when_its_connection_dies(
    stuck: Future[Rows], cancellation: Cancellation, admin: Connection
) -> None:
    cancellation.cancelled = True  # As between the statement's end and its repetition.
    kill(admin, until(lambda: sleeper(admin)))
    with pytest.raises(StatementCancelledError):
        stuck.result()


def test_a_cancel_after_its_statement_does_not_hit_the_next_one_of_the_connection(
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
    """PostgreSQL does nothing about a request to cancel what it has not yet heard of."""
    sent, send = threading.Event(), CancelRequest.send

    def send_and_tell(request: CancelRequest) -> None:
        send(request)
        sent.set()

    def cancel_first(*_: object) -> None:
        background.submit(cancellation.cancel)
        assert sent.wait(30)

    monkeypatch.setattr(CancelRequest, "send", send_and_tell)
    event.listen(database.engine, "before_cursor_execute", cancel_first)
    with pytest.raises(StatementCancelledError):
        under(cancellation, lambda: database.read(text("SELECT pg_sleep(5)")))


def test_an_error_in_a_call_that_was_not_cancelled_is_no_cancellation(
    url: str, admin: Connection, cancellation: Cancellation
) -> None:
    with (
        opened(url, statement_timeout_seconds=0.05) as database,
        pytest.raises(StatementTimeoutError),
    ):
        under(cancellation, lambda: database.read(STUCK))


def test_a_connection_is_not_given_back_while_a_cancel_request_is_on_its_way(
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

    A statement that a stray cancel ended would be told as one that timed out.
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


def test_connections_that_die_before_their_first_use_mean_unavailable(url: str) -> None:
    """As in a failover: each is accepted, and ended at once."""

    def end(connection: Any, *_: object) -> None:
        raise DisconnectionError

    with opened(url) as database:
        event.listen(database.engine, "checkout", end)
        with pytest.raises(DatabaseUnavailableError):
            database.read(text("SELECT 1"))


def test_a_read_that_gave_way_is_repeated(database: Database, admin: Connection) -> None:
    """A standby cancels reads with the code of a serialization failure."""
    database.read(FAIL, {"times": 1, "code": "40001"})
    assert attempts(admin) == 2


def test_a_disk_that_is_full_costs_no_connection(database: Database) -> None:
    pid = backend(database)
    with pytest.raises(DatabaseUnavailableError):
        database.write(text("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '53100'; END $$"))
    assert backend(database) == pid


def test_a_failed_statement_quotes_no_value(database: Database) -> None:
    with pytest.raises(StatementFailedError) as raised:
        database.read(text("SELECT CAST('a value' AS integer)"))
    assert str(raised.value).startswith("22P02")
    assert "a value" not in str(raised.value)


# What one process does at a time


def test_one_at_a_time_is_alone_with_a_key(url: str) -> None:
    with opened(url) as one, opened(url) as another, one.exclusively(1) as first:
        with another.exclusively(1) as second:
            assert (first, second) == (True, False)
        with another.exclusively(2) as other:
            assert other


def test_the_next_is_alone_when_the_first_is_done(url: str) -> None:
    with opened(url) as one, opened(url) as another:
        with one.exclusively(1):
            pass
        with another.exclusively(1) as alone:
            assert alone


def test_one_that_fails_leaves_the_place_to_the_next(url: str) -> None:
    with opened(url) as one, opened(url) as another:
        with pytest.raises(ValueError, match="failed"), one.exclusively(1):
            raise ValueError("failed")
        with another.exclusively(1) as alone:
            assert alone


def test_one_that_lost_its_connection_is_told_and_leaves_the_place(
    url: str, admin: Connection
) -> None:
    holder = text("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 1")
    with opened(url) as one, opened(url) as another:
        with pytest.raises(DatabaseUnavailableError), one.exclusively(1):
            kill(admin, admin.scalar(holder))
        with another.exclusively(1) as alone:
            assert alone


def test_after_it_the_connection_commits_by_itself_again(
    database: Database, admin: Connection
) -> None:
    with database.exclusively(1):
        pass
    database.write(ADD_NOTE, {"id": 1})
    assert admin.scalar(COUNT_NOTES) == 1


# A connection that is not the pool's any more


def test_a_dedicated_connection_leaves_its_place_in_the_pool(database: Database) -> None:
    connection = database.dedicated_connection("SELECT 1")
    assert backend(database) != connection.info.backend_pid
    connection.close()


def test_a_dedicated_connection_commits_by_itself(database: Database, admin: Connection) -> None:
    connection = database.dedicated_connection("INSERT INTO notes VALUES (1)")
    assert admin.scalar(COUNT_NOTES) == 1
    connection.close()


def test_a_dedicated_connection_to_a_server_that_is_not_there_is_unavailable(
    nobody_listens: str,
) -> None:
    with opened(nobody_listens) as database, pytest.raises(DatabaseUnavailableError):
        database.dedicated_connection("SELECT 1")


def test_a_dedicated_connection_needs_no_free_connection_of_the_pool(url: str) -> None:
    with opened(url, pool_timeout_seconds=0.1) as database, database.transaction():
        database.dedicated_connection("SELECT 1").close()
