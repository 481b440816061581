"""the oldest build that the schema serves

Revision: 0006, after 0005.

Builds from this one on read it where the schema is ahead of them; those before refuse any schema
that is ahead.
"""

from alembic import op

revision = "0006"
down_revision = "0005"
oldest_build = "0006"


def upgrade() -> None:
    op.execute("ALTER TABLE alembic_version ADD oldest_build text")


def downgrade() -> None:
    op.execute("ALTER TABLE alembic_version DROP oldest_build")
