"""Run the migrations on the connection that `storage.schema` gives Alembic."""

from collections.abc import Collection, Mapping

from alembic import context
from alembic.migration import MigrationContext, MigrationInfo

from storage import schema
from storage.tables import metadata


def _record(
    ctx: MigrationContext,
    step: MigrationInfo,
    heads: Collection[object],
    run_args: Mapping[str, object],
) -> None:
    """Record which builds the schema serves, in the transaction of the migration."""
    for revision in step.destination_revision_ids:
        schema.record_oldest_build(ctx, revision)


context.configure(
    connection=context.config.attributes["connection"],
    dialect_name="postgresql",  # Without a connection, the SQL is written.
    target_metadata=metadata,
    compare_server_default=True,
    transaction_per_migration=True,
    on_version_apply=_record,
)
with context.begin_transaction():
    context.run_migrations()
