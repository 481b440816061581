"""Write and check migrations: the commands of `make`.

`check` fails if `storage.tables` differs from the migrations; `new MESSAGE` writes the migration
that makes them equal; `sql FOLDER` writes the SQL of each migration.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from alembic import command
from alembic.config import Config
from sqlalchemy import NullPool, create_engine

from storage import schema
from storage.embedded import EmbeddedPostgres


def check() -> None:
    """Compare the tables with a migrated database. Raises: alembic.util.CommandError."""
    with _migrated() as config:
        command.check(config)


def new(message: str) -> None:
    """Write a migration of what differs between the tables and a migrated database."""
    number = f"{int(schema.head_revision()) + 1:04}"
    with _migrated() as config:
        command.revision(config, message, autogenerate=True, rev_id=number)


def sql(folder: str) -> None:
    """Write the SQL of each migration to a file."""
    before = "base"
    for revision in sorted(schema.oldest_builds()):
        with Path(folder, f"{revision}.sql").open("w") as file:
            file.write(f"{schema.LOCK_LIMIT};\n")
            command.upgrade(schema.configuration(output=file), f"{before}:{revision}", sql=True)
        before = revision


@contextmanager
def _migrated() -> Iterator[Config]:
    """Configure Alembic for a new database at the head."""
    with TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder)) as postgres:
        schema.upgrade(postgres.url)
        with create_engine(postgres.url, poolclass=NullPool).connect() as connection:
            yield schema.configuration(connection)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["check"]:
            check()
        case ["new", message]:
            new(message)
        case ["sql", folder]:
            sql(folder)
        case _:
            sys.exit(__doc__)
