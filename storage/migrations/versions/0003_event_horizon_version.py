"""event horizon version

Revision: 0003, after 0002.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
oldest_build = "0003"


def upgrade() -> None:
    op.execute("ALTER TABLE event_horizon ADD version bigint NOT NULL DEFAULT '0'")


def downgrade() -> None:
    op.drop_column("event_horizon", "version")
