"""`make migration-check` fails for a change without a migration, and for SQL that stops calls."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.util import CommandError
from sqlalchemy import Column, Text

from storage import schema
from storage.migrations.__main__ import check, sql
from storage.tables import metadata, tasks

CHECKOUT = Path(__file__).parents[2]
SQUAWK = CHECKOUT / ".tools" / "bin" / "squawk"
RULES = CHECKOUT / "storage" / "migrations" / "squawk.toml"


@pytest.fixture
def changed_table() -> Iterator[None]:
    tasks.append_column(column := Column("colour", Text))
    yield
    tasks._columns.remove(column)


def test_the_migrations_give_what_the_tables_say() -> None:
    assert metadata.tables
    check()


@pytest.mark.usefixtures("changed_table")
def test_a_change_without_a_migration_is_found() -> None:
    with pytest.raises(CommandError, match="colour"):
        check()


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    """A folder with the SQL of each migration."""
    sql(str(tmp_path))
    return tmp_path


def findings(file: Path) -> str:
    """Return what squawk finds in a migration."""
    if not SQUAWK.exists():
        assert not os.environ.get("CI"), "make tools installs squawk"
        pytest.skip("squawk is not installed: make tools")
    command = [str(SQUAWK), "--config", str(RULES), "--reporter", "gcc", str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_each_migration_is_checked(migrations: Path) -> None:
    assert [file.stem for file in sorted(migrations.iterdir())] == sorted(schema.oldest_builds())
    assert "".join(findings(file) for file in migrations.iterdir()) == ""


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("ALTER TABLE tasks RENAME title TO name", "renaming-column"),
        ("CREATE INDEX idx_task_note ON tasks (description)", "require-concurrent-index-creation"),
        ("ALTER TABLE tasks ADD note text NOT NULL", "adding-required-field"),
        ("ALTER TABLE tasks DROP description", "ban-drop-column"),
    ],
)
def test_sql_that_stops_the_build_before_is_found(
    migrations: Path, statement: str, rule: str
) -> None:
    file = migrations / "0006.sql"
    file.write_text(file.read_text().replace("BEGIN;", f"BEGIN;\n{statement};"))
    assert rule in findings(file)
