"""Compare `storage.tables` with the migrations, on a new database: the commands of `make`.

`check` fails when they differ; `new MESSAGE` writes the migration that makes them equal.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from alembic import command
from sqlalchemy import NullPool, create_engine

from storage import schema
from storage.embedded import EmbeddedPostgres


def main(action: str, message: str = "") -> None:
    """Run a command. Raises: alembic.util.CommandError."""
    with TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder)) as postgres:
        schema.upgrade(postgres.url)
        with create_engine(postgres.url, poolclass=NullPool).connect() as connection:
            config = schema.configuration(connection)
            if action == "new":
                number = f"{int(schema.head_revision()) + 1:04}"
                command.revision(config, message, autogenerate=True, rev_id=number)
            else:
                command.check(config)


if __name__ == "__main__":
    main(*sys.argv[1:])
