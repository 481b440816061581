"""How Alembic reaches the database: by the connection that `storage.schema` hands it, or, from the
`alembic` command line, by DATABASE_DIRECT_URL or else DATABASE_URL."""

from __future__ import annotations

import os

from alembic import context
from sqlalchemy import Connection, NullPool

from storage.session import make_engine
from storage.tables import metadata


def run(connection: Connection) -> None:
    """Runs the migrations, each in a transaction of its own."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_server_default=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    url = os.environ.get("DATABASE_DIRECT_URL") or os.environ["DATABASE_URL"]
    with make_engine(url, poolclass=NullPool).connect() as own:
        run(own)
