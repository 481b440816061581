"""An unreachable PostgreSQL, and an exhausted pool."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DisconnectionError

from storage.cancellation import Cancellation
from storage.embedded import EmbeddedPostgres
from storage.errors import DatabaseUnavailableError
from storage.statement import Rows
from tests.support.pool import PID, backend, opened, under


@pytest.mark.parametrize("method", ["read", "write"])
def test_a_server_that_is_not_there_is_unavailable(method: str, refusing_url: str) -> None:
    with opened(refusing_url) as database, pytest.raises(DatabaseUnavailableError):
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


def test_a_call_does_not_wait_for_a_connection_past_its_deadline(
    url: str, background: ThreadPoolExecutor
) -> None:
    with opened(url, pool_timeout_seconds=60) as database, database.transaction():
        call = background.submit(under, Cancellation(0.01), lambda: database.read(PID))
        assert isinstance(call.exception(timeout=30), DatabaseUnavailableError)


def test_connections_that_die_before_their_first_use_mean_unavailable(url: str) -> None:
    """As in a failover: each is accepted, and ended at once."""

    def end(connection: Any, *_: object) -> None:
        raise DisconnectionError

    with opened(url) as database:
        event.listen(database.engine, "checkout", end)
        with pytest.raises(DatabaseUnavailableError):
            database.read(text("SELECT 1"))
