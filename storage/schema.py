"""The schema's revision: where the database is, where this build wants it, and the way there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError

from storage.errors import DatabaseUnavailableError
from storage.events import adopt_restored

_MIGRATIONS = Path(__file__).parent / "migrations"

# Any number will do, as long as nobody else takes the same one: the letters "task".
_MIGRATION_LOCK = 0x7461736B


class SchemaError(Exception):
    """The database's schema is not the one that this build works with."""


class SchemaBehindError(SchemaError):
    """There are migrations to apply."""


class SchemaAheadError(SchemaError):
    """The database has a revision that this build does not know."""


@cache
def head_revision() -> str:
    """The revision that this build works with."""
    head = _scripts().get_current_head()
    if head is None:
        raise SchemaError("this build has no migrations")
    return head


def upgrade(url: str) -> None:
    """Migrates to the head; a second process that tries meanwhile waits its turn.

    A database that was restored from a dump is made one that goes on from there.

    Raises: DatabaseUnavailableError, SchemaAheadError.
    """
    with _connection(url) as connection, _migration_lock(connection):
        _refuse_unknown(current_revision(connection))
        connection.commit()
        command.upgrade(configuration(connection), "head")
        adopt_restored(connection)
        connection.commit()


def downgrade(url: str, revision: str) -> None:
    """Migrates down to a revision, `base` for none."""
    with _connection(url) as connection, _migration_lock(connection):
        command.downgrade(configuration(connection), revision)


def check(url: str) -> None:
    """Raises DatabaseUnavailableError, and what `check_revision` raises."""
    with _connection(url) as connection:
        check_revision(connection)


def check_revision(connection: Connection) -> None:
    """Raises SchemaBehindError or SchemaAheadError unless the schema is at the head."""
    current = current_revision(connection)
    if current == head_revision():
        return
    _refuse_unknown(current)
    raise SchemaBehindError(
        f"the schema is behind: it is at {current or 'nothing'} and this build needs "
        f"{head_revision()}; run `task-service migrate`"
    )


def current_revision(connection: Connection) -> str | None:
    """The revision that the database is at; None before its first migration."""
    if connection.scalar(text("SELECT to_regclass('alembic_version')")) is None:
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def _refuse_unknown(current: str | None) -> None:
    known = {script.revision for script in _scripts().walk_revisions()}
    if current is not None and current not in known:
        raise SchemaAheadError(
            f"the schema is ahead: it is at {current}, which this build does not know "
            f"(its newest is {head_revision()}); deploy the build that made it"
        )


@contextmanager
def _connection(url: str) -> Iterator[Connection]:
    """A connection of our own, past any pool."""
    engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 5})
    try:
        with engine.connect() as connection:
            yield connection
    except OperationalError as error:
        raise DatabaseUnavailableError(str(error.orig).strip()) from error
    except DBAPIError as error:
        raise SchemaError(f"the database refuses: {error.orig}".strip()) from error


@contextmanager
def _migration_lock(connection: Connection) -> Iterator[None]:
    """Held by the connection, so that it ends with it, however that is."""
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
    connection.commit()
    yield


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(configuration())


def configuration(connection: Connection | None = None) -> Config:
    """How Alembic is told where the migrations are, and which connection to use."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
