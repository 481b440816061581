"""Make the next release of the service: a copy of this checkout with one more migration."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

from storage import schema

CHECKOUT = Path(__file__).parents[2]
NEXT_REVISION = f"{int(schema.head_revision()) + 1:04}"

_PACKAGES = "server", "storage", "generated"
_MIGRATION = '''"""a migration of a test"""

from alembic import op

revision = {revision!r}
down_revision = {before!r}
oldest_build = {before!r}


def upgrade() -> None:
    op.execute({sql!r})
    with op.get_context().autocommit_block():
        op.execute({concurrently!r})
'''


def next_release(folder: Path, sql: str, concurrently: str = "SELECT 1") -> Path:
    """Copy this checkout, and add a migration that serves the build of this checkout.

    The second statement runs in no transaction.
    """
    for name in _PACKAGES:
        shutil.copytree(
            CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    migration = _MIGRATION.format(
        revision=NEXT_REVISION, before=schema.head_revision(), sql=sql, concurrently=concurrently
    )
    versions = folder / "storage" / "migrations" / "versions"
    (versions / f"{NEXT_REVISION}_next.py").write_text(migration)
    return folder


def program(checkout: Path) -> list[str]:
    """Return the program that runs what follows with the packages of a checkout."""
    paths = f"{checkout}:{checkout / 'generated'}"
    return ["env", "-C", str(checkout), f"PYTHONPATH={paths}"]


def migrate_command(checkout: Path) -> str:
    """Return the shell command that migrates a database to the schema of a checkout."""
    return shlex.join([*program(checkout), sys.executable, "-m", "server", "migrate"])
