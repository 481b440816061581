"""Check and migrate the schema; check that the service can work with the database."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg2 import OperationalError as DriverOperationalError
from sqlalchemy import Connection, NullPool, text
from sqlalchemy.exc import DBAPIError, OperationalError

from storage.errors import DatabaseUnavailableError
from storage.event_statements import adopt_restored
from storage.session import make_engine

_MIGRATIONS = Path(__file__).parent / "migrations"

# An advisory lock of the session, unique in the database: the letters "task".
_MIGRATION_LOCK = 0x7461736B

# A statement that waits for the lock of a table makes all calls on that table wait behind it.
LOCK_LIMIT = "SET lock_timeout = '3s'"

# PgBouncer's message for a connection whose parameters it does not pass on.
_REFUSED_BY_POOLER = "unsupported startup parameter"

_CONNECTION_LIMIT = text("""
    SELECT least(
        current_setting('max_connections')::int
            - current_setting('superuser_reserved_connections')::int
            - coalesce(current_setting('reserved_connections', true), '0')::int,
        nullif(datconnlimit, -1),
        nullif(rolconnlimit, -1)
    )
    FROM pg_database, pg_roles
    WHERE datname = current_database() AND rolname = current_user
""")
_READ_ONLY = text("""
    SELECT CASE
        WHEN pg_is_in_recovery() THEN 'it is a standby'
        WHEN current_setting('transaction_read_only')::bool
        THEN 'default_transaction_read_only is on'
    END
""")


# By way of JSON, as migration 0006 adds the second column.
_REVISION = text("""
    SELECT version_num, to_jsonb(version) ->> 'oldest_build' AS oldest_build
    FROM alembic_version AS version
""")
RECORDED_SINCE = "0006"


class SchemaError(Exception):
    """The service cannot work with this database, its schema, or this way to it."""


class BehindError(SchemaError):
    """The schema lacks migrations of this build."""


class ReadOnlyError(SchemaError):
    """The database takes no writes."""


@cache
def head_revision() -> str:
    """Return the revision that this build works with."""
    return str(_scripts().get_current_head())


def upgrade(url: str) -> str:
    """Migrate to the head, one process at a time; return a note if the schema is ahead of it.

    Raises: DatabaseUnavailableError, SchemaError.
    """
    note = ""
    with _connection(url) as connection:
        check_fit(connection, needs_direct=True)
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
        connection.execute(text(LOCK_LIMIT))
        connection.commit()
        try:
            note = check_revision(connection)
            connection.commit()
        except BehindError:
            connection.commit()
            command.upgrade(configuration(connection), "head")
        adopt_restored(connection)
        connection.commit()
    return note


def check(url: str, direct_url: str | None = None, *, connections: int = 0) -> list[str]:
    """Check a database to which so many connections are made; return advice for the operator.

    Raises: DatabaseUnavailableError, SchemaError.
    """
    if direct_url is not None:
        with _connection(url) as connection:  # A pooler may refuse it.
            check_fit(connection, needs_direct=False)
    with _connection(direct_url or url) as connection:
        check_fit(connection, needs_direct=True)
        check_revision(connection)
        return list(_advice(connection, connections))


def _advice(connection: Connection, connections: int) -> Iterator[str]:
    if connection.scalar(text("SELECT lower('\u00dc')")) != "\u00fc":
        yield (
            "the database's locale knows the case of ASCII letters only: searches, filters and "
            "tags distinguish \u00fc and \u00dc; make the database with a locale such as C.UTF-8"
        )
    most = connection.scalar(_CONNECTION_LIMIT)
    if connections > most:
        yield (
            f"the workers may open {connections} connections and the database takes {most}: "
            "lower WORKERS or THREADS_PER_WORKER, or raise max_connections"
        )


def check_fit(connection: Connection, *, needs_direct: bool) -> None:
    """Check the encoding and the way to the server, without a round trip. Raises: SchemaError."""
    driver: Any = connection.connection.driver_connection
    encoding = driver.get_parameter_status("server_encoding")
    if encoding != "UTF8":
        raise SchemaError(
            f"the database's encoding is {encoding} and must be UTF8: make it with "
            "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
        )
    if needs_direct and not connection.info["is_direct"]:
        raise SchemaError(
            "a pooler stands before the database: set DATABASE_DIRECT_URL to PostgreSQL itself, "
            "where LISTEN and migrations have sessions of their own"
        )


def check_writable(connection: Connection) -> None:
    """Check that the database takes writes. Raises: ReadOnlyError."""
    if why := connection.scalar(_READ_ONLY):
        raise ReadOnlyError(f"the database is read-only: {why}")


def check_revision(connection: Connection) -> str:
    """Check that the schema serves this build; return a note if it is ahead.

    Raises: BehindError, SchemaError.
    """
    current, oldest_build = _revision(connection)
    head = head_revision()
    if current == head:
        return ""
    if current is None or current in oldest_builds():
        raise BehindError(
            f"the schema is behind: it is at {current or 'nothing'} and this build needs "
            f"{head}; run `task-service migrate`"
        )
    if oldest_build is None or oldest_build > head:
        raise SchemaError(
            f"the schema is ahead: it is at {current} and serves builds from "
            f"{oldest_build or current} on (this one is of {head}); deploy a newer build"
        )
    return f"the schema is ahead: it is at {current}, and serves this build of {head}, too"


def is_empty(connection: Connection) -> bool:
    """Tell whether the database is still without a schema."""
    return _revision(connection)[0] is None


def _revision(connection: Connection) -> tuple[str | None, str | None]:
    """Return the revision of the database, and that of the oldest build that it serves."""
    if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
        return None, None
    row = connection.execute(_REVISION).one_or_none()
    return (None, None) if row is None else (row.version_num, row.oldest_build)


def record_oldest_build(context: MigrationContext, revision: str) -> None:
    """Record the oldest build that a schema of this revision serves, for builds that lack it."""
    if revision >= RECORDED_SINCE:
        oldest_build = oldest_builds()[revision]
        context.execute(f"UPDATE alembic_version SET oldest_build = '{oldest_build}'")  # noqa: S608


@cache
def oldest_builds() -> dict[str, str]:
    """Return, for each revision, the oldest build that the schema serves."""
    return {script.revision: script.module.oldest_build for script in _scripts().walk_revisions()}


@contextmanager
def _connection(url: str) -> Iterator[Connection]:
    """Open a connection outside any pool."""
    try:
        with make_engine(url, poolclass=NullPool).connect() as connection:
            yield connection
    except (OperationalError, DriverOperationalError) as error:
        said = str(getattr(error, "orig", error)).strip()
        if _REFUSED_BY_POOLER in said:
            raise SchemaError(f"the pooler before the database refuses: {said}") from error
        raise DatabaseUnavailableError(said) from error
    except DBAPIError as error:
        raise SchemaError(f"the database refuses: {error.orig}".strip()) from error


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(configuration())


def configuration(connection: Connection | None = None, output: TextIO = sys.stdout) -> Config:
    """Configure Alembic: where the migrations are, and the connection, or where to write SQL."""
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
