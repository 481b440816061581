"""Create databases for tests."""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from alembic import command
from sqlalchemy import NullPool, create_engine, make_url, text

from storage import schema

_numbers = itertools.count(1)


@contextmanager
def made_database(postgres_url: str, *, migrated: bool = True) -> Iterator[str]:
    """Create a database; drop it at the end."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    engine = create_engine(postgres_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    try:
        if migrated:
            _migrate(url)
        yield url
    finally:
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def _migrate(url: str) -> None:
    """Migrate a database, by TEST_MIGRATE_COMMAND if it is set: that of a newer release."""
    if command := os.environ.get("TEST_MIGRATE_COMMAND"):
        its_own = {"ENVIRONMENT": "development", "DATABASE_URL": url, "DATABASE_DIRECT_URL": url}
        subprocess.run(shlex.split(command), env=os.environ | its_own, check=True)
    else:
        schema.upgrade(url)


def downgrade(url: str, revision: str) -> None:
    """Migrate down to a revision, `base` for none."""
    with create_engine(url, poolclass=NullPool).connect() as connection:
        command.downgrade(schema.configuration(connection), revision)
