"""Wake-ups across connections: they arrive, block no writer, and survive an outage."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import event, text

from storage.database import Database
from storage.errors import DatabaseUnavailableError
from storage.statement import Statement
from storage.wakeups import Announcer, Listener
from tests.support.service import PATIENCE_SECONDS, wait_until
from tests.support.statements import each_statement

AWAY = "postgresql+psycopg2://unused@127.0.0.1:1/nothing"
LISTENING = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"


@contextmanager
def announcing(database: Database) -> Iterator[Announcer]:
    announcer = Announcer(database)
    announcer.start()
    try:
        yield announcer
    finally:
        announcer.stop()


@pytest.fixture
def announcer(database: Database) -> Iterator[Announcer]:
    with announcing(database) as announcer:
        yield announcer


@pytest.fixture
def other(database_url: str) -> Iterator[Database]:
    """The database as another process has it: with a pool of its own, of one connection."""
    other = Database(database_url, pool_size=1, max_overflow=0, pool_timeout_seconds=60)
    yield other
    other.close()


@pytest.fixture
def listener(other: Database) -> Iterator[Listener]:
    listener = Listener(other)
    listener.listen()
    yield listener
    listener.close()


@contextmanager
def woken(listener: Listener) -> Iterator[threading.Thread]:
    """The listener waits longer than the test; leaving the block must wake it up."""
    waits = threading.Thread(target=listener.wait, args=(PATIENCE_SECONDS * 100,), daemon=True)
    waits.start()
    yield waits
    waits.join(PATIENCE_SECONDS)
    assert not waits.is_alive(), "it was not woken up"


def terminate_listeners(database: Database) -> None:
    database.write(text(f"SELECT pg_terminate_backend(pid) {LISTENING}"))
    wait_until(lambda: listeners(database) == 0, "they have ended")


def listeners(database: Database) -> int:
    return int(database.read(text(f"SELECT count(*) {LISTENING}"))[0][0])


def attempts_of(database: Database) -> list[object]:
    """One for each connection that is tried."""
    attempts: list[object] = []
    event.listen(database.engine, "do_connect", lambda *_: attempts.append(_))
    return attempts


def test_an_announcement_wakes_a_listener_of_another_process(
    announcer: Announcer, listener: Listener
) -> None:
    with woken(listener):
        announcer.announce()


def test_it_wakes_all_of_them(announcer: Announcer, listener: Listener, database: Database) -> None:
    second = Listener(database)
    second.listen()
    with woken(listener), woken(second):
        announcer.announce()
    second.close()


def test_an_announcement_made_before_the_listener_waits_wakes_it(
    announcer: Announcer, listener: Listener
) -> None:
    """A reader that looks for events and then waits must not miss those in between."""
    announcer.announce()
    with woken(listener):
        pass


def test_a_listener_is_woken_again_and_again(announcer: Announcer, listener: Listener) -> None:
    for _ in range(3):
        with woken(listener):
            announcer.announce()


def test_without_an_announcement_a_wait_ends_with_its_time(listener: Listener) -> None:
    listener.wait(0.01)


def test_a_listener_that_does_not_listen_yet_waits_all_the_same(other: Database) -> None:
    """It receives no wake-up, and reads at intervals."""
    Listener(other).wait(0.01)


def test_announcements_to_a_slow_database_never_block_and_become_one(
    other: Database, database: Database
) -> None:
    sent: list[Statement] = []
    with each_statement(lambda query, _: sent.append(query)), announcing(other) as announcer:
        with other.engine.connect():  # The only connection: the announcer waits for it.
            for _ in range(1000):
                announcer.announce()
            assert sent == []
        listener = Listener(database)
        listener.listen()
        announcer.announce()
        with woken(listener):
            pass
        wait_until(lambda: not announcer._asked.is_set(), "all is announced")
    listener.close()
    assert 1 <= sum(statement.name == "notify" for statement in sent) <= 3


# A database that goes away


def test_an_announcer_without_a_database_goes_on_trying() -> None:
    away = Database(AWAY)
    attempts = attempts_of(away)
    with announcing(away) as announcer:
        for count in (1, 2, 3):
            announcer.announce()
            wait_until(lambda count=count: len(attempts) >= count, "it has tried")  # type: ignore[misc]
    away.close()


def test_an_announcer_whose_connection_was_ended_announces_again(
    other: Database, database: Database
) -> None:
    listener = Listener(database)
    listener.listen()
    pid = other.read(text("SELECT pg_backend_pid()"))[0][0]
    database.write(text(f"SELECT pg_terminate_backend({pid})"))
    with announcing(other) as announcer, woken(listener) as waits:

        def announced() -> bool:
            announcer.announce()  # The first may be lost with the connection.
            return not waits.is_alive()

        wait_until(announced, "it is woken up")
    listener.close()


def test_listening_to_a_database_that_is_away_says_that_it_is_unavailable() -> None:
    away = Database(AWAY)
    with pytest.raises(DatabaseUnavailableError):
        Listener(away).listen()
    away.close()


def test_a_listener_whose_connection_was_ended_is_woken_by_that(
    listener: Listener, database: Database
) -> None:
    with woken(listener):
        terminate_listeners(database)


def test_a_listener_whose_connection_was_ended_listens_again(
    announcer: Announcer, listener: Listener, database: Database
) -> None:
    terminate_listeners(database)

    def listens_again() -> bool:
        listener.wait(0)
        listener.listen()
        return listeners(database) == 1

    wait_until(listens_again, "it listens again")
    with woken(listener):
        announcer.announce()


def test_a_listener_that_listens_does_not_connect_again(
    listener: Listener, database: Database
) -> None:
    listener.listen()
    assert listeners(database) == 1


# Its connection


def test_a_listener_takes_no_connection_of_the_pool(listener: Listener, other: Database) -> None:
    """Else each process had one less for its calls, or none."""
    assert other.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert other.read(text("SELECT 1"))
    assert listener


def test_a_listener_holds_no_transaction_open(listener: Listener, database: Database) -> None:
    """One would keep PostgreSQL from cleaning up, for as long as the process lives."""
    states = database.read(text(f"SELECT state {LISTENING}"))
    assert states == [("idle",)]
    assert listener


def test_a_closed_listener_leaves_no_connection(other: Database, database: Database) -> None:
    listener = Listener(other)
    listener.listen()
    listener.close()
    wait_until(lambda: listeners(database) == 0, "its connection is closed")


def test_a_listener_may_be_closed_twice(listener: Listener) -> None:
    listener.close()
    listener.close()
