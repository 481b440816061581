"""Writes and checks migrations on a PostgreSQL made for the purpose, at the newest revision.

`python -m storage.migrations check` fails when the migrations do not give what `storage.tables`
says; `python -m storage.migrations new MESSAGE` writes the migration that leads there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from alembic import command
from alembic.util import CommandError
from sqlalchemy import NullPool, create_engine

from storage import schema
from storage.embedded import EmbeddedPostgres


def main(action: str, message: str = "") -> int:
    with (
        TemporaryDirectory() as folder,
        EmbeddedPostgres(Path(folder), settings={"fsync": "off"}) as postgres,
    ):
        schema.upgrade(postgres.url)
        with create_engine(postgres.url, poolclass=NullPool).connect() as connection:
            config = schema.configuration(connection)
            if action == "new":
                number = f"{int(schema.head_revision()) + 1:04}"
                command.revision(config, message, autogenerate=True, rev_id=number)
                return 0
            try:
                command.check(config)
            except CommandError as error:
                sys.stderr.write(f"{error}\n")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
