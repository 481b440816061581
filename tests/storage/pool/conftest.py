"""A database for the tests of the pool, and what they share."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Connection, text

from storage.database import Database
from tests.support.databases import made_database
from tests.support.pool import OBJECTS, connected, opened


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


@pytest.fixture
def refusing_url() -> Iterator[str]:
    """The URL of a port that is ours and refuses connections."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        yield f"postgresql+psycopg2://tasks@127.0.0.1:{unheard.getsockname()[1]}/tasks"
