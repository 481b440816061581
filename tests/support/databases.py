"""Create databases for tests."""

from __future__ import annotations

import itertools
import os
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
            schema.upgrade(url)
        yield url
    finally:
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def downgrade(url: str, revision: str) -> None:
    """Migrate down to a revision, `base` for none."""
    with create_engine(url, poolclass=NullPool).connect() as connection:
        command.downgrade(schema.configuration(connection), revision)
